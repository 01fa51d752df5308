"""Modalities that cmcr does not know: imported, connected, evaluated, or brought by a package."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plugins import PLACES, install
from shell import refuse, succeed

from cmcr.embeddings import Dataset, Key, list_datasets, open_dataset
from cmcr.extract.contract import PROMISES, check_encoder

MAKE = Callable[..., Dataset]


def two_spaces(
    make: MAKE, one: tuple[str, str], other: tuple[str, str], rows: int = 96, shift: float = 0.4
) -> None:
    """Rows of one hidden thing each in two spaces of 12 and 16, (SPACE, MODALITY) by text.

    Every modality lies around a middle of its own. Items of the test sets share a group.
    """
    random = np.random.default_rng(0)
    things = random.normal(size=(rows, 6))
    tests = random.normal(size=(60, 6))
    for space, modality in (one, other):
        dim = 12 if space == one[0] else 16
        turn = random.normal(size=(6, dim))
        for kind in ("text", modality):
            middle = shift * random.normal(size=dim)
            lie = [values @ turn + middle + 0.1 * random.normal(size=(len(values), dim))
                   for values in (things, tests)]  # fmt: skip
            ids = [str(row) for row in range(rows)]
            name = "captions" if kind == "text" else "memory"
            make(f"{space}/{kind}:{name}", lie[0].astype(np.float32), id=ids)
            if kind != "text":
                make(f"{space}/{kind}:test", lie[1].astype(np.float32),
                     id=[f"t{row}" for row in range(60)], group=ids[:60],
                     text=[f"C{row}" for row in range(60)])  # fmt: skip


@pytest.mark.usefixtures("one_thread")
def test_molecules_are_imported_connected_by_text_evaluated_and_reported(
    make_dataset: MAKE, tmp_path: Path
) -> None:
    two_spaces(make_dataset, ("smiles", "molecule"), ("scope", "x-ray"))
    flags = ("--no-pipeline", "--store", "store")
    np.save(tmp_path / "more.npy", np.random.default_rng(1).normal(size=(5, 12)))
    succeed("import", "--space", "smiles", "--modality", "molecule", "--dataset", "more",
            "--embeddings", "more.npy", "--store", "store", cwd=tmp_path)  # fmt: skip
    succeed("connect", *flags, "--spaces", "smiles,scope", "--via", "text", "--train", "captions",
            "--memory", "memory", "--method", "cca", "--name", "c", cwd=tmp_path)  # fmt: skip
    pair = ("--query", "smiles/molecule:test", "--gallery", "scope/x-ray:test")
    told = succeed("evaluate", "retrieval", *flags, "--connection", "c", *pair, "--json",
                   cwd=tmp_path)  # fmt: skip
    rows = json.loads(told.stdout)["results"]
    best = max(row["metrics"]["hit_rate@1"] for row in rows if row["model"] == "cca")
    assert best > 0.8
    succeed("report", "store", "--out", "report.html", cwd=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "smiles/molecule:test" in page
    assert "C7" in page  # a molecule is shown by its text
    listed = json.loads(succeed("info", "store", "--json", cwd=tmp_path).stdout)["datasets"]
    assert {one["modality"] for one in listed} == {"text", "molecule", "x-ray"}


@pytest.mark.usefixtures("one_thread")
def test_several_memories_of_a_space_have_each_a_middle_and_a_spread_of_their_own(
    make_dataset: MAKE, tmp_path: Path
) -> None:
    from cmcr.connect import connect, load_connection, read_config

    two_spaces(make_dataset, ("see", "image"), ("hear", "audio"))
    random = np.random.default_rng(2)
    make_dataset("see/touch:pads", random.normal(size=(90, 12)) + 1.5)
    section = {"spaces": ("see", "hear"), "via": "text", "train": ("captions",)}
    store = tmp_path / "store"
    for method in ("cca", "ex-mcr"):
        both = read_config(
            section | {"memory": ["memory", "pads"], "method": method}
            | ({"centre": True, "epochs": 1} if method == "ex-mcr" else {})
        )  # fmt: skip
        record = connect(store, both, name=method).record
        assert record.spaces[0].memory == "image"
        assert record.spaces[0].centred == ("text", "image", "touch")
        assert "see/touch:pads" in record.spaces[0].datasets
        if method == "ex-mcr":
            assert record.spaces[0].turned == ("image", "touch")
    alone = read_config(section | {"memory": ["memory"], "method": "cca"})
    connect(store, alone, name="alone")
    images = open_dataset(store, Key("see", "image", "test")).embeddings()
    joint = [
        load_connection(store / "connections" / name).project("see", images, "image").numpy()
        for name in ("cca", "alone")
    ]
    np.testing.assert_array_equal(*joint)
    first = read_config(section | {"memory": ["pads", "memory"], "method": "cca"})
    assert connect(store, first, name="first").record.spaces[0].memory == "touch"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


@pytest.mark.usefixtures("plugins", "one_thread")
def test_the_contract_tries_an_encoder_of_a_modality_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(PROMISES, "a worker process")  # type: ignore[arg-type]  # seconds
    found = {one.name: one.problem for one in check_encoder("globe")}
    assert not any(found.values()), found
    assert len(found) == 2 + 2 * len(PROMISES)


@pytest.mark.usefixtures("plugins")
def test_a_package_brings_a_modality_of_lines_and_one_of_files(tmp_path: Path) -> None:
    (tmp_path / "places.txt").write_text("\n".join((*PLACES, "nowhere")) + "\n")
    (tmp_path / "grids").mkdir()
    for number, content in enumerate(("1 2 3", "3 1 0")):
        (tmp_path / "grids" / f"{number}.grid").write_text(content)
    (tmp_path / "grids" / "read.me").write_text("skipped")
    flags = ("--encoder", "globe", "--store", "S", "--no-pipeline", "--workers", "0")
    succeed("extract", *flags, "--source", "gps=places.txt", "--source", "grid=grids",
            "--max-failures", "0.3", cwd=tmp_path)  # fmt: skip
    assert [str(key) for key in list_datasets(tmp_path / "S")] == [
        "globe/gps:places", "globe/grid:grids"
    ]  # fmt: skip
    rows = open_dataset(tmp_path / "S", Key("globe", "gps", "places")).table(["text"])
    assert rows["text"].to_pylist() == list(PLACES)
    told = succeed("search", "48.8,2.3", "--modality", "gps", "--in", "globe/gps", "--store", "S",
                   "--no-pipeline", "--html", "f.html", "--json", cwd=tmp_path)  # fmt: skip
    (asked,) = json.loads(told.stdout)["queries"]
    assert asked["results"][0]["text"] == "48.85,2.35"
    assert "48.85,2.35" in (tmp_path / "f.html").read_text()
    told = succeed("search", "grids/1.grid", "--in", "globe/grid", "--store", "S", "--no-pipeline",
                   "--json", cwd=tmp_path)  # fmt: skip
    assert json.loads(told.stdout)["queries"][0]["results"][0]["id"] == "1.grid"


@pytest.mark.usefixtures("plugins")
def test_what_nothing_reads_and_what_two_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plugins

    from cmcr.errors import UsageError
    from cmcr.extract import Reader, open_source

    with pytest.raises(UsageError, match="nothing says how gsp is read") as told:
        open_source("gsp", str(tmp_path))
    assert "gps" in str(told.value.fix)
    with pytest.raises(UsageError, match="how video is read") as told:
        open_source("video", str(tmp_path))
    assert "--frames" in str(told.value.fix)
    object.__setattr__(plugins.SENSES, "readers", {"gps": Reader((".csv",), examples=PLACES)})
    with pytest.raises(UsageError, match="globe and senses read gps in two ways"):
        open_source("gps", str(tmp_path))
    object.__setattr__(plugins.SENSES, "readers", {})


def test_a_folder_that_is_no_modality_is_said(make_dataset: MAKE, tmp_path: Path) -> None:
    make_dataset("a/text:words", np.eye(3, dtype=np.float32))
    for stray in (
        "modality=Audio!/dataset=x",
        "stuff",
        "modality=empty",
        "modality=text/dataset=y",
    ):
        (tmp_path / "store" / "space=a" / stray).mkdir(parents=True)
    told = json.loads(succeed("info", "store", "--json", cwd=tmp_path).stdout)
    problems = {one["folder"]: one["problem"] for one in told["left_out"]}
    assert list(problems) == ["space=a/modality=Audio!/dataset=x", "space=a/modality=empty",
                              "space=a/stuff"]  # fmt: skip
    assert "'Audio!' cannot name a modality" in problems["space=a/modality=Audio!/dataset=x"]
    assert told["datasets"][1]["problem"].startswith("the dataset is unfinished")
    assert "modality=empty: it holds no dataset" in succeed("info", "store", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    "command",
    [
        ("import", "--space", "a", "--modality", "Audio!", "--dataset", "d", "--embeddings",
         "none.npy", "--store", "S"),
        ("connect", "--no-pipeline", "--spaces", "a,b", "--via", "Audio!", "--train", "t"),
        ("search", "x", "--in", "a/text", "--modality", "Audio!", "--store", "S", "--no-pipeline"),
    ],
)  # fmt: skip
def test_what_cannot_name_a_modality_gets_an_error_in_three_parts(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "S" / "space=a").mkdir(parents=True)
    told = refuse(2, *command, cwd=tmp_path)
    assert "'Audio!' cannot name a modality" in told
    assert "modality=Audio!" in told
    assert "small letters, digits and '-'" in told


@pytest.fixture
def tracks(make_dataset: MAKE, tmp_path: Path) -> Path:
    """120 tracks of six tastes: their genres' words, what playlists they are in, their sound.

    Of 60 new ones, which no playlist has yet, there is the sound alone.
    """
    random = np.random.default_rng(0)
    tastes = random.normal(size=(6, 5))
    old, new = np.repeat(np.arange(6), 20), np.repeat(np.arange(6), 10)
    for space, dim, loose in (("words", 20, 0.1), ("playlists", 16, 0.7), ("sound", 24, 0.3)):
        turn = random.normal(size=(5, dim))
        for name, taste in (("catalogue", old), ("new", new)):
            if name == "catalogue" or space == "sound":
                lie = (tastes[taste] + loose * random.normal(size=(len(taste), 5))) @ turn
                make_dataset(f"{space}/track:{name}", lie.astype(np.float32),
                             id=[f"{name}-{row}" for row in range(len(taste))],
                             label=[[str(one)] for one in taste])  # fmt: skip
    for other in ("words", "playlists"):
        succeed("connect", "--no-pipeline", "--store", "store", "--spaces", f"{other},sound",
                "--via", "track", "--train", "catalogue", "--method", "cca", "--name", other,
                cwd=tmp_path)  # fmt: skip
    return tmp_path / "store"


@pytest.mark.usefixtures("one_thread")
def test_a_playlist_is_continued_by_the_mean_of_its_seeds(tracks: Path) -> None:
    def continued(*seeds: str) -> list[str]:
        """The tastes of the new tracks that are found first, by their sound."""
        flags = ("--together", "--in", "sound/track:new", "--store", "store", "--no-pipeline")
        told = succeed("search", *seeds, *flags, "-k", "10", "--json", cwd=tracks.parent)
        (asked,) = json.loads(told.stdout)["queries"]
        return [hit["label"][0] for hit in asked["results"]]

    def share(seeds: int) -> float:
        lists = [[f"playlists/track:catalogue#catalogue-{20 * taste + seed}"
                  for seed in range(seeds)] for taste in range(6)]  # fmt: skip
        found = [continued(*one).count(str(taste)) for taste, one in enumerate(lists)]
        return sum(found) / 60

    assert share(8) > max(0.75, share(1))

    from cmcr.connect import load_connection

    seeds = open_dataset(tracks, Key("playlists", "track", "catalogue")).embeddings()[:8]
    connection = load_connection(tracks / "connections" / "playlists")
    (hits,) = connection.search(tracks, seeds, ["sound/track:new"], space="playlists",
                                modality="track", together=True)  # fmt: skip
    names = [f"playlists/track:catalogue#catalogue-{seed}" for seed in range(8)]
    assert [hit.item["label"][0] for hit in hits] == continued(*names)
    genre = succeed("search", "words/track:catalogue#catalogue-45", "--in", "sound/track:new",
                    "--store", "store", "--no-pipeline", "-k", "3", cwd=tracks.parent)  # fmt: skip
    assert "connection words" in genre.stderr
    told = refuse(2, "search", "words/track:catalogue#none", "--in", "sound/track:new",
                  "--store", "store", "--no-pipeline", cwd=tracks.parent)  # fmt: skip
    assert "has no item 'none'" in told


def test_items_of_the_store_are_looked_up_together_and_have_their_modality(
    make_dataset: MAKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmcr.search import stored

    vectors = np.eye(6, dtype=np.float32)
    for name in ("many", "copies"):
        make_dataset(f"a/track:{name}", vectors, id=[f"t{row}" for row in range(6)])
    opened = []
    first = stored.open_dataset
    monkeypatch.setattr(stored, "open_dataset", lambda *a, **b: opened.append(1) or first(*a, **b))
    names = [f"a/track:many#t{row}" for row in (4, 1, 4)]
    flags = ("--in", "a/track:copies", "--store", "store", "--no-pipeline", "-k", "1", "--json")
    told = succeed("search", *names, *flags, cwd=tmp_path)
    asked = json.loads(told.stdout)["queries"]
    assert [one["query"][0]["input"] for one in asked] == names
    assert [one["results"][0]["id"] for one in asked] == ["t4", "t1", "t4"]
    assert len(opened) == 1
    told = refuse(2, "search", *names, *flags[:-1], "--modality", "video", cwd=tmp_path)
    assert "a/track:many#t4 is track, not video" in told
