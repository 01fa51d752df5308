"""Audio-visual source localisation: which of a picture's regions makes the sound?

    done = evaluate_localization(store, store / "connections" / "clip-clap", sounds, regions)

The region nearest to the sound in the joint space is the prediction, and is compared with the
annotated boxes by cIoU (inputs/ciou.py). Chen et al., Localizing Visual Sounds the Hard Way,
CVPR 2021.

FOLDER/localization.json      {"results": [row, ...], "inputs": fingerprints, "files": the others}
       localization.parquet   the region that the connection chose for each pair
       success.png            success rate over the cIoU that is asked for, of every model
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cmcr.embeddings import Key
from cmcr.embeddings.search.where import RowFilter
from cmcr.errors import CmcrError
from cmcr.evaluate.figures.plots import draw_success
from cmcr.evaluate.inputs.scenes import Scenes, locate, open_scenes, scene_inputs, write_answers
from cmcr.evaluate.inputs.selection import choose_rows
from cmcr.evaluate.results import Metrics, Row
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.typed import typed

TASK = "localization"
ANSWERS = "localization.parquet"
SUCCESS = "success.png"
VERSION = 2

THRESHOLDS = 0.05 * np.arange(21)  # 0, 0.05 … 1


@typed
def success_rates(
    ciou: Float[np.ndarray, " answers"], weights: Float[np.ndarray, " answers"] | None = None
) -> Float[np.ndarray, "21"]:
    """The share of answers whose cIoU reaches each of `THRESHOLDS`, weighted."""
    rates: np.ndarray = np.average(ciou[:, None] >= THRESHOLDS, axis=0, weights=weights)
    return rates


@typed
def localization_metrics(rates: Float[np.ndarray, "21"]) -> Metrics:
    """`success@0.5`, the share of cIoU ≥ 0.5, and `auc`, the area under `rates` (trapezoids).

    At threshold 0 everything succeeds, so that an `auc` is 0.025 at least.
    """
    area = (rates.sum() - (rates[0] + rates[-1]) / 2) / (len(rates) - 1)
    return {"success@0.5": float(rates[10]), "auc": float(area)}


def evaluate_localization(
    store: Path,
    path: Path,
    sounds: Key,
    regions: Key,
    truth: Sequence[Path] = (),
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
) -> Evaluated:
    """Locate `sounds` among `regions` by the connection in the folder `path`.

    Where they are heard is in the files `truth` (evaluate/inputs/truth.py), else in the sounds' own
    columns. `query_where` selects among the sounds, `gallery_where` among the regions. Only pairs
    whose source is in the picture count. Rows are `chance` (a region of the picture at random,
    exactly), `centre` (a box that covers the central half), the closed forms, the connection.
    Nothing is computed again while all that stays the same. Raises UsageError for a dataset, file,
    column or value that is not there, MismatchError for embeddings of another encoder, SourceError
    for a truth that cannot be read, CmcrError when it has no such pair.
    """

    def pose(opened: Opened) -> Task:
        scenes = open_scenes(
            choose_rows(opened.query, query_where),
            choose_rows(opened.gallery, gallery_where),
            truth,
        ).only_visible()
        if not scenes.pairs:
            raise CmcrError(
                "every pair of the truth is a silent one, so there is nothing to locate",
                where=scenes.sounds.dataset.folder,
                fix="name a truth with boxes, or run `cmcr evaluate counterfactual`",
            )
        return Task(TASK, scene_inputs(scenes, VERSION), partial(_compute, scenes))

    return run_task(store, path, sounds, regions, pose)


def _compute(scenes: Scenes, models: Models, folder: Path) -> tuple[list[Row], list[str]]:
    rates = {
        "chance": success_rates(np.concatenate(scenes.ciou), scenes.at_random()),
        "centre": success_rates(scenes.centre_ciou()),
    }
    answers = {}
    for name, model in each(models.all):
        answers[name] = locate(model, scenes)
        rates[name] = success_rates(answers[name].ciou)
    write_answers(folder / ANSWERS, scenes, answers[models.name])
    rows = [scenes.row(TASK, name, localization_metrics(rate)) for name, rate in rates.items()]
    areas = {row["model"]: row["metrics"]["auc"] for row in rows}
    draw_success(THRESHOLDS, rates, areas, models.name, folder / SUCCESS)
    return rows, [ANSWERS, SUCCESS]
