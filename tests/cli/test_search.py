"""`cmcr search` on the digits world: what is found, how sure, what is refused, and the page.

pytest tests/cli/test_search.py
"""

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from shell import Demo, refuse
from typer.testing import CliRunner

import cmcr
from cmcr.cli.app import app
from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Key, import_embeddings, open_dataset
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.extract import find_media

PICTURES, SPEECH = "digits-clip/image:handwriting-test", "digits-clap/audio:speech-test"
Search = Callable[..., Any]


@pytest.fixture(scope="module")
def media(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings and pictures of the test split as files, named by what they are, and worse."""
    folder = tmp_path_factory.mktemp("media")
    for place, kind in ((SPEECH, "sounds"), (PICTURES, "pictures")):
        table = open_dataset(demo.store, Key.parse(place)).table(["uri", "label"])
        table = table.take(np.linspace(0, len(table) - 1, 40).astype(int))
        found = find_media(Key.parse(place).modality, table["uri"].to_pylist())
        (folder / kind).mkdir()
        for number, row in enumerate(table.to_pylist()):
            path = folder / kind / f"{row['label'][0]}-{number:02}"
            item: Any = found[row["uri"]]
            if kind == "sounds":
                soundfile.write(path.with_suffix(".wav"), item.samples.T, item.sample_rate)
            else:
                item.save(path.with_suffix(".png"))
    (folder / "empty").mkdir()
    (folder / "note.docx").write_text("three")
    whole = next((folder / "sounds").iterdir())
    (folder / "cut.wav").write_bytes(whole.read_bytes()[:60])
    (folder / "long.txt").write_text("a" * 1_000_000)
    return folder


@pytest.fixture(scope="module")
def search(demo: Demo) -> Search:
    store = cmcr.open_store(demo.store)

    def ask(*queries: object, places: tuple[str, ...] = (PICTURES,), **options: Any) -> Any:
        return store.search(*map(str, queries), places=places, **options)

    return ask


def digits(answered: Any) -> Iterator[tuple[str, list[str]]]:
    """Of each query its name, and the labels of what it found."""
    for found in answered.found:
        yield Path(found.name).name, [hit.item["label"][0] for hit in found.hits]


def test_recordings_find_pictures_and_pictures_find_recordings(search: Search, media: Path) -> None:
    answered = search(media / "sounds", k=5)
    assert answered.connection == "digits"
    assert answered.spaces == {"audio": "digits-clap"}
    right = [name[0] == labels[0] for name, labels in digits(answered)]
    assert len(right) == 40
    assert np.mean(right) >= 0.95
    back = search(media / "pictures", places=(SPEECH,), k=1)
    assert np.mean([name[0] == labels[0] for name, labels in digits(back)]) >= 0.95
    corrected = search(media / "sounds", k=5, hubness="nnn")
    assert np.mean([name[0] == labels[0] for name, labels in digits(corrected)]) >= 0.95
    assert corrected.found[0].hits[0].score != corrected.found[0].hits[0].cosine


def test_within_one_space_no_connection_is_needed(search: Search) -> None:
    answered = search("a handwritten three")
    assert (answered.connection, answered.spaces) == (None, {"text": "digits-clip"})
    assert [labels for _, labels in digits(answered)] == [["3"] * 10]
    through = search("a handwritten three", places=(SPEECH,), space="digits-clip")
    assert (through.connection, through.spaces) == ("digits", {"text": "digits-clip"})


def test_the_modality_may_be_named(search: Search, media: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        search("three", modality="audio", connection="digits")
    assert search("three.wav", modality="text").spaces == {"text": "digits-clip"}
    answered = search(media, modality="audio", connection="digits")
    assert len(answered.found) == 40
    assert [Path(one["uri"]).name for one in answered.failures] == ["cut.wav"]


def test_several_inputs_are_one_query_when_together(search: Search, media: Path) -> None:
    sound = next((media / "sounds").iterdir())
    (found,) = search("two", sound, together=True, weights=[1, 0.5], connection="digits").found
    assert found.name == f"two + {sound}"
    alone = [
        {hit.item["id"]: hit.cosine for hit in one.hits}
        for one in search("two", sound, connection="digits", k=400).found
    ]
    total = {name: alone[0][name] + 0.5 * alone[1][name] for name in alone[0]}
    best = sorted(total, key=lambda name: -total[name])[:10]
    assert [hit.item["id"] for hit in found.hits] == best
    assert found.hits[0].false_positives is not None
    with pytest.raises(UsageError, match="2 inputs have 1 weights"):
        search("two", "three", together=True, weights=[1])
    with pytest.raises(UsageError, match="cancel each other"):
        search("two", "two", together=True, weights=[1, -1])


def test_no_modality_fills_the_first_page(demo: Demo) -> None:
    """Raw cosine gives all ten to the modality that lies nearest."""
    connection = load_connection(demo.store / "connections" / "digits")
    places = [PICTURES, SPEECH]
    galleries = [open_dataset(demo.store, Key.parse(place)) for place in places]
    classes = [
        np.array([label[0] for label in one.table(["label"])["label"].to_pylist()])
        for one in galleries
    ]
    for place in ("digits-clip/text:phrases", "digits-clap/text:phrases", PICTURES, SPEECH):
        key = Key.parse(place)
        asked = open_dataset(demo.store, key)
        rows = np.linspace(0, asked.rows - 1, 60).astype(int)
        vectors = asked.embeddings()[rows]
        truth = [label[0] for label in asked.table(["label"])["label"].take(rows).to_pylist()]
        relevant = np.array([[(own == name).sum() for own in classes] for name in truth])
        alone = float((relevant[:, 0] / relevant.sum(axis=1)).mean())
        options: dict[str, Any] = {"space": key.space, "modality": key.modality}
        names = asked.table(["id"])["id"].take(rows).to_pylist()
        hits = [  # an item that finds itself is no news
            [hit for hit in own if (hit.dataset, hit.item["id"]) != (place, name)][:10]
            for own, name in zip(
                connection.search(demo.store, vectors, places, k=11, **options), names, strict=True
            )
        ]
        share = np.mean([hit.dataset == PICTURES for own in hits for hit in own])
        assert abs(share - alone) < 0.1, place
        right = [hit.item["label"][0] == name for own, name in zip(hits, truth, strict=True)
                 for hit in own]  # fmt: skip
        assert np.mean(right) > 0.9
        query = connection.project(key.space, vectors, key.modality)
        joint = [
            connection.project(one.key.space, one.embeddings(), one.key.modality)
            for one in galleries
        ]
        raw = [(query @ items.T).topk(10).values for items in joint]  # (60, 10) each
        first_ten = torch.cat(raw, dim=1).argsort(dim=1)[:, -10:]
        assert (first_ten < 10).float().mean() in (0, 1), place


@pytest.fixture(scope="module")
def halves(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the training split every second voice and picture to connect by, the others held out."""
    folder = tmp_path_factory.mktemp("halves")

    def put(place: str, source: str, kept: np.ndarray) -> None:
        dataset = open_dataset(demo.store, Key.parse(source))
        table = dataset.table(["id", "label"]).take(np.flatnonzero(kept))
        np.save(folder / "array.npy", dataset.embeddings()[kept])
        pq.write_table(pa.table({name: table[name] for name in table.column_names}),
                       folder / "rows.parquet")  # fmt: skip
        key = Key.parse(place)
        array, rows = folder / "array.npy", folder / "rows.parquet"
        import_embeddings(folder / "store", key, array, rows, index=None)

    for space in ("digits-clip", "digits-clap"):
        phrases = f"{space}/text:phrases"
        put(phrases, phrases, np.ones(open_dataset(demo.store, Key.parse(phrases)).rows, bool))
    speech, pictures = "digits-clap/audio:speech-train", "digits-clip/image:handwriting-train"
    voices = open_dataset(demo.store, Key.parse(speech)).table(["voice"])["voice"].to_pylist()
    some = np.isin(voices, sorted(set(voices))[::2])
    even = np.arange(open_dataset(demo.store, Key.parse(pictures)).rows) % 2 == 0
    for name, of_speech, of_pictures in (("known", some, even), ("held", ~some, ~even)):
        put(f"digits-clap/audio:{name}", speech, of_speech)
        put(f"digits-clip/image:{name}", pictures, of_pictures)
    fields = {"spaces": ["digits-clip", "digits-clap"], "via": "text", "train": ["phrases"],
              "memory": ["known"], "method": "ridge"}  # fmt: skip
    connect(folder / "store", read_config(fields), name="made")
    return folder / "store"


@pytest.mark.parametrize("asked", [0.05, 0.01])
def test_the_rate_of_false_positives_is_what_comes(halves: Path, asked: float) -> None:
    connection = load_connection(halves / "connections" / "made")
    sounds, pictures = (
        open_dataset(halves, Key.parse(place))
        for place in ("digits-clap/audio:held", "digits-clip/image:held")
    )
    names, labels = (
        [label[0] for label in one.table(["label"])["label"].to_pylist()]
        for one in (sounds, pictures)
    )
    found = connection.search(
        halves, sounds.embeddings(), [pictures.key], space="digits-clap", modality="audio",
        k=pictures.rows, false_positives=asked,
    )  # fmt: skip
    right = np.array([[hit.item["label"][0] == name for hit in own].count(True)
                      for own, name in zip(found, names, strict=True)])  # fmt: skip
    wrong = np.array(list(map(len, found))) - right
    related = np.array([labels.count(name) for name in names])
    assert wrong.sum() / (pictures.rows - related).sum() == pytest.approx(asked, rel=0.2)
    assert right.sum() / related.sum() > 0.95


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("sounds/7-99.wav", "there is no such file"),
        ("gone/", "there is no such file"),
        ("note.docx", "nothing reads a file of .docx"),
        ("empty", "the folder holds nothing to search for"),
        ("cut.wav", "what is searched for cannot be read"),
        ("long.txt", "a text of 1,000,000 letters is no query"),
        ("", "the text is empty"),
        (".", "the folder holds files of several modalities"),
    ],
)
def test_what_cannot_be_searched_for(
    search: Search, media: Path, monkeypatch: pytest.MonkeyPatch, query: str, what: str
) -> None:
    monkeypatch.chdir(media)
    with pytest.raises(CmcrError, match=what) as error:
        search(query, connection="digits")
    assert error.value.where
    assert error.value.fix


