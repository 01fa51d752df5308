"""A new model over an old index: mapped, measured on what was held out, and searched through."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell import refuse, succeed

from cmcr.connect import load_connection, migrate
from cmcr.connect.spaces.datasets import find_bridge
from cmcr.embeddings import Dataset, Key, build_index, open_dataset
from cmcr.embeddings.upkeep.merge import merge_datasets
from cmcr.embeddings.upkeep.rename import rename_dataset
from cmcr.search.models import Models

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, KINDS = 160, 20


@pytest.fixture
def store(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Path:
    """Photos by an old model and by a new one, which sees the same turned, in more dimensions."""
    draw = np.random.default_rng(0)
    kinds = np.arange(ROWS) % KINDS
    seen = draw.normal(size=(KINDS, 12))[kinds] + 0.2 * draw.normal(size=(ROWS, 12))
    turn = np.linalg.qr(draw.normal(size=(16, 16)))[0][:12]
    for space, rows in (("old", seen), ("new", seen @ turn + 0.05 * draw.normal(size=(ROWS, 16)))):
        made = make_dataset(
            f"{space}/image:photos",
            rows.astype(np.float32),
            id=[f"photo-{row}" for row in range(ROWS)],
            label=[str(kind) for kind in kinds],
        )
        build_index(made)
    return tmp_path / "store"


def test_a_mapping_keeps_what_re_embedding_finds_and_the_old_space(store: Path) -> None:
    done = migrate(store, "old", "new", "image", name="up")

    figures = {figure.way: figure for figure in done.figures}
    assert done.held == 40
    assert done.labelled
    low, high = done.mapped.interval or (0, 0)
    assert low <= (done.mapped.kept or 0) <= high
    assert done.mapped.kept == pytest.approx(1, abs=0.05)
    assert figures["re-embedding"].neighbours == 1
    assert figures["no mapping"].recall < 0.6 * done.mapped.recall  # a random order
    assert figures["old model"].neighbours >= done.mapped.neighbours - 0.1
    assert set(done.tried) == {"ex-cca", "procrustes", "ridge", "kernel"}
    connection = load_connection(done.connected.path)
    old = open_dataset(store, Key("old", "image", "photos")).embeddings().astype(np.float32)
    assert connection.keeps("old")
    assert not connection.keeps("new")
    np.testing.assert_allclose(connection.project("old", old, "image"), old, atol=1e-3)
    assert not migrate(store, "old", "new", "image", name="up").connected.fresh


def test_where_no_held_out_items_match_neighbours_are_counted(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    seen = draw.normal(size=(200, 12)).astype(np.float32)
    columns = {"id": [str(row) for row in range(200)]}
    columns["group"] = [f"g{max(row, 1)}" for row in range(200)]  # two rows share one
    for space in ("old", "new"):
        make_dataset(f"{space}/image:photos", seen, **columns)
    done = migrate(tmp_path / "store", "old", "new", "image", name="up", method="procrustes")
    assert not done.labelled
    assert "by what the new model finds" in str(done)
    assert done.mapped.kept == pytest.approx(1, abs=0.01)


def test_the_old_index_answers_queries_of_the_new_model(store: Path) -> None:
    done = migrate(store, "old", "new", "image", name="up", method="procrustes")
    connection = load_connection(done.connected.path)
    rows = open_dataset(store, Key("new", "image", "photos")).embeddings()[:20]

    searched = connection.search(
        store, rows, ["old/image:photos"], space="new", modality="image", k=1, index=True
    )

    found = [hits[0].item["label"][0] for hits in searched]
    assert np.mean([kind == str(row) for row, kind in enumerate(found)]) >= 0.9


def test_without_labels_what_the_new_model_finds_is_the_measure(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(80, 6)).astype(np.float32)
    for space in ("old", "new"):
        turn = np.linalg.qr(draw.normal(size=(6, 6)))[0]
        make_dataset(f"{space}/image:photos", (rows @ turn).astype(np.float32))

    done = migrate(tmp_path / "store", "old", "new", "image", name="up", method="procrustes")

    assert not done.labelled
    assert done.mapped.kept == pytest.approx(done.mapped.neighbours)
    assert done.mapped.kept > 0.97
    unmapped = next(figure for figure in done.figures if figure.way == "no mapping")
    assert (unmapped.kept or 0) < 0.8


def test_a_search_takes_the_connection_that_has_the_space_that_is_named(
    store: Path, monkeypatch: pytest.MonkeyPatch, make_dataset: Callable[..., Dataset]
) -> None:
    migrate(store, "old", "new", "image", name="up", method="procrustes")
    array = np.random.default_rng(1).normal(size=(ROWS, 12)).astype(np.float32)
    make_dataset("third/image:photos", array, id=[f"photo-{row}" for row in range(ROWS)])
    migrate(store, "old", "third", "image", name="third-in-old", method="procrustes")
    monkeypatch.setattr(Models, "_takes", lambda *_: True)  # imported rows have no encoder
    keys = [Key("old", "image", "photos")]

    for space, folder in (("new", "up"), ("third", "third-in-old")):
        found = Models(store).connection(None, keys, ["image"], space)
        assert found == store / "connections" / folder
    assert Models(store).connection(None, keys, ["image"], None) is None  # its own space does


def test_the_command_says_what_is_kept(store: Path) -> None:
    words = ("migrate", "--from", "old", "--to", "new", "--via", "image", "--store", store)
    told = json.loads(succeed(*words, "--json").stdout)
    line: dict[str, Any] = next(one for one in told["figures"] if one["search"] == "mapped")
    assert line["from"] <= line["kept"] <= line["to"]
    assert told["connection"].endswith("new-in-old")
    shown = succeed(*words)
    assert "of re-embedding's recall@10 on 40 held-out items" in shown.stderr
    assert "neighbours@10" in shown.stdout

    assert "keep the old space" in refuse(2, *words, "--method", "cca")
    assert "no space older" in refuse(2, *words[:2], "older", *words[3:])
    assert "nothing connects" in refuse(2, *words[:6], "text", *words[7:])


def test_merged_rows_are_a_pair_once(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    draw = np.random.default_rng(0)
    store = tmp_path / "store"
    for space in ("old", "new"):
        for name in "abc":
            ids = [f"{name}{row}" for row in range(4)]
            make_dataset(f"{space}/image:{name}", draw.normal(size=(4, 8)), id=ids)
        parts = [Key(space, "image", name) for name in "ab"]
        merge_datasets(store, parts, Key(space, "image", "all"))
    rename_dataset(store, Key("old", "image", "b"), Key("old", "image", "x"))
    rename_dataset(store, Key("new", "image", "b"), Key("new", "image", "x"))

    assert find_bridge(store, "new", ["old"]).train == ("all", "c")
    assert find_bridge(store, "new", ["old"], train=["a", "x"]).train == ("a", "x")


def test_models_that_bend_what_they_see_are_mapped_by_a_kernel(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    seen = np.repeat(draw.normal(size=(300, 3)), 2, axis=0)
    for space in ("old", "new"):
        layers = draw.normal(size=(3, 64)), draw.normal(size=(64, 24)) / 8
        rows = np.sin(2 * seen @ layers[0]) @ layers[1] + 0.1 * draw.normal(size=(600, 24))
        make_dataset(f"{space}/image:photos", rows, id=[f"p{row}" for row in range(600)],
                     label=[str(row // 2) for row in range(600)])  # fmt: skip
    store = tmp_path / "store"
    done = migrate(store, "old", "new", "image", name="up")
    assert done.method == "kernel"
    assert done.tried["kernel"] > done.tried["ex-cca"] + 0.05
    connection = load_connection(done.connected.path)
    assert connection.keeps("old")
    fresh = open_dataset(store, Key("new", "image", "photos")).embeddings().astype(np.float32)
    old = open_dataset(store, Key("old", "image", "photos")).embeddings().astype(np.float32)
    found = connection.project("new", fresh, "image").numpy() @ old.T
    assert np.mean(found.argmax(axis=1) // 2 == np.arange(600) // 2) > 0.9
