"""`cmcr rename`, `remove`, `merge`, `info --sizes`: what uses what, and what goes on working."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell import refuse, succeed

from cmcr.connect import connect, load_connection, read_config, rename_connection
from cmcr.embeddings import Dataset, Key, list_datasets, open_dataset
from cmcr.files import write_json

pytestmark = pytest.mark.usefixtures("one_thread")


def told(*words: str | Path) -> Any:
    return json.loads(succeed(*words, "--json").stdout)


@pytest.fixture
def store(own: Callable[..., Path]) -> Path:
    """A store with a connection, and a table that was measured with it."""
    place = own("S")
    config = read_config({"via": "text", "spaces": ["clip", "clap"], "train": ["captions"],
                          "memory": ["photos", "sounds"], "method": "procrustes"})  # fmt: skip
    connect(place, config, name="mine")
    table = place / "results/mine/clap_audio_sounds--clip_image_photos/retrieval.json"
    write_json(table, {"results": []})
    return place


def test_a_renamed_memory_leaves_its_connection_as_it_is(store: Path) -> None:
    before = (store / "connections/mine/config.json").read_bytes()

    found = told("rename", "clip/image:photos", "pictures", "--store", store)

    assert found["new"] == "clip/image:pictures"
    assert found["uses"][0] == "connection mine was made from it"
    assert found["uses"][1].startswith("results mine/")
    assert (store / "connections/mine/config.json").read_bytes() == before
    pictures = Key("clip", "image", "pictures")
    connection = load_connection(store / "connections/mine")
    rows = open_dataset(store, Key("clap", "audio", "sounds")).embeddings()[:2]
    asked: dict[str, Any] = {"space": "clap", "modality": "audio", "k": 3}
    assert all(len(hits) == 3 for hits in connection.search(store, rows, [pictures], **asked))
    words = ("evaluate", "retrieval", "--hubness", "nnn", "--store", store, "--no-pipeline",
             "--query", "clip/image:pictures", "--gallery", "clap/audio:sounds")  # fmt: skip
    assert "clip/image:photos is not in the store under that name" in refuse(2, *words)
    assert "no dataset clip/image:typo" in refuse(
        2, "rename", "clip/image:typo", "pictures", "--store", store
    )


def test_a_connection_takes_its_results_along_and_is_removed_with_them(store: Path) -> None:
    succeed("rename", "mine", "yours", "--store", store)

    assert "no connection mine" in refuse(2, "rename", "mine", "yours", "--store", store)
    assert load_connection(store / "connections/yours").record.pairs == 48
    assert [path.name for path in (store / "results").iterdir()] == ["yours"]
    assert "cannot name" in refuse(2, "rename", "yours", "../x", "--store", store)

    succeed("remove", "yours", "--yes", "--store", store)

    assert not list((store / "connections").iterdir())
    assert not list((store / "results").iterdir())


def test_results_that_another_connection_left_are_given_to_none(store: Path) -> None:
    (store / "results/mine").rename(store / "results/gone")

    assert "no connection gone" in refuse(2, "rename", "gone", "mine", "--store", store)

    assert [path.name for path in (store / "results").iterdir()] == ["gone"]


def test_a_renaming_that_was_killed_is_ended_by_the_same_command(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        if "results" in source.parts:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            rename_connection(store, "mine", "yours")
    assert (store / "results/mine").is_dir()

    assert rename_connection(store, "mine", "yours")

    assert [path.name for path in (store / "results").iterdir()] == ["yours"]
    assert not rename_connection(store, "yours", "yours")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_names_no_connection_removes_and_renames_nothing(store: Path, name: str) -> None:
    before = sorted(store.rglob("*"))

    assert "cannot name" in refuse(2, "remove", name, "--yes", "--store", store)
    assert "cannot name" in refuse(2, "rename", name, "yours", "--store", store)

    assert sorted(store.rglob("*")) == before


def test_removing_says_what_was_made_from_it_and_asks(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("remove", "clip/image:photos", "--store", store)
    assert "nobody can be asked" in refuse(2, *words)
    assert len(list_datasets(store)) == 4

    found = told(*words, "--yes")

    assert found["uses"]["clip/image:photos"][0] == "connection mine was made from it"
    assert len(list_datasets(store)) == 3
    assert "no dataset" in refuse(2, *words, "--yes")
    assert "no connection" in refuse(2, "remove", "other", "--yes", "--store", store)


def test_one_wrong_name_keeps_the_others_too(store: Path) -> None:
    words = ("remove", "clip/image:photos", "typo", "--store", store)

    assert "no connection typo" in refuse(2, *words, "--yes")
    assert "no connection typo" in refuse(2, *words)  # and asks nothing first

    assert len(list_datasets(store)) == 4


def test_renaming_tells_of_a_use_whose_name_begins_as_the_new_one(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    for name in ("x", "y"):
        make_dataset(f"clip/image:{name}", np.eye(2, 4, dtype=np.float32), id=[f"{name}0", name])
    place = tmp_path / "store"
    succeed("merge", "clip/image:x", "clip/image:y", "--into", "ab", "--store", place)

    found = told("rename", "clip/image:x", "a", "--store", place)

    assert found["uses"] == ["clip/image:ab was merged from it"]


def test_sizes_are_listed_and_merged_rows_are_no_copies(
    store: Path, make_dataset: Callable[..., Dataset]
) -> None:
    array = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    columns = {"id": [f"more-{row}" for row in range(5)], "label": ["x"] * 5}
    make_dataset("clip/image:more", array, store, **columns)

    merged = told("merge", "clip/image:photos", "clip/image:more", "--into", "all",
                  "--store", store)  # fmt: skip

    assert (merged["dataset"], merged["rows"], merged["linked"]) == ("clip/image:all", 53, 2)
    sizes = {(line["kind"], line["name"]): line for line in told("info", store, "--sizes")["sizes"]}
    assert {kind for kind, _ in sizes} >= {"dataset", "connection", "results"}
    assert sizes["dataset", "clip/image:more"]["shared"] > 0
    assert "bytes in all" in succeed("info", store, "--sizes").stdout
    succeed("verify", store)
