"""Retrieval, its neighbours, indexes and projections with hubs corrected: `--hubness nnn`.

pytest tests/evaluate/test_corrected.py
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Key, import_embeddings, open_dataset
from cmcr.errors import UsageError
from cmcr.evaluate import Budget, IndexChoice, evaluate_index, evaluate_retrieval, write_report

SOUNDS, PHOTOS = Key("ear", "audio", "sounds"), Key("eye", "image", "photos")
CLASSES = 12


def write(store: Path, place: str, rows: int, seed: int) -> None:
    """Vectors around one direction a class, the same in both spaces, with a gap a modality."""
    key = Key.parse(place)
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % CLASSES
    centres = np.random.default_rng(1).normal(size=(CLASSES, 8))
    gap = np.random.default_rng(len(key.modality)).normal(size=8)
    folder = store / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    array = folder / f"{place.replace('/', '-').replace(':', '-')}.npy"
    np.save(array, centres[label] + 1.5 * rng.normal(size=(rows, 8)) + gap)
    columns = {"id": [str(row) for row in range(rows)], "label": [f"{one:02}" for one in label]}
    pq.write_table(pa.table(columns), array.with_suffix(".parquet"))
    import_embeddings(store, key, array, array.with_suffix(".parquet"), index=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds to search photos by; others of both kinds, which the connection was made from."""
    store = tmp_path_factory.mktemp("store")
    for space in ("eye", "ear"):
        write(store, f"{space}/text:texts", 60, seed=2)
    write(store, "eye/image:photos", 48, seed=3)
    write(store, "ear/audio:sounds", 36, seed=4)
    write(store, "eye/image:other", 70, seed=5)
    write(store, "ear/audio:other", 80, seed=6)
    write(store, "ear/audio:known", 30, seed=7)
    fields = {
        "spaces": ["eye", "ear"],
        "via": "text",
        "train": ["texts"],
        "method": "ridge",
        "ridge_strength": 0.01,
    }
    memory = ["eye/image:other", "ear/audio:other", "ear/audio:known"]
    connect(store, read_config(fields | {"memory": memory}), name="made")
    return store


