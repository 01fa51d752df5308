"""Stores and files that somebody damaged: what is told, and what still works.

pytest tests/faults/test_damage.py
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shell import cmcr, refuse, succeed

from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import (
    Dataset,
    Key,
    build_index,
    import_embeddings,
    open_dataset,
    open_index,
    verify_store,
)
from cmcr.errors import SourceError, StoreError
from cmcr.evaluate import evaluate_retrieval
from cmcr.evaluate.results import read_results

MakeDataset = Callable[..., Dataset]
AB = {"spaces": ["a", "b"], "via": "text", "train": ["t"]}
TRAINED = AB | {"memory": ["m"], "epochs": 2, "projector": "linear", "method": "c-mcr"}
PAIR = (Key("a", "image", "m"), Key("b", "audio", "m"))
IDS = [str(n) for n in range(60)]


def normal(seed: int, rows: int = 60, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two spaces with texts and a memory each, a connection `c` of both, and its results."""
    arrays = tmp_path_factory.mktemp("arrays")
    store = arrays / "store"
    pq.write_table(pa.table({"id": IDS}), arrays / "texts.parquet")
    pq.write_table(pa.table({"id": IDS, "group": IDS}), arrays / "memory.parquet")
    for space, modality, seed in (("a", "image", 1), ("b", "audio", 2)):
        np.save(arrays / "t.npy", normal(0) + seed)
        np.save(arrays / "m.npy", normal(seed))
        texts, memory = Key(space, "text", "t"), Key(space, modality, "m")  # type: ignore[arg-type]
        import_embeddings(store, texts, arrays / "t.npy", arrays / "texts.parquet", index=None)
        import_embeddings(store, memory, arrays / "m.npy", arrays / "memory.parquet", index=None)
    connect(store, read_config(TRAINED), name="c")
    evaluate_retrieval(store, store / "connections" / "c", *PAIR)
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def manifest_of(store: Path, place: str) -> Path:
    space, rest = place.split("/")
    modality, dataset = rest.split(":")
    return Key(space, modality, dataset).folder(store) / "manifest.json"  # type: ignore[arg-type]


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.update(rows=99_999_999), "it counts 99,999,999 rows, its parts have 60"),
        (lambda it: (it.update(rows=61), it["parts"][0].update(rows=61)), "is not of that part"),
        (lambda it: it["parts"][0].update(offset=8), "is not of that part"),
        (lambda it: it["parts"][0].update(offset=-8), "greater than or equal to 0"),
        (lambda it: it["parts"][0].update(name="../../x.parquet"), "should match pattern"),
        (lambda it: it.update(dim=0), "greater than 0"),
        (lambda it: it.update(dim=7), "built with other settings"),
        (lambda it: it.update(parts={}), "should be a valid array"),
    ],
)
def test_a_manifest_that_is_wrong_is_told_and_the_rest_is_checked(
    change: Callable[[dict[str, Any]], None], message: str, store: Path
) -> None:
    changed(manifest_of(store, "a/image:m"), change)
    problems = {str(one.key): str(one.problem) for one in verify_store(store) if one.problem}
    assert list(problems) == ["a/image:m"]
    assert message in problems["a/image:m"]


def test_every_damage_of_a_dataset_is_told(store: Path) -> None:
    folder = manifest_of(store, "a/image:m").parent
    part = folder / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    (folder / "failures.parquet").write_bytes(b"")
    (folder / "index.faiss").touch()
    told = [str(one.problem) for one in verify_store(store) if one.problem]
    assert len(told) == 3
    assert "not the one that was written" in told[0]
    assert "list of failures cannot be read" in told[1]
    assert "without its description" in told[2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", b"{}", "without its description"),
        ("index.json", b"[" * 100_000, "without its description"),
        ("index.json", None, "without its description"),
        ("index.faiss", b"cut", "not the one that was built"),
        ("index.faiss", None, "it cannot be read"),
    ],
)
def test_an_index_that_is_damaged_is_told_and_built_again(
    name: str, content: bytes | None, message: str, store: Path
) -> None:
    key = Key("a", "image", "m")
    dataset = open_dataset(store, key)
    build_index(dataset)
    path = dataset.folder / name
    if content is None:
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert message in refuse(1, "verify", store)
    with pytest.raises(StoreError) as error:
        open_index(dataset)
    assert error.value.fix
    if name == "index.json":
        build_index(dataset)
        assert open_index(dataset).ntotal == 60


