"""Zero-shot classification: class vectors, ranks, tables, and the command.

pytest tests/evaluate/test_zero_shot.py
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmcr.cli.app import app
from cmcr.connect import connect, read_config
from cmcr.embeddings import Key
from cmcr.errors import CmcrError, UsageError
from cmcr.evaluate import evaluate_zero_shot
from cmcr.evaluate.tasks.zero_shot import (
    chance_accuracy,
    class_accuracy,
    class_vectors,
    confusion,
    rank_classes,
    zero_shot_metrics,
)

CLASSES = ("owl", "night stand", "rat")


def test_a_class_is_the_mean_of_its_prompts():
    prompts = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    vectors = class_vectors(prompts, np.array([0, 0, 1]), 2)
    assert torch.allclose(vectors, torch.tensor([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1.0]]))


def ranks(scores, right):
    return [values.tolist() for values in rank_classes(np.array(scores, float), np.array(right))]


def test_ranks_by_hand():
    right = [[True, False, False]]
    assert ranks([[0.9, 0.5, 0.1]], right) == [[1], [0]]
    assert ranks([[0.4, 0.5, 0.1]], right) == [[2], [1]]
    assert ranks([[0.5, 0.1, 0.5]], right) == [[2], [2]]  # a tie is decided against us
    assert ranks([[0.2, 0.2, 0.2]], right) == [[3], [1]]
    assert ranks([[0.1, 0.9, 0.5]], [[True, False, True]]) == [[2], [1]]  # the better of two
    assert ranks([[0.5, 0.1, 0.5]], [[True, False, True]]) == [[1], [0]]


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=6))
def test_ranks_agree_with_the_definition(scores):
    right = np.zeros((len(scores), 4), bool)
    right[:, 2] = True
    for row, rank in zip(scores, ranks(scores, right)[0], strict=True):
        assert rank == 1 + sum(score >= row[2] for at, score in enumerate(row) if at != 2)


def test_metrics_by_hand():
    rank = np.array([1, 2, 4, 6])
    assert zero_shot_metrics(rank, 10) == {"top1": 0.25, "top3": 0.5, "top5": 0.75}
    assert zero_shot_metrics(rank, 4) == {"top1": 0.25, "top3": 0.5}
    one = np.eye(10, dtype=bool)
    assert chance_accuracy(one) == pytest.approx({"top1": 0.1, "top3": 0.3, "top5": 0.5})
    two = np.array([[True, True, False, False]])
    assert chance_accuracy(two) == pytest.approx({"top1": 0.5, "top3": 1})


def test_confusion_and_accuracy_by_hand():
    truth, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert confusion(truth, predicted, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    right = np.eye(3, dtype=bool)[truth]
    accuracy = class_accuracy(truth == predicted, right)
    assert accuracy[:2].tolist() == [0.5, 1]
    assert np.isnan(accuracy[2])


@pytest.fixture
def world(tmp_path, make_dataset):
    """Two spaces, connected as they are; prompts in two templates, one of them misleading."""
    texts = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    for space in ("eye", "ear"):
        make_dataset(f"{space}/text:texts", texts, id=[f"t{i}" for i in range(12)])
    good = np.eye(4, dtype=np.float32)[:3]
    make_dataset(
        "eye/text:prompts", np.concatenate([good, np.roll(good, 1, axis=0)]),
        id=[f"p{i}" for i in range(6)], label=[[name] for name in CLASSES] * 2,
        template=["a {}"] * 3 + ["not a {}"] * 3,
    )  # fmt: skip
    shapes = np.concatenate([good + 0.1, good[:1]])
    labels = [["owl"], ["night_stand"], ["rat"], ["pig"]]
    make_dataset("ear/audio:shapes", shapes, id=list("abcd"), label=labels)
    store = tmp_path / "store"
    fields = {
        "spaces": ["eye", "ear"],
        "via": "text",
        "train": ["texts"],
        "method": "identity",
        "ridge_strength": 0.01,
    }
    connect(store, read_config(fields), name="same")
    return store


ITEMS, PROMPTS = Key("ear", "audio", "shapes"), Key("eye", "text", "prompts")


def run(world, **options):
    path = world / "connections" / "same"
    return evaluate_zero_shot(world, path, ITEMS, options.pop("gallery", PROMPTS), **options)


def write(path, *lines):
    path.write_text("\n".join(lines))
    return str(path)


def test_the_templates_are_chosen(world, tmp_path):
    good = write(tmp_path / "good.txt", "a {}")
    done = run(world, templates=good)
    rows = {row["model"]: row["metrics"] for row in done.rows}
    assert list(rows)[:2] == ["chance", "procrustes"]
    assert {"procrustes-centred", "ridge", "ridge-centred", "cca", "identity"} <= rows.keys()
    assert rows["chance"]["top1"] == pytest.approx(1 / 3)
    assert rows["identity"] == {
        "top1": 1, "top3": 1, "items": 3, "classes": 3, "prompts": 3, "items_left_out": 1,
    }  # fmt: skip
    assert done.rows[-1]["task"] == "zero-shot"
    assert done.rows[-1]["dataset"] == "prompts+shapes"
    table = pq.read_table(done.folder / "predictions.parquet").to_pydict()
    assert table["predicted"] == list(CLASSES)
    table = pq.read_table(done.folder / "classes.parquet").to_pydict()
    assert table["identity"] == [1, 1, 1]
    assert (done.folder / "confusion.png").stat().st_size > 1000
    assert not run(world, templates=good).fresh
    bad = run(world, templates=write(tmp_path / "bad.txt", "not a {}"))
    assert bad.fresh
    assert bad.rows[-1]["metrics"]["top1"] == 0


def test_all_templates_are_averaged(world):
    """Each class is as near to its own axis as to that of the next one, and a tie is a miss."""
    assert run(world).rows[-1]["metrics"]["top1"] == 0
    assert run(world).rows[-1]["metrics"]["prompts"] == 6


def test_the_classes_are_chosen(world, tmp_path):
    few = write(tmp_path / "few.txt", "night_stand", "rat")
    metrics = run(world, classes=few, templates=write(tmp_path / "t.txt", "a {}")).rows[-1][
        "metrics"
    ]
    assert (metrics["top1"], metrics["classes"], metrics["items_left_out"]) == (1, 2, 2)
    assert "top3" not in metrics
    one = write(tmp_path / "one.txt", "rat")
    assert run(world, classes=one).rows[-1]["metrics"]["top1"] == 1


def test_each_choice_has_a_folder_of_its_own(world, tmp_path):
    first = run(world)
    assert first.folder.name == "ear_audio_shapes--eye_text_prompts"
    chosen = {
        "classes": write(tmp_path / "few.txt", "night_stand", "rat"),
        "templates": write(tmp_path / "good.txt", "a {}"),
    }
    for option, file in chosen.items():
        done = run(world, **{option: file})
        assert done.folder.name.startswith(f"{first.folder.name}--{option}_")
        assert not run(world, **{option: file}).fresh
    again = run(world)
    assert (again.fresh, again.rows) == (False, first.rows)


def test_choices_that_cannot_be(world, tmp_path):
    with pytest.raises(UsageError, match="39 of 40 classes have no prompt") as error:
        run(world, classes="modelnet40")  # the night stand has
    assert "owl, night stand, rat" in str(error.value)
    with pytest.raises(UsageError, match="made with these templates"):
        run(world, templates="ulip64")
    texts = Key("eye", "text", "texts")
    with pytest.raises(UsageError, match="has no labels"):
        run(world, gallery=texts)


def test_classes_without_items_and_texts_without_templates(world, make_dataset):
    make_dataset("eye/text:other", np.eye(4, dtype=np.float32)[:1], label=[["dodo"]])
    other = Key("eye", "text", "other")
    with pytest.raises(CmcrError, match="no item of ear/audio:shapes") as error:
        run(world, gallery=other)
    assert "dodo" in str(error.value)
    with pytest.raises(UsageError, match="which template"):
        run(world, gallery=other, templates="none")


def test_on_the_command_line(world, tmp_path, capsys):
    command = ["evaluate", "zero-shot", "--store", str(world), "--connection", "same"]
    places = ["--query", "ear/audio:shapes", "--gallery", "eye/text:prompts"]
    good = ["--templates", write(tmp_path / "good.txt", "a {}")]
    app([*command, *places, *good, "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)["results"]
    assert rows[-1]["metrics"]["top1"] == 1
    app([*command, *places, *good], standalone_mode=False)
    table = capsys.readouterr().out
    assert "zero-shot: ear/audio:shapes → eye/text:prompts\n" in table
    assert "3 items; 3 classes; 3 prompts; 1 items of other classes left out; a match" in table
    elsewhere = ["--pipeline", "clip-clap"]  # a recipe with another gallery
    with pytest.raises(UsageError, match="no dataset clap/text:esc50"):
        app([*command, "--query", "ear/audio:shapes", *elsewhere], standalone_mode=False)
    with pytest.raises(UsageError, match="no connection"):
        app([*command[:-1], "none", *places], standalone_mode=False)
