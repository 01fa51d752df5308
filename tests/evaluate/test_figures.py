"""The pictures: they are there, they show something, and they are the same in every run.

pytest tests/evaluate/test_figures.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from cmcr.connect.training.log import read_training
from cmcr.errors import CmcrError
from cmcr.evaluate.figures.joint_space import Cloud, draw_joint_space, embed_2d, map_together
from cmcr.evaluate.figures.plots import RetrievalCurve, draw_precision, draw_training
from cmcr.evaluate.ranking.metrics import RECALL_LEVELS

pytestmark = pytest.mark.usefixtures("true_figures")


def cloud(space, modality, dim, classes, items=24):
    rng = np.random.default_rng(dim + len(modality))
    names = [classes[i % len(classes)] for i in range(items)]
    return Cloud(space, modality, names, rng.normal(size=(items, dim)).astype(np.float16),
                 rng.normal(size=(items, 5)).astype(np.float32))  # fmt: skip


def colours(path):
    """How many colours the picture has, and its width."""
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 24)), image.width


@pytest.mark.parametrize("dims", [(6, 6), (6, 9)])
def test_joint_space(tmp_path, dims):
    clouds = (cloud("ear", "audio", dims[0], "abc"), cloud("eye", "image", dims[1], "bcd"))
    for name in ("one.png", "two.png"):
        draw_joint_space(clouds, tmp_path / name)
    count, width = colours(tmp_path / "one.png")
    assert count > 100
    assert width >= 2000
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("classes", [[None], ["x"]])
def test_joint_space_without_a_shared_class(tmp_path, classes):
    clouds = (cloud("ear", "audio", 4, classes), cloud("eye", "pointcloud", 4, [None]))
    draw_joint_space(clouds, tmp_path / "map.png")
    assert colours(tmp_path / "map.png")[0] > 50


def test_a_space_that_collapsed_can_be_drawn(tmp_path):
    same = np.full((20, 4), 0.5, np.float32)
    clouds = (
        Cloud("ear", "audio", ["a"] * 20, same, same),
        Cloud("eye", "image", ["a"] * 20, same, same),
    )
    draw_joint_space(clouds, tmp_path / "map.png")
    assert colours(tmp_path / "map.png")[0] > 50


def test_neighbours_stay_neighbours_on_the_map():
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    vectors = 5 * np.eye(3)[classes] + rng.normal(scale=0.3, size=(60, 3))
    points = embed_2d(vectors)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert (classes[distances.argmin(axis=1)] == classes).all()


def test_what_finds_each_other_lies_together():
    """Two modalities with a gap between them, and cosines within each that are far higher."""
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    meaning = np.eye(3)[classes]
    one, other = (
        np.concatenate([0.1 * meaning, own * meaning, np.full((60, 1), gap)], axis=1)
        for own, gap in ((1, 1), (0, -1))
    )
    other[:, 3:6] = 0.001 * rng.normal(size=(60, 3))
    points, others = map_together(one, other)
    distances = np.linalg.norm(points[:, None] - others[None], axis=-1)  # (one, other)
    assert (classes[distances.argmin(axis=1)] == classes).all()


def test_training(tmp_path):
    rows = [
        {"epoch": epoch, "step": 10 * epoch, "lr": 1e-3 / epoch, "loss": 5 / epoch, "intra": 1.0}
        for epoch in range(1, 6)
    ]
    log = tmp_path / "training.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_training(log) == rows
    draw_training(rows, tmp_path / "training.png")
    assert colours(tmp_path / "training.png")[0] > 50
    draw_training(rows[:1], tmp_path / "one.png")
    log.write_text("{")
    with pytest.raises(CmcrError, match="cannot be read"):
        read_training(log)


def test_precision(tmp_path):
    curves = [
        RetrievalCurve(direction, model, np.full(len(RECALL_LEVELS), height), height)
        for direction in ("audio → image", "image → audio")
        for model, height in (("chance", 0.1), ("ridge", 0.4), ("c-mcr", 0.6))
    ]
    draw_precision(curves, "c-mcr", tmp_path / "precision.png")
    assert colours(tmp_path / "precision.png")[0] > 50