def test_what_cannot_be_searched_in(search: Search, tmp_path: Path) -> None:
    for wrong, what in (
        ("digits-clip/image:handwritten-test", "has no dataset"),
        ("digits-clip/image", "could be 3 datasets"),
    ):
        with pytest.raises(UsageError, match=what) as error:
            search("three", places=(wrong,))
        assert "did you mean digits-clip/image:" in str(error.value.fix)
        assert error.value.where
    with pytest.raises(UsageError, match="nothing says where to search"):
        search("three", places=())
    with pytest.raises(UsageError, match="no connection 'digit'") as unknown:
        search("three", connection="digit")
    assert "did you mean digits" in str(unknown.value.fix)
    with pytest.raises(MismatchError, match="between digits-clip and digits-clap"):
        search("three", connection="digits", places=("digits-ulip/pointcloud:shapes-test",))
    with pytest.raises(UsageError, match="is of its own space"):
        search("three", connection="digits", index=True)
    with pytest.raises(UsageError, match="holds no correction"):
        search("three", index=True, hubness="nnn")
    with pytest.raises(UsageError, match="there is no store"):
        cmcr.open_store(tmp_path / "none")


def test_a_damaged_file_is_left_out(search: Search, media: Path, tmp_path: Path) -> None:
    sounds = sorted((media / "sounds").iterdir())[:2]
    for number, path in enumerate([*sounds, media / "cut.wav"]):
        (tmp_path / f"{number}.wav").write_bytes(path.read_bytes())
    answered = search(tmp_path, connection="digits")
    assert [Path(found.name).name for found in answered.found] == ["0.wav", "1.wav"]
    assert [Path(one["uri"]).name for one in answered.failures] == ["2.wav"]
    for path in list(tmp_path.iterdir())[:3]:
        path.write_bytes(b"RIFF")
    with pytest.raises(SourceError, match="cannot be read"):
        search(tmp_path, connection="digits")