CONNECTIONS: list[tuple[str, Any]] = [
    ("links of numbers", {"format": 2, "links": [1], "joints": ["x"]}),
    ("links elsewhere", {"format": 2, "links": ["../c", "../c"], "joints": ["x"]}),
    ("a link without a joint", {"format": 2, "links": ["link-1", "link-2"], "joints": ["x"]}),
    ("a list", []),
]


@pytest.mark.parametrize(("what", "content"), CONNECTIONS)
def test_a_connection_that_is_damaged_hides_no_other(what: str, content: Any, store: Path) -> None:
    damaged = store / "connections" / "a-damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="record cannot be read"):
        load_connection(damaged)
    assert "a-damaged" in succeed("info", store).stdout
    assert "ok       connection c" in refuse(1, "verify", store)


@pytest.mark.parametrize("how", ["one space", "nested", "pipe", "folder", "not UTF-8", "twice"])
def test_a_record_that_is_damaged_is_told(how: str, store: Path) -> None:
    config = store / "connections" / "c" / "config.json"
    shutil.copytree(config.parent, store / "connections" / "d")
    if how == "one space":
        changed(config, lambda it: it["spaces"].pop())
    elif how == "twice":
        changed(config, lambda it: it["spaces"].append(it["spaces"][0]))
    elif how == "nested":
        config.write_text("[" * 100_000)
    elif how == "not UTF-8":
        config.write_bytes(b"\xff\xfe")
    else:
        config.unlink()
        config.mkdir() if how == "folder" else os.mkfifo(config)
    with pytest.raises(StoreError):
        load_connection(config.parent)
    shown = [line.split()[:1] for line in succeed("info", store).stdout.splitlines()]
    assert ["c"] in shown
    assert ["d"] in shown
    succeed("report", store)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["results"].append(7),
        lambda it: it["results"][0].update(metrics=[1]),
        lambda it: it["results"][0]["metrics"].update(mAP="high"),
        lambda it: it["results"][0].update(model=3),
        lambda it: it["results"][0].update(intervals={"mAP": [1]}),
        lambda it: it.update(inputs=[]),
        lambda it: it.update(results={}),
    ],
)
def test_results_of_another_shape_are_told(
    change: Callable[[dict[str, Any]], None], store: Path
) -> None:
    (file,) = (store / "results").rglob("retrieval.json")
    changed(file, change)
    with pytest.raises(StoreError, match="results cannot be read"):
        read_results(file)
    succeed("report", store)


def test_results_that_are_damaged_are_made_again(store: Path) -> None:
    (file,) = (store / "results").rglob("retrieval.json")
    before = file.read_bytes()
    changed(file, lambda it: it.update(results={}))
    evaluate_retrieval(store, store / "connections" / "c", *PAIR)
    assert file.read_bytes() == before


def test_a_label_is_no_mathematics_and_numbers_come_before_pictures(
    tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(n) for n in range(60)]
    label = [[r"$\bogus{$"] if n % 2 else ["[/red]\x1b[31m"] for n in range(60)]
    for space, modality, seed in (("a", "image", 1), ("b", "audio", 2)):
        make_dataset(f"{space}/text:t", normal(0) + seed, id=ids)
        make_dataset(f"{space}/{modality}:m", normal(seed), id=ids, label=label)
    store = tmp_path / "store"
    connect(store, read_config(AB | {"method": "procrustes", "memory": ["m"]}), name="c")
    flags = ["--store", store, "--query", "a/image:m", "--gallery", "b/audio:m"]
    assert "\x1b" not in succeed("evaluate", "retrieval", *flags, "--connection", "c").stdout
    found = list((store / "results").rglob("joint-space.png"))
    assert len(found) == 1
    folder = found[0].parent
    shutil.rmtree(folder)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(RuntimeError, match="no fonts"):
        evaluate_retrieval(
            store, store / "connections" / "c", Key("a", "image", "m"), Key("b", "audio", "m")
        )
    assert read_results(folder / "retrieval.json")["results"]


