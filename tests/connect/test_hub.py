"""Connections shared: read at the top level, pushed to and pulled from the Hub, with their card.

pytest tests/connect/test_hub.py
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi

import cmcr
from cmcr.connect import Connection, connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import StoreError, UsageError
from cmcr.evaluate import evaluate_retrieval
from cmcr.extract import extract, open_source

MakeDataset = Callable[..., Dataset]

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def folder(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """A connection of two small spaces, whose store has labelled pictures and sounds."""
    random = np.random.default_rng(0)
    ids = [str(row) for row in range(20)]
    for place in ("see/text:captions", "hear/text:captions"):
        make_dataset(place, random.standard_normal((20, 6)), id=ids)
    for place in ("see/image:pictures", "hear/audio:sounds"):
        make_dataset(place, random.standard_normal((6, 6)), label=["cat", "dog"] * 3)
    settings = {"memory": ["pictures", "sounds"], "method": "ridge", "ridge_strength": 0.01}
    section = {"via": "text", "spaces": ["see", "hear"], "train": ["captions"]}
    config = read_config(section | settings)
    return connect(tmp_path / "store", config, name="a").path


def same(first: Connection, second: Connection) -> bool:
    x = np.random.default_rng(1).standard_normal((3, 6))
    return all(
        torch.equal(first.project(space, x), second.project(space, x)) for space in ("see", "hear")
    )


def test_the_top_level_reads_connections_and_stays_light(folder: Path) -> None:
    assert same(cmcr.load_connection(folder), load_connection(str(folder)))
    script = (
        "import sys, cmcr\n"
        "assert 'load_connection' in cmcr.__all__\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & sys.modules.keys()\n"
        "try: cmcr.unload\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "module 'cmcr' has no attribute 'unload'\n"


def test_saved_and_read_again(folder: Path, tmp_path: Path) -> None:
    connection = load_connection(folder)
    connection.save_pretrained(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    again = load_connection(tmp_path / "copy")
    assert again.record == connection.record
    assert same(again, connection)
    with pytest.raises(UsageError, match="read by load_connection"):
        Connection.from_pretrained(tmp_path / "copy")


def test_what_goes_up_is_what_was_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def upload(_: HfApi, *, folder_path: Path, **options: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "sent")
        sent.update(options)
        return "done"

    monkeypatch.setattr(
        HfApi, "create_repo", lambda _, repo_id, **__: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert load_connection(folder).push_to_hub("me/see-hear") == "done"
    assert sent["repo_id"] == "me/see-hear"
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "sent" / name).read_bytes() == (folder / name).read_bytes()


def test_a_connection_of_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(folder)

    monkeypatch.setattr("cmcr.connect.connection.record.snapshot_download", snapshot)
    assert same(load_connection("me/see-hear"), load_connection(folder))
    assert asked == [("me/see-hear", {"allow_patterns": ["*.json", "*.safetensors"]})]
    with pytest.raises(StoreError, match="no finished connection"):
        load_connection(Path("me/see-hear"))  # a Path is a folder, never a repository
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["nobody/nothing", "connections/a", "not a/name"])
def test_what_cannot_be_fetched_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="not a folder here, and cannot be fetched") as caught:
        load_connection(name)  # the tests are offline
    assert "OWNER/NAME" in str(caught.value.fix)


def test_a_connection_evaluates_without_the_data_it_was_made_from(
    folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    places = (store, folder, Key("hear", "audio", "sounds"), Key("see", "image", "pictures"))
    with_data = [row["model"] for row in evaluate_retrieval(*places).rows]
    assert {"ridge", "procrustes-centred"} <= set(with_data)
    shutil.rmtree(Key("see", "text", "captions").folder(store))
    done = evaluate_retrieval(*places)
    assert [row["model"] for row in done.rows] == ["chance", "identity", "ridge"] * 2


# The card


def test_the_card_has_a_header_that_the_hub_reads(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "cmcr",
        "tags": ["c-mcr", "multimodal", "see", "hear"],
    }
    assert "# see and hear, connected via text" in text
    assert 'cmcr.load_connection("PATH or OWNER/NAME")' in text
    assert "`see/image:pictures`" in text
    assert "- `ridge_strength`: 0.01" in text
    assert "- see: not recorded; see its publisher" in text


def test_the_licence_goes_from_the_encoder_to_the_card(tmp_path: Path, encoder: Any) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(f"line {row}" for row in range(8)))
    source = open_source("text", str(tmp_path / "lines.txt"))
    store = tmp_path / "store"

    def embed(space: str, licence: str | None) -> Dataset:
        extract(
            store, encoder, source, "lines", space=space, licence=licence, workers=0, index=None
        )
        return open_dataset(store, Key(space, "text", "lines"))

    free, plain = embed("free", "CC0-1.0"), embed("plain", None)
    assert free.manifest.encoder["licence"] == "CC0-1.0"
    assert free.encoder_identity == plain.encoder_identity
    assert embed("free", "MIT").fingerprint == free.fingerprint  # no reason to make it again
    config = read_config(
        {"via": "text", "spaces": ["free", "plain"], "train": ["lines"], "method": "ridge"}
    )
    made = connect(store, config, name="a")
    assert made.record.spaces[0].encoder["licence"] == "CC0-1.0"
    card = (made.path / "README.md").read_text()
    assert card.count("CC0-1.0") == 1
    assert "- free: CC0-1.0\n- plain: not recorded" in card
