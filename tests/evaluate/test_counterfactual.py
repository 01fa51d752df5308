"""Silent and absent sounds must be rejected: AP and max-F1, by hand and by the definition.

pytest tests/evaluate/test_counterfactual.py
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcr.connect import connect, read_config
from cmcr.embeddings import Key
from cmcr.evaluate import evaluate_counterfactual, precision_recall

LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]


def measured(confidence, localised, visible):
    curve = precision_recall(
        np.array(confidence, float), np.array(localised, float), np.array(visible, bool)
    )
    return curve.metrics()


def metrics(*pairs):
    found = measured(*pairs)
    return found["ap"], found["max_f1"]


def test_by_hand():
    assert metrics([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], [1, 1, 0, 0]) == (1, 1)
    # The silent pair is the surest: 1 of 2 right, then 2 of 3.
    ap, f1 = metrics([0.9, 0.8, 0.7], [0, 1, 1], [0, 1, 1])
    assert ap == pytest.approx(2 / 3)
    assert f1 == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    # It comes second: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    ap, f1 = metrics([0.9, 0.8, 0.7], [1, 0, 1], [1, 0, 1])
    assert ap == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert f1 == pytest.approx(0.8)


def test_all_positive_and_all_negative():
    assert metrics([0.3, 0.2, 0.1], [1, 1, 1], [1, 1, 1]) == (1, 1)
    assert metrics([0.3, 0.2, 0.1], [0, 0, 0], [0, 0, 0]) == (0, 0)


def test_a_confident_answer_in_the_wrong_place_is_a_false_positive():
    # After the first answer FP = 1 and FN = 1, after the second TP = 1, FP = 1, FN = 0.
    assert metrics([0.9, 0.8], [0, 1], [1, 1]) == (0.5, pytest.approx(2 * 0.5 / 1.5))
    assert metrics([0.9, 0.8], [0, 0], [1, 1]) == (0, 0)


def test_equal_confidences_are_answered_together():
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        visible = np.array([1, 1, 0, 0])[order]
        assert metrics([0.5] * 4, visible, visible) == (0.5, pytest.approx(2 / 3))


CASES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(CASES)
def test_agrees_with_the_definition(cases):
    """TP, FP and FN restated from SLAVC's protocol, counted at every confidence."""
    points = []
    for threshold in sorted({case[0] for case in cases}, reverse=True):
        answered = [(seen, right) for confidence, seen, right in cases if confidence >= threshold]
        tp = sum(seen and right for seen, right in answered)
        fp = len(answered) - tp
        fn = sum(seen for confidence, seen, _ in cases if confidence < threshold)
        points.append((tp / (tp + fp), tp / (tp + fn) if tp + fn else 0))
    ap, before = 0.0, 0.0
    for at, (_, recall) in enumerate(points):
        ap += (recall - before) * max(precision for precision, _ in points[at:])
        before = recall
    f1 = max(2 * p * r / (p + r) if p + r else 0 for p, r in points)
    confidence, visible, localised = zip(*cases, strict=True)
    assert metrics(confidence, localised, visible) == pytest.approx((ap, f1))


def by_slavc(confidence, localised, visible):
    """AP and the highest F1 restated from SLAVC's EvaluatorFull, loop by loop."""

    def at(threshold):
        tp = fp = fn = 0
        for sure, right, seen in zip(confidence, localised, visible, strict=True):
            answered = sure >= threshold
            tp += answered and seen and right
            fp += answered and not (seen and right)
            fn += seen and not answered
        return tp / (tp + fp) if tp + fp else 1, tp / (tp + fn) if tp + fn else 1

    rising = sorted(confidence)
    points = [at(sure) for sure in rising[:-1][:: -max(1, len(rising) // 200)]]
    ap = sum(
        max(p for p, _ in points[i:]) * (points[i + 1][1] - points[i][1])
        for i in range(len(points) - 1)
    )
    few = [at(sure) for sure in rising[:: max(1, len(rising) // 10)]]
    return ap, max(2 * p * r / (p + r) if p + r else 0 for p, r in few)


@given(CASES)
def test_agrees_with_slavcs_own_sampling(cases):
    found = measured(*(columns := tuple(zip(*cases, strict=True))))
    assert (found["ap_slavc"], found["max_f1_slavc"]) == pytest.approx(by_slavc(*columns))


@pytest.mark.parametrize("pairs", [199, 400, 1037])
def test_agrees_with_slavcs_own_sampling_of_many(pairs):
    rng = np.random.default_rng(pairs)
    visible = rng.random(pairs) < 0.5
    localised = rng.random(pairs) < 0.6
    confidence = (rng.normal(size=pairs) + visible + localised).round(2)
    found = measured(confidence, localised, visible)
    columns = confidence.tolist(), localised.tolist(), visible.tolist()
    assert (found["ap_slavc"], found["max_f1_slavc"]) == pytest.approx(by_slavc(*columns))
    assert found["ap_slavc"] == pytest.approx(found["ap"], abs=0.02)
    assert 0 <= found["max_f1"] - found["max_f1_slavc"] < 0.1


def test_sounds_that_are_not_in_the_picture(tmp_path, make_dataset):
    """Two sounds that are seen and two that are not; one of these is surer than one of those."""
    texts = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    for space in ("eye", "ear"):
        make_dataset(f"{space}/text:texts", texts, id=[f"t{i}" for i in range(12)])
    sounds = np.array([[1, 0, 0, 0], [0.5, 0, 1, 0], [0, 0.8, 1, 0], [0, 0, 1, 0]], np.float32)
    boxes = [json.dumps([LEFT])] * 2 + ["[]"] * 2
    make_dataset("ear/audio:sounds", sounds, id=list("abcd"), image=["p"] * 4, boxes=boxes)
    make_dataset(
        "eye/image:regions", np.eye(4, dtype=np.float32)[:2], id=["p#0", "p#1"], image=["p", "p"],
        x0=[0.0, 0.5], y0=[0.0, 0.0], x1=[0.5, 1.0], y1=[1.0, 1.0],
    )  # fmt: skip
    store = tmp_path / "store"
    fields = {
        "spaces": ["eye", "ear"],
        "via": "text",
        "train": ["texts"],
        "method": "identity",
        "ridge_strength": 0.01,
    }
    connect(store, read_config(fields), name="same")
    keys = Key("ear", "audio", "sounds"), Key("eye", "image", "regions")
    done = evaluate_counterfactual(store, store / "connections" / "same", *keys)
    rows = {row["model"]: row["metrics"] for row in done.rows}
    assert rows["identity"]["ap"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert rows["identity"]["max_f1"] == pytest.approx(0.8)
    assert (rows["identity"]["pairs"], rows["identity"]["silent_pairs"]) == (2, 2)
    # At random a region is right in one of two of the pairs that are seen: 1 of 4 answers.
    assert rows["chance"]["ap"] == pytest.approx(1 / 4)
    assert rows["chance"]["max_f1"] == pytest.approx(2 * 0.25 / 1.25)
    assert rows["centre"]["ap"] == 0
    answers = pq.read_table(done.folder / "counterfactual.parquet").to_pydict()
    assert answers["visible"] == [True, True, False, False]
    assert answers["cosine"][:3] == pytest.approx([1, 0.5 / 1.25**0.5, 0.8 / 1.64**0.5], abs=1e-3)
    assert (done.folder / "precision-recall.png").stat().st_size > 1000
    again = evaluate_counterfactual(store, store / "connections" / "same", *keys)
    assert (again.fresh, again.rows) == (False, done.rows)