@pytest.mark.parametrize("how", ["reversed", "cut"])
def test_pseudo_partners_that_were_altered_are_made_again(
    how: str, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_config(TRAINED)
    expected = (store / "connections" / "c" / "model.safetensors").read_bytes()
    parts = list((store / "pseudo").rglob("*.npy"))
    assert parts
    for part in parts:
        if how == "reversed":
            np.save(part, np.load(part)[::-1])
        else:
            part.write_bytes(part.read_bytes()[:-100])
    connect(store, config, name="again")
    assert (store / "connections" / "again" / "model.safetensors").read_bytes() == expected
    assert "is not as it was written" in caplog.text


def test_a_checkpoint_of_another_program_is_told(store: Path) -> None:
    config = read_config(TRAINED)
    folder = store / "connections" / "new"
    folder.mkdir()
    torch.save({"weights": torch.zeros(3)}, folder / "checkpoint.pt")
    with pytest.raises(StoreError, match="not one of cmcr's") as error:
        connect(store, config, name="new")
    assert "delete it" in (error.value.fix or "")


@pytest.mark.parametrize("how", ["folder", "not UTF-8"])
def test_recipes_that_cannot_be_read(how: str, tmp_path: Path) -> None:
    place = tmp_path / "pipelines.yaml"
    place.mkdir() if how == "folder" else place.write_bytes(b"\xff\xfe\xff")
    assert "recipes cannot be read" in refuse(2, "pipelines", cwd=tmp_path)


def test_a_description_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    folder = Key("digits-clip", "text", "lines").folder(tmp_path / "S")
    folder.mkdir(parents=True)
    (folder / ".description.json").touch()
    said = refuse(
        1, "extract", "--encoder", "digits-clip", "--source", "text=lines.txt",
        "--store", "S", "--workers", "0", cwd=tmp_path,
    )  # fmt: skip
    assert "cannot be read" in said
    assert "fix:" in said


def cut_npz(path: Path) -> None:
    np.savez(path, embeddings=normal(0))
    path.write_bytes(path.read_bytes()[:-40])


def altered_npz(path: Path) -> None:
    np.savez_compressed(path, embeddings=np.zeros((60, 6), np.float32))
    content = bytearray(path.read_bytes())
    content[70:80] = b"\xff" * 10
    path.write_bytes(content)


def no_npy_in_it(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("embeddings.npy", b"nothing")


def texts(path: Path) -> None:
    pq.write_table(pa.table({"embedding": ["one", "two"]}), path)


@pytest.mark.parametrize(
    ("name", "make"),
    [("a.npz", cut_npz), ("b.npz", altered_npz), ("c.npz", no_npy_in_it), ("d.parquet", texts)],
)
def test_arrays_that_are_none(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(SourceError):
        import_embeddings(tmp_path / "S", Key("s", "text", "t"), tmp_path / name)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", normal(0, rows=2))
    (tmp_path / "m.csv").write_text("id,label,label\na,x,y\nb,x,y\n")
    with pytest.raises(SourceError, match="the column label more than once"):
        import_embeddings(
            tmp_path / "S", Key("s", "text", "t"), tmp_path / "a.npy", tmp_path / "m.csv"
        )


def test_a_pipe_is_no_tar_and_no_weights(store: Path) -> None:
    model = store / "connections" / "c" / "model.safetensors"
    model.unlink()
    os.mkfifo(model)
    assert "the weights are not the ones" in refuse(1, "verify", store)
    os.mkfifo(store / "x.tar")
    done = cmcr("extract", "--encoder", "digits-clip", "--source", f"image={store / 'x.tar'}",
                "--store", store)  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_name_with_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text(
        'default: "[/red]\\u001b[31m"\n'
        'pipelines: {"[/red]\\u001b[31m": {description: "[/x] \\u001b[5m", store: S}}\n'
    )
    done = cmcr("pipelines", cwd=tmp_path)
    assert "\x1b" not in done.stdout
    assert "[/red]" in done.stdout
    assert "Traceback" not in done.stderr
