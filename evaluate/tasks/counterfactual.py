"""Counterfactual recognition: is what sounds in the picture at all, and where?

    done = evaluate_counterfactual(store, store / "connections" / "clip-clap", sounds, regions)

The confidence of an answer is the cosine of the sound and the region nearest to it. A confident
answer is right when the source is in the picture and the region has a cIoU of at least 0.5 with
it; it is wrong when the region is elsewhere or the source is silent or absent. Mo and Morgado, A
Closer Look at Weakly-Supervised Audio-Visual Source Localization (SLAVC), NeurIPS 2022.

FOLDER/counterfactual.json      {"results": [row, ...], "inputs": fingerprints, "files": the others}
       counterfactual.parquet   the region that the connection chose for each pair, its confidence
       precision-recall.png     precision over recall, of every model
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from cmcr.embeddings import Key
from cmcr.embeddings.search.where import RowFilter
from cmcr.evaluate.figures.plots import draw_precision_recall
from cmcr.evaluate.inputs.scenes import Scenes, locate, open_scenes, scene_inputs, write_answers
from cmcr.evaluate.inputs.selection import choose_rows
from cmcr.evaluate.results import Metrics, Row
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.typed import typed

TASK = "counterfactual"
ANSWERS = "counterfactual.parquet"
CURVE = "precision-recall.png"
VERSION = 3

LOCALISED = 0.5  # the least cIoU of an answer in the right place


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at every confidence that occurs, the highest first; `answered` are the
    pairs that are at least so confident.
    """

    precision: Float[np.ndarray, " thresholds"]
    recall: Float[np.ndarray, " thresholds"]
    answered: Int[np.ndarray, " thresholds"]

    def metrics(self) -> Metrics:
        """`ap`, the area under the interpolated precision, and `max_f1`; and both as SLAVC's code
        (`EvaluatorFull` in utils.py) takes them from the same TP, FP and FN.

        AP = Σᵢ (rᵢ − rᵢ₋₁) · max over j ≥ i of pⱼ, with r₀ = 0. Of n pairs by falling confidence,
        SLAVC looks for AP at the second and at every max(1, ⌊n/200⌋)-th after it, and has the
        height of the former threshold over a step (Σᵢ (rᵢ₊₁ − rᵢ) · max over j ≥ i of pⱼ); for F1
        it looks at the last and at every max(1, ⌊n/10⌋)-th before it.
        """
        pairs = int(self.answered[-1])
        some = self._of_pairs(np.arange(1, pairs, max(1, pairs // 200)))
        few = self._of_pairs(np.arange(pairs - 1, -1, -max(1, pairs // 10)))
        f1 = self._f1()
        return {
            "ap": float(np.diff(self.recall, prepend=0) @ _interpolated(self.precision)),
            "ap_slavc": float(
                np.diff(self.recall[some]) @ _interpolated(self.precision[some])[:-1]
            ),
            "max_f1": float(f1.max()),
            "max_f1_slavc": float(f1[few].max()),
        }

    def _of_pairs(self, places: np.ndarray) -> np.ndarray:
        """The threshold of each of the pairs at `places`, counted from the most confident."""
        return np.searchsorted(self.answered, places, side="right")

    def _f1(self) -> np.ndarray:
        total = self.precision + self.recall
        product = 2 * self.precision * self.recall
        f1: np.ndarray = np.divide(product, total, out=np.zeros(len(total)), where=total > 0)
        return f1


def _interpolated(precision: np.ndarray) -> np.ndarray:
    """The highest precision at a threshold or any lower one."""
    highest: np.ndarray = np.maximum.accumulate(precision[::-1])[::-1]
    return highest


@typed
def precision_recall(
    confidence: Float[np.ndarray, " pairs"],
    localised: Float[np.ndarray, " pairs"],
    visible: Bool[np.ndarray, " pairs"],
) -> PrecisionRecall:
    """Precision and recall of answering every pair that is at least so confident.

    TP are answered, `visible` and `localised` (1, or the probability of it), FP all others that
    are answered, FN the visible ones that are not; precision is TP / (TP + FP), recall TP /
    (TP + FN), 0 where that is 0 / 0. A visible pair that is answered in the wrong place counts as
    FP and no longer as FN (as in SLAVC's code), so recall ends at 1. Pairs of equal confidence are
    answered together.
    """
    order = np.argsort(-confidence, kind="stable")  # (pairs,)
    right = np.cumsum((localised * visible)[order])
    answered = np.arange(1, len(order) + 1)
    missed = visible.sum() - np.cumsum(visible[order])
    last = np.append(np.diff(confidence[order]) != 0, True)  # of those that are equally confident
    right, answered, missed = right[last], answered[last], missed[last]  # (thresholds,) each
    found = right + missed
    recall = np.divide(right, found, out=np.zeros(len(right)), where=found > 0)
    return PrecisionRecall(right / answered, recall, answered)


def evaluate_counterfactual(
    store: Path,
    path: Path,
    sounds: Key,
    regions: Key,
    truth: Sequence[Path] = (),
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
) -> Evaluated:
    """Recognise which of `sounds` come from their pictures, by the connection in `path`.

    `truth` and selections as in `evaluate_localization`; pairs without boxes are the silent ones.
    Of the rows, `chance` (a region at random) and `centre` (the central half) answer every pair
    alike; then come the closed forms and the connection. Nothing is computed again while all that
    stays the same. Raises what `evaluate_localization` raises.
    """

    def pose(opened: Opened) -> Task:
        scenes = open_scenes(
            choose_rows(opened.query, query_where),
            choose_rows(opened.gallery, gallery_where),
            truth,
        )
        return Task(TASK, scene_inputs(scenes, VERSION), partial(_compute, scenes))

    return run_task(store, path, sounds, regions, pose)


def _compute(scenes: Scenes, models: Models, folder: Path) -> tuple[list[Row], list[str]]:
    visible = scenes.visible
    alike = np.zeros(len(visible))
    by_chance = np.array([np.mean(ciou >= LOCALISED) for ciou in scenes.ciou])
    at_centre = (scenes.centre_ciou() >= LOCALISED).astype(float)
    curves = {
        "chance": precision_recall(alike, by_chance, visible),
        "centre": precision_recall(alike, at_centre, visible),
    }
    answers = {}
    for name, model in each(models.all):
        answers[name] = locate(model, scenes)
        localised = (answers[name].ciou >= LOCALISED).astype(float)
        curves[name] = precision_recall(answers[name].confidence, localised, visible)
    write_answers(folder / ANSWERS, scenes, answers[models.name])
    rows = [scenes.row(TASK, name, curve.metrics()) for name, curve in curves.items()]
    draw_precision_recall(
        {name: (curve.recall, curve.precision) for name, curve in curves.items()},
        {row["model"]: row["metrics"]["ap"] for row in rows},
        models.name,
        folder / CURVE,
    )
    return rows, [ANSWERS, CURVE]
