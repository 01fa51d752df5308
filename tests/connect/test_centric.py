"""Training rows aggregated from each modality in turn are what Ex-MCR says they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmcr.connect import ConnectConfig, connect, load_connection, read_config
from cmcr.connect.methods.problem import pose
from cmcr.connect.spaces import pseudo
from cmcr.connect.spaces.aggregation import aggregate
from cmcr.embeddings import Dataset
from cmcr.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS, DIMS, MEMORY = 60, {"hear": 5, "see": 7}, {"hear": ("audio", 30), "see": ("image", 40)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where `make_dataset` writes."""
    return tmp_path / "store"


@pytest.fixture
def rows(make_dataset: Callable[..., Dataset]) -> dict[str, np.ndarray]:
    """What is in the store, float64."""
    random = np.random.default_rng(0)
    made = {}
    for space, dim in DIMS.items():
        modality, count = MEMORY[space]
        for place, rows in ((f"{space}/text:captions", TEXTS), (f"{space}/{modality}:m", count)):
            ids = [str(row) for row in range(rows)]
            dataset = make_dataset(place, random.normal(size=(rows, dim)), id=ids)
            made[place.partition(":")[0]] = dataset.embeddings().astype(np.float64)
    return made


def config(**settings: Any) -> ConnectConfig:
    section = {"via": "text", "spaces": ["hear", "see"], "train": ["captions"], "memory": ["m"],
               "method": "ex-mcr", "memory_temperature": 0.1, "epochs": 1}  # fmt: skip
    return read_config(section | settings)


def weights(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """softmax of the cosines by 0.1, row by row."""
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys)]
    found = np.exp(units[0] @ units[1].T / 0.1)
    return found / found.sum(axis=1, keepdims=True)


def test_a_row_is_its_equations(store: Path, rows: dict[str, np.ndarray]) -> None:
    data = pose(store, config()).data
    seen = data.rows[0]
    assert len(seen) < TEXTS  # what is held out is aggregated from by nobody
    t1, t2 = rows["hear/text"][seen], rows["see/text"][seen]
    a, v = rows["hear/audio"], rows["see/image"]
    expected = [[], [], [], []]  # b¹, ã, b², c̃
    expected[0] += [t1]
    expected[1] += [weights(t1, a) @ a]
    expected[2] += [t2]
    expected[3] += [weights(t2, v) @ v]
    by_audio, by_image = weights(a, t1), weights(v, t2)
    expected[0] += [by_audio @ t1, by_image @ t1]
    expected[1] += [a, weights(by_image @ t1, a) @ a]
    expected[2] += [by_audio @ t2, by_image @ t2]
    expected[3] += [weights(by_audio @ t2, v) @ v, v]
    for found, blocks in zip(data.training(config()), expected, strict=True):
        np.testing.assert_allclose(found[:], np.concatenate(blocks), atol=2e-3)  # float16
    alone = data.training(config(centric=["second"]))
    for found, blocks in zip(alone, expected, strict=True):
        np.testing.assert_allclose(found[:], blocks[2], atol=2e-3)


def test_they_are_computed_once_and_what_decides_them_is_looked_at(
    store: Path, rows: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo, "PART_ROWS", 16)  # several parts of a memory
    first = [block[:] for block in pose(store, config()).data.training(config())]
    monkeypatch.setattr("cmcr.connect.spaces.pseudo.aggregate", None)
    monkeypatch.setattr("cmcr.connect.spaces.centric.aggregate", None)
    again = [block[:] for block in pose(store, config()).data.training(config())]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for changes in ({"seed": 1}, {"memory_temperature": 0.2}):  # other pairs are held out
        other_config = config(centric=["first"], **changes)
        with pytest.raises(TypeError):
            pose(store, other_config).data.training(other_config)


def test_a_modality_without_memory_is_skipped_and_told(
    store: Path, rows: dict[str, np.ndarray]
) -> None:
    whole = connect(store, config(validation=0), name="whole")
    assert whole.record.trained_on == {"bridge": 60, "first": 30, "second": 40}
    assert "`centric`" not in (whole.path / "README.md").read_text()
    half = connect(store, config(validation=0, memory=["hear/audio:m"]), name="half")
    assert half.record.trained_on == {"bridge": 60, "first": 30, "second": 0}
    told = "training rows: 60 of text, 30 of hear/audio, none of see, which has no memory"
    assert told in str(half)
    assert told in (half.path / "README.md").read_text()
    with pytest.raises(UsageError, match="there is no such memory"):
        connect(
            store, config(validation=0, memory=["hear/audio:m"], centric=["second"]), name="none"
        )


def test_what_was_made_before_there_was_a_choice_was_trained_on_the_bridge(
    store: Path, rows: dict[str, np.ndarray]
) -> None:
    assert config().centric == ("bridge", "first", "second")
    assert config(method="c-mcr").centric == ("bridge",)
    made = connect(store, config(validation=0, centric=["bridge"]), name="a")
    card = (made.path / "README.md").read_text()
    assert "`ex-mcr` does not usually have" in card
    assert "- `centric`: ('bridge',)" in card
    path = made.path / "config.json"
    content = json.loads(path.read_text())
    assert "trained_on" not in content
    for key in ("config", "requested"):
        del content[key]["centric"]
    path.write_text(json.dumps(content))
    assert load_connection(made.path).record == made.record
    assert not connect(store, config(validation=0, centric=["bridge"]), name="a").fresh
    with pytest.raises(UsageError, match="centric: bridge → bridge,first,second"):
        connect(store, config(validation=0), name="a")


def test_columns_beside_the_keys_are_weighted_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(n, d, generator=generator)
                             for n, d in ((4, 3), (9, 3), (9, 2)))  # fmt: skip
    found = aggregate(queries, torch.cat([keys, values], dim=1), 0.1, besides=2, chunk_rows=4)
    shares = weights(queries.double().numpy(), keys.double().numpy())
    both = np.concatenate([keys.numpy(), values.numpy()], axis=1)
    np.testing.assert_allclose(found.numpy(), shares @ both, rtol=1e-4, atol=1e-5)