def corrected(store: Path, query: np.ndarray, gallery: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """2 q·g - r(g), (queries, gallery), float64, from joint vectors."""
    r = np.sort(gallery @ bank.T, axis=1)[:, -5:].mean(axis=1)
    return np.asarray(2 * query @ gallery.T - r)


def joint(store: Path, *places: str) -> np.ndarray:
    connection = load_connection(store / "connections" / "made")
    blocks = []
    for key in map(Key.parse, places):
        rows = open_dataset(store, key).embeddings()
        blocks.append(connection.project(key.space, rows, key.modality).double().numpy())
    return np.concatenate(blocks)


def test_a_second_row_for_each_model_and_its_neighbours(store: Path) -> None:
    path = store / "connections" / "made"
    usual = evaluate_retrieval(store, path, SOUNDS, PHOTOS)
    done = evaluate_retrieval(store, path, SOUNDS, PHOTOS, hubness="nnn")
    assert all("hubness" not in row and "bank" not in row for row in usual.rows)
    assert [row for row in done.rows if "hubness" not in row] == usual.rows
    second = [row for row in done.rows if "hubness" in row]
    assert [row["model"] for row in second] == [
        row["model"] for row in usual.rows if row["model"] != "chance"
    ]
    assert {row["hubness"] for row in second} == {"nnn"}
    there, back = (row for row in second if row["model"] == "ridge")
    rows = {"ear/audio:other": 80, "ear/audio:known": 30}
    assert there["bank"] == {"k": 5, "rows": rows, "left_out": 0}
    assert back["bank"] == {"k": 5, "rows": {"eye/image:other": 70}, "left_out": 0}

    scores = corrected(store, joint(store, "ear/audio:sounds"), joint(store, "eye/image:photos"),
                       joint(store, "ear/audio:other", "ear/audio:known"))  # fmt: skip
    match = np.arange(36)[:, None] % CLASSES == np.arange(48)[None] % CLASSES
    first = scores.argmax(axis=1)
    assert there["metrics"]["hit_rate@1"] == pytest.approx(match[np.arange(36), first].mean())

    near = pq.read_table(done.folder / "neighbours.parquet").to_pandas()
    assert len(near) == 2 * 10 * (36 + 48)
    ours = near[(near["query"] == str(SOUNDS)) & (near["hubness"] == "nnn")]
    best = ours[ours["rank"] == 1].sort_values("query_id", key=lambda ids: ids.astype(int))
    assert best["gallery_id"].astype(int).tolist() == first.tolist()
    assert_allclose(best["score"], scores.max(axis=1), atol=1e-5)
    cosines = (joint(store, "ear/audio:sounds") * joint(store, "eye/image:photos")[first]).sum(1)
    assert_allclose(best["cosine"], cosines, atol=1e-5)
    before = pq.read_table(usual.folder / "neighbours.parquet").to_pandas()
    assert set(before["hubness"]) == {"none"}
    assert (before["score"] == before["cosine"]).all()


def test_both_evaluations_stay(store: Path) -> None:
    path = store / "connections" / "made"
    folders = set()
    for hubness in ("none", "nnn"):
        folders.add(evaluate_retrieval(store, path, SOUNDS, PHOTOS, hubness=hubness).folder)  # type: ignore[arg-type]
    for hubness in ("none", "nnn"):
        assert not evaluate_retrieval(store, path, SOUNDS, PHOTOS, hubness=hubness).fresh  # type: ignore[arg-type]
    assert len(folders) == 2
    page = write_report(
        store, store / "page.html", lambda modality, uris: dict.fromkeys(uris, OSError())
    )
    assert "ridge + nnn" in page.read_text(encoding="utf-8")


def test_the_bank_holds_no_query(store: Path) -> None:
    path = store / "connections" / "made"
    known = Key("ear", "audio", "known")
    done = evaluate_retrieval(
        store, path, known, PHOTOS, query_where={"label": ["01", "02"]}, hubness="nnn"
    )
    there = next(row for row in done.rows if row["model"] == "ridge" and "hubness" in row)
    assert there["bank"]["rows"] == {"ear/audio:other": 80, "ear/audio:known": 24}


def test_an_index_of_the_corrected_search_finds_what_it_finds(store: Path) -> None:
    path = store / "connections" / "made"
    choice = IndexChoice("IVF4,Flat", Budget())
    flat, cells = evaluate_index(store, path, SOUNDS, PHOTOS, choice, hubness="nnn").rows
    exact = evaluate_retrieval(store, path, SOUNDS, PHOTOS, hubness="nnn").rows
    ridge = next(row for row in exact if row["model"] == "ridge" and "hubness" in row)
    assert flat["metrics"]["hit_rate@1"] == ridge["metrics"]["hit_rate@1"]
    assert flat["hubness"] == cells["hubness"] == "nnn"
    assert cells["bank"] == ridge["bank"]
    assert cells["metrics"]["found@10"] >= 0.95
    assert "hubness" not in evaluate_index(store, path, SOUNDS, PHOTOS, choice).rows[0]


def test_on_the_command_line_and_projected(store: Path) -> None:
    line = ["evaluate", "retrieval", "--store", str(store), "--connection", "made",
            "--query", str(SOUNDS), "--gallery", str(PHOTOS)]  # fmt: skip
    said = CliRunner().invoke(app, [*line, "--hubness", "nnn"])
    assert said.exit_code == 0, said.output
    assert "ridge + nnn" in said.stdout
    rows = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)["results"]
    assert not any("hubness" in row for row in rows)

    line = ["project", "--store", str(store), "--connection", "made", "--space", "one",
            "--index", "none"]  # fmt: skip
    plain = CliRunner().invoke(app, [*line, "--dataset", str(PHOTOS)])
    assert plain.exit_code == 0, plain.output
    photos = open_dataset(store, Key("one", "image", "photos"))
    assert photos.manifest.columns == ()
    CliRunner().invoke(app, [*line, "--hubness", "nnn"])
    columns = ("nnn_eye_image", "nnn_eye_text", "nnn_ear_audio", "nnn_ear_text")
    photos = open_dataset(store, photos.key)
    assert set(photos.manifest.columns) == set(photos.manifest.numbers) == set(columns)
    expected = -corrected(store, np.zeros((1, joint(store, str(PHOTOS)).shape[1])),
                          joint(store, str(PHOTOS)),
                          joint(store, "ear/audio:other", "ear/audio:known"))[0]  # fmt: skip
    assert_allclose(photos.table(["nnn_ear_audio"])["nnn_ear_audio"], expected, atol=1e-5)
    texts = open_dataset(store, Key("one", "text", "ear-texts"))  # both spaces have the same texts
    assert set(texts.manifest.columns) == {"nnn_eye_image", "nnn_ear_audio"}


def test_a_connection_without_rows_of_that_kind_says_so(store: Path) -> None:
    fields = {
        "spaces": ["eye", "ear"],
        "via": "text",
        "train": ["texts"],
        "method": "ridge",
        "ridge_strength": 0.01,
    }
    bare = connect(store, read_config(fields), name="bare").path
    with pytest.raises(UsageError, match="no unpaired rows to correct hubs by") as error:
        evaluate_retrieval(store, bare, SOUNDS, PHOTOS, hubness="nnn")
    assert error.value.where
    assert "--hubness none" in str(error.value.fix)
