"""`cmcr.evaluate(x, y)`: arrays in one joint space, measured as the command measures a store.

pytest tests/evaluate/test_arrays.py
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import cmcr
from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.evaluate import evaluate_arrays, evaluate_retrieval, results_table

pytestmark = pytest.mark.usefixtures("one_thread")

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(30, 6))
Y = X + 0.4 * DRAW.normal(size=(30, 6))
LABELS = [f"class {row % 4}" for row in range(30)]


def test_the_package_can_be_called_and_is_a_package_still() -> None:
    assert cmcr.evaluate(X, Y) == evaluate_arrays(X, Y)
    assert cmcr.evaluate.results_table is results_table
    assert "cmcr.evaluate" in repr(cmcr.evaluate)


def test_rows_are_the_command_s(
    make_dataset: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])
    columns = {"label": LABELS, "id": [str(row) for row in range(30)]}
    texts = make_dataset("a/text:texts", X, id=columns["id"])
    make_dataset("b/text:texts", X, id=columns["id"])
    for named in ({}, columns):
        name = "named" if named else "bare"
        make_dataset(f"a/image:{name}", X, **named)
        make_dataset(f"b/audio:{name}", Y, **named)
        store = texts.folder.parents[2]
        fields = {"spaces": ["a", "b"], "via": "text", "train": ["texts"], "method": "ridge"}
        path = connect(store, read_config(fields), name=name).path
        keys = [Key("a", "image", name), Key("b", "audio", name)]
        done = evaluate_retrieval(store, path, keys[0], keys[1])
        model = load_connection(path)
        x, y = (model.project(key.space, open_dataset(store, key).embeddings(), key.modality)
                for key in keys)  # fmt: skip
        rows = cmcr.evaluate(x, y, labels=(LABELS, LABELS) if named else None)
        expected = [row for row in done.rows if row["model"] in ("chance", "ridge")]
        assert [row["model"] for row in rows] == ["chance", "identity"] * 2
        for row, other in zip(rows, expected, strict=True):
            rest: dict[str, Any] = {**other}
            rest["metrics"] = {k: v for k, v in rest["metrics"].items() if k != "false_positives"}
            names = ("task", "truth", "metrics", "intervals", "per_class", "worst")
            assert [row.get(one) for one in names] == [rest.get(one) for one in names]
        assert (rows[1]["query"], rows[1]["gallery"], rows[1]["dataset"]) == ("x", "y", "x+y")
        assert rows[0]["truth"] == ("label" if named else "id")


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_any_precision_tensors_and_lists(kind: type) -> None:
    expected = [row["metrics"] for row in cmcr.evaluate(X, Y)]
    for convert in (np.asarray, torch.from_numpy, lambda array: array.tolist()):
        rows = cmcr.evaluate(convert(X.astype(kind)), convert(Y.astype(kind)))
        for row, metrics in zip(rows, expected, strict=True):
            assert row["metrics"] == pytest.approx(metrics, abs=0.05)
    with_gradient = torch.tensor(X, requires_grad=True)
    assert cmcr.evaluate(with_gradient, Y)[1]["metrics"] == expected[1]


def test_groups_several_labels_and_none() -> None:
    x, y = np.eye(3), np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0.1], [0, 0, 1.0]])
    rows = cmcr.evaluate(x, y, labels=(["a", None, "c"], [["b", "a"], "b", None, "c"]))
    assert rows[1]["truth"] == "label"
    assert rows[1]["metrics"]["hit_rate@1"] == 1
    assert rows[1]["metrics"]["queries_without_match"] == 1
    grouped = cmcr.evaluate(x, y, groups=(np.array([1, 2, 3]), np.array([1, 2, 1, 3])))
    assert grouped[1]["truth"] == "group"
    assert grouped[1]["metrics"]["mAP"] == 1


def test_missing_labels_match_nothing() -> None:
    x, nan = np.eye(3), float("nan")
    rows = cmcr.evaluate(x, x, labels=(["a", nan, nan], ["a", np.float32("nan"), []]))
    assert rows[1]["metrics"]["queries_without_match"] == 2
    grouped = cmcr.evaluate(x, x, groups=([[], "b", None], [nan, "b", "c"]))
    assert grouped[1]["metrics"]["queries_without_match"] == 2
    with pytest.raises(CmcrError, match="no row of x has a match"):
        cmcr.evaluate(x, x, labels=([nan] * 3, [nan] * 3))


def test_without_truth_the_rows_tell_of_hubs() -> None:
    rows = cmcr.evaluate(X[:20], Y, paired=False)
    assert [row["task"] for row in rows] == ["hubs"] * 4
    assert rows[1]["metrics"]["gallery_size"] == 30
    assert rows[1]["hubs"]
    assert rows[1]["metrics"]["distance"] > 0


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"y": Y[:9]}, MismatchError, "x has 30 rows, y 9"),
        ({"y": Y[:, :4]}, MismatchError, "no joint space"),
        ({"y": np.zeros((30, 6))}, SourceError, "y"),
        ({"y": Y[:0]}, SourceError, "no rows of y"),
        ({"labels": (LABELS, LABELS[:9])}, MismatchError, "y has 30 rows and 9 labels"),
        ({"labels": LABELS}, UsageError, "those of x and those of y"),
        ({"groups": (None, None)}, UsageError, "those of x and those of y"),
        ({"labels": (LABELS, LABELS), "paired": False}, UsageError, "paired=False"),
        ({"groups": (LABELS, ["other"] * 30)}, CmcrError, "no row of x has a match"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], error: type[CmcrError], what: str) -> None:
    with pytest.raises(error, match=what) as raised:
        cmcr.evaluate(X, **{"y": Y, **options})
    assert raised.value.fix