def test_another_encoder_is_refused(demo: Demo, halves: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    import cmcr.extract.digits.towers as towers

    weights = Path(towers.__file__).parent / "data" / "digits-clip.safetensors"
    state = load_file(weights)
    save_file({name: value + 1e-3 for name, value in state.items()}, tmp_path / "other.safetensors")
    other = cmcr.open_store(demo.store, checkpoints={"digits-clip": tmp_path / "other.safetensors"})
    with pytest.raises(MismatchError, match="another checkpoint") as error:
        other.search("three", places=[PICTURES])
    assert "--checkpoint digits-clip=FILE" in str(error.value.fix)
    imported = cmcr.open_store(halves)
    with pytest.raises(UsageError, match="were imported"):
        imported.search("three", places=["digits-clip/image:held"], space="digits-clip")


class Tags(HTMLParser):
    """How often each element occurs, and that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_on_the_command_line(
    demo: Demo, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sound = next((media / "sounds").iterdir())
    line = ["search", "--store", str(demo.store), "-k", "3", "--no-pipeline"]
    every = [*line, "--in", PICTURES, "--in", SPEECH, "--in", "digits-clip/text:phrases",
             str(sound), "<b>three</b>", "--html", "found.html", "--json"]  # fmt: skip
    done = CliRunner().invoke(app, every)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["connection"] == "digits"
    assert [one["query"][0] for one in document["queries"]] == [
        {"modality": "audio", "input": str(sound)},
        {"modality": "text", "input": "<b>three</b>"},
    ]
    first = document["queries"][0]["results"][0]
    assert {"dataset", "rank", "cosine", "score", "share", "false_positives", "id", "label", "uri",
            "text"} <= first.keys()  # fmt: skip
    page = Path("found.html").read_text(encoding="utf-8")
    seen = Tags(page).seen
    assert seen.count("li") == 2 + 6
    assert seen.count("audio") >= 1
    assert "&lt;b&gt;three&lt;/b&gt;" in page
    assert "<b>three" not in page

    asked = CliRunner().invoke(app, [*line, "--in", PICTURES, "-"], input="two\n\n five \n")
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.splitlines()[0] == "two"
    assert "five" in asked.stdout.splitlines()
    nothing = CliRunner().invoke(
        app, [*line, "--in", PICTURES, "--false-positives", "2e-6", "no digit at all"]
    )
    assert nothing.stdout.splitlines() == ["no digit at all: nothing found"]
    told = refuse(2, "search", "three", "--in", PICTURES, "--store", demo.store, "--modality", "X")
    assert "'X' cannot name a modality" in told


def test_in_projected_datasets_by_their_index(demo: Demo, media: Path, tmp_path: Path) -> None:
    import shutil

    from cmcr.connect import project_store

    store = tmp_path / "store"
    shutil.copytree(demo.store, store)
    connection = load_connection(store / "connections" / "digits")
    pictures = Key.parse(PICTURES)
    (done,) = project_store(store, connection, space="joint", datasets=[pictures])
    opened = cmcr.open_store(store)
    exact, fast = (
        opened.search(str(media / "sounds"), places=[place], k=3, index=index, connection="digits")
        for place, index in ((PICTURES, False), (str(done.dataset.key), True))
    )
    for one, other in zip(exact.found, fast.found, strict=True):
        cosines = [[hit.cosine for hit in found.hits] for found in (one, other)]
        np.testing.assert_allclose(*cosines, atol=2e-3)  # what is projected is float16
    with pytest.raises(MismatchError, match="projected by another connection"):
        opened.search("three", places=[str(done.dataset.key)], connection="digits-3d")
