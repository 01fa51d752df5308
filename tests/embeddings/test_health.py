"""Embeddings that cannot work are named, and those that can are not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from seeded import SMALL_CLIP, clip_checkpoint

from cmcr.connect import connect, read_config
from cmcr.embeddings import Dataset, Key, Modality
from cmcr.embeddings.verify import measure
from cmcr.extract import extract, load_encoder, open_source

Make = Callable[..., Dataset]


def cone(rows: int, cosine: float, dim: int = 64, seed: int = 0) -> np.ndarray:
    """Vectors two of which have this cosine in the mean."""
    own = np.random.default_rng(seed).standard_normal((rows, dim))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    common = np.zeros(dim)
    common[0] = 1
    array = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (cone(300, 0.999), r"nearly all alike \(mean cosine 0\.99"),
        (cone(10, 0.999), "nearly all alike"),
        (np.repeat(cone(5, 0.2), 60, axis=0), r"repeat \(98% of the inputs"),
        (cone(2, 0.5)[np.zeros(300, int)], "nearly all alike"),
        (np.linspace(*cone(2, 0.3, dim=512), 300), "lie on a line"),  # type: ignore[call-overload]
        (cone(300, 0.95), None),
        (cone(300, 0.7), None),
        (cone(5_000, 0.0), None),
        (cone(300, 0.0, dim=2), None),
        (cone(9, 0.9999), None),
        (np.repeat(cone(60, 0.5), 5, axis=0)[:70], None),
        (np.concatenate([cone(150, 0.98), -cone(150, 0.98, seed=1)]), None),
    ],
    ids=["collapsed", "ten collapsed", "five vectors", "one vector", "a line", "narrow", "clip",
         "wide", "plane", "nine rows", "repeats", "two classes"],
)  # fmt: skip
def test_spaces_that_cannot_work_are_named_and_others_are_not(
    make_dataset: Make, array: np.ndarray, problem: str | None
) -> None:
    health = measure(make_dataset("a/image:x", array / np.linalg.norm(array, axis=1)[:, None]))
    assert health is not None
    assert health.rows == min(len(array), 1024)
    if problem is None:
        assert health.problem is None
    else:
        assert health.problem is not None
        assert re.search(problem, health.problem)
        assert "a/image:x" in health.problem


def test_the_numbers_are_those_of_a_float64_restatement(make_dataset: Make) -> None:
    dataset = make_dataset("a/image:x", np.concatenate([cone(40, 0.6), cone(5, 0.6)]))
    rows = dataset.embeddings().astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = (rows @ rows.T)[~np.eye(45, dtype=bool)]
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    share = values[values > 1e-6] / values[values > 1e-6].sum()
    health = measure(dataset)
    assert health is not None
    assert health.mean_cosine == pytest.approx(pairs.mean())
    assert health.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert health.duplicates == pytest.approx(5 / 45)


def test_one_row_says_nothing_and_equal_texts_count_once(make_dataset: Make) -> None:
    assert measure(make_dataset("a/image:one", cone(1, 0.5))) is None
    two = measure(make_dataset("a/image:two", cone(2, 0.9999)))
    assert two is not None
    assert two.problem is None
    alike = cone(1, 0.5).repeat(30, axis=0)
    same = measure(make_dataset("a/text:same", alike, text=["a dog"] * 30))
    assert same is not None
    assert (same.mean_cosine, same.problem) == (pytest.approx(1, abs=1e-3), None)
    differ = measure(make_dataset("a/text:differ", alike, text=[str(n) for n in range(30)]))
    unknown = measure(make_dataset("a/text:unknown", alike))
    for collapsed in (differ, unknown):
        assert collapsed is not None
        assert "nearly all alike" in (collapsed.problem or "")


def test_extract_says_it_of_a_collapsed_tower_and_not_of_the_other(
    tmp_path: Path, one_thread: None
) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"{n} dogs bark\n" for n in range(20)))
    sound = clip_checkpoint(tmp_path)
    state = load_file(sound)
    state["ln_final.weight"] *= 0.01  # the bias outweighs what was read
    state["ln_final.bias"] = torch.randn(256, generator=torch.Generator().manual_seed(0))
    save_file(state, tmp_path / "collapsed.safetensors")
    source = open_source("text", str(tmp_path / "lines.txt"))
    for checkpoint, again in ((sound, 1), (tmp_path / "collapsed.safetensors", 2)):
        clip = load_encoder(f"clip:{SMALL_CLIP}", checkpoint=checkpoint)
        for _ in range(again):  # a dataset that is up to date is no better
            summary = extract(tmp_path / checkpoint.stem, clip, source, "t", workers=0)
            lines = str(summary).splitlines()
            warned = "\n  warning: the embeddings of clip/text:t are nearly" in str(summary)
            assert warned == (checkpoint != sound)
            assert "mean cosine" not in lines[0]
            assert lines[1].startswith("  mean cosine ") == bool(summary.made)
            health = json.loads(json.dumps(summary.as_dict()))["health"]
            assert (health["mean_cosine"] > 0.99) == warned


@pytest.mark.parametrize(
    ("encoder", "modality", "name"),
    [("digits-clip", "text", "phrases"), ("digits-ulip", "image", "handwriting-test")],
)
def test_the_digits_spaces_are_sound(
    tmp_path: Path, encoder: str, modality: Modality, name: str
) -> None:
    source = open_source(modality, f"builtin:digits/{name}")
    summary = extract(tmp_path, load_encoder(encoder), source, name, workers=0)
    assert "warning" not in str(summary)


def test_connect_says_it_before_it_trains(make_dataset: Make, tmp_path: Path) -> None:
    ids = [str(n) for n in range(50)]
    make_dataset("a/text:t", cone(50, 0.9995), id=ids, text=ids)
    make_dataset("b/text:t", cone(50, 0.3, seed=1), id=ids, text=ids)
    config = read_config(
        {"spaces": ("a", "b"), "via": "text", "train": ("t",), "method": "procrustes"}
    )
    told: list[Any] = []
    for fresh in (True, False):
        done = connect(tmp_path / "store", config, name="c", opened=told.append)
        assert done.fresh == fresh
        assert told[-1] == done.health
    collapsed, sound = (done.health[Key(space, "text", "t")] for space in "ab")
    assert "nearly all alike" in (collapsed.problem or "")
    assert sound.problem is None
