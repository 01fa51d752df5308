"""Zero-shot classification: an item is of the class whose prompts lie nearest.

    done = evaluate_zero_shot(store, store / "connections" / "ulip-clip", shapes, prompts)

The prompts are rows of a text dataset whose `label` is their class, such as
`cmcr extract --encoder clip --source text=builtin:prompts/modelnet40` makes. The vector of a class
is the mean of its *projected* prompts, each of unit norm, made unit again (as CLIP and ULIP do with
theirs). The mean is taken behind the projection because the projector is not linear and has seen
single texts only, and because cosines are compared there.

FOLDER/zero-shot.json      {"results": [row, ...], "inputs": fingerprints, "files": the others}
       predictions.parquet the class that the connection gives to each item, and how far it is off
       classes.parquet     of each class: items, and the share that each model has right
       zero-shot-per-query.parquet   the rank of the right class of each item, by every model
       confusion.png       what the connection takes for what
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.special import comb
from torch import Tensor

from cmcr.connect import JointSpace
from cmcr.devices import threads_for
from cmcr.embeddings import Key
from cmcr.embeddings.search.where import RowFilter
from cmcr.evaluate.figures.plots import draw_confusion
from cmcr.evaluate.inputs.classes import ClassItems, Prompts, choose_items, choose_prompts
from cmcr.evaluate.inputs.items import project_blocks, project_rows
from cmcr.evaluate.inputs.selection import choose_rows
from cmcr.evaluate.ranking.rankings import per_query_table
from cmcr.evaluate.ranking.ranks import TIE
from cmcr.evaluate.results import Inputs, Metrics, Row, new_row
from cmcr.evaluate.tasks.neighbours import PER_QUERY_FILES, write_per_query
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.files import replacing
from cmcr.templates import read_templates
from cmcr.typed import typed

TASK = "zero-shot"
PREDICTIONS = "predictions.parquet"
CLASSES_FILE = "classes.parquet"
CONFUSION = "confusion.png"
PER_QUERY = PER_QUERY_FILES[TASK]
VERSION = 2

CUTOFFS = (1, 3, 5)


@dataclass(frozen=True)
class Predictions:
    """What a model says of each item."""

    rank: np.ndarray  # (items,) of the right class, from 1
    predicted: np.ndarray  # (items,) the number of the class


def evaluate_zero_shot(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
    classes: str | None = None,
    templates: str | None = None,
) -> Evaluated:
    """Classify `query` by the prompts in `gallery` and the connection in the folder `path`.

    `classes` and `templates` (a file or a name that cmcr/templates.py knows) choose among the
    prompts, `query_where` and `gallery_where` among the rows of the two datasets; without them all
    count. Rows are `chance`, the closed forms, the connection. Nothing
    is computed again while connection, datasets and choice stay the same. Raises UsageError for a
    dataset, class or template that is not there, MismatchError for embeddings of another encoder,
    CmcrError when no item is of one of the classes.
    """

    def pose(opened: Opened) -> Task:
        texts = choose_rows(opened.gallery, gallery_where)
        prompts = choose_prompts(texts, classes, templates)
        items = choose_items(choose_rows(opened.query, query_where), prompts.classes)
        inputs: Inputs = {
            "version": VERSION,
            "query": items.chosen.inputs,
            "gallery": texts.inputs,
            "classes": list(prompts.classes),
            "templates": list(read_templates(templates)) if templates else None,
        }
        if classes:
            inputs["chosen"] = {"classes": list(prompts.classes)}
        return Task(TASK, inputs, partial(_compute, items, prompts))

    return run_task(store, path, query, gallery, pose)


def _compute(
    items: ClassItems, prompts: Prompts, models: Models, folder: Path
) -> tuple[list[Row], list[str]]:
    rows = [_row("chance", items, prompts, chance_accuracy(items.right))]
    predictions, accuracy = {}, {}
    for name, model in each(models.all):
        with threads_for(len(items.rows) * len(prompts.classes) * model.joint_dim):
            predictions[name] = classify(model, items, prompts)
        correct = predictions[name].rank == 1
        metrics = zero_shot_metrics(predictions[name].rank, len(prompts.classes))
        rows.append(_row(name, items, prompts, metrics))
        accuracy[name] = class_accuracy(correct, items.right)
    own = predictions[models.name]
    _write_predictions(folder / PREDICTIONS, items, prompts, own)
    _write_classes(folder / CLASSES_FILE, items, prompts, accuracy)
    write_per_query(folder / PER_QUERY, per_query(rows[1:], items, predictions))
    truth = np.where(own.rank == 1, own.predicted, items.right.argmax(axis=1))
    counts = confusion(truth, own.predicted, len(prompts.classes))  # (classes, classes)
    draw_confusion(counts, prompts.classes, models.name, folder / CONFUSION)
    return rows, [PREDICTIONS, CLASSES_FILE, CONFUSION, PER_QUERY]


def per_query(
    rows: Sequence[Row], items: ClassItems, predictions: Mapping[str, Predictions]
) -> Iterator[pa.Table]:
    """A table a model with a line for each item, as the file of every query has it.

    Columns are those of a retrieval that zero-shot classification has: `matches`, how many classes
    are right, the `first_rank` of one and its `reciprocal_rank`, and `hit@k`, null where there are
    fewer classes.
    """
    ids = items.chosen.dataset.table(["id"])["id"].take(items.rows)
    for row in rows:
        rank = predictions[row["model"]].rank  # (items,)
        none = pa.nulls(len(rank), pa.bool_())
        hits = {f"hit@{k}": rank <= k if k <= items.right.shape[1] else none for k in CUTOFFS}
        measured = {"matches": items.right.sum(axis=1), "first_rank": rank}
        yield per_query_table(row, ids, measured | {"reciprocal_rank": 1 / rank} | hits)


def classify(model: JointSpace, items: ClassItems, prompts: Prompts) -> Predictions:
    """What `model` says of each item."""
    texts = project_rows(prompts.texts.dataset, prompts.rows, model)  # (prompts, joint)
    vectors = class_vectors(texts, prompts.class_of, len(prompts.classes))  # (classes, joint)
    blocks, done = [], 0
    for joint in project_blocks(items.chosen.dataset, items.rows, model):
        scores = (joint @ vectors.T).numpy()  # (block, classes)
        blocks.append(rank_classes(scores, items.right[done : done + len(scores)]))
        done += len(scores)
    ranks, predicted = zip(*blocks, strict=True)
    return Predictions(np.concatenate(ranks), np.concatenate(predicted))


@typed
def class_vectors(
    prompts: Float[Tensor, "prompts joint"], class_of: Int[np.ndarray, " prompts"], classes: int
) -> Float[Tensor, "classes joint"]:
    """The mean of the prompts of each class, unit vectors, made a unit vector."""
    total = prompts.new_zeros(classes, prompts.shape[1])
    return F.normalize(total.index_add_(0, torch.from_numpy(class_of), prompts), dim=1)


@typed
def rank_classes(
    scores: Float[np.ndarray, "items classes"], right: Bool[np.ndarray, "items classes"]
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " items"]]:
    """The rank of the right class of each item, from 1, and the class that is predicted.

    Where several are right, the best of them counts. A wrong class within `TIE` is ranked before
    the right one.
    """
    own = np.where(right, scores, -np.inf).max(axis=1)  # (items,)
    others = np.where(right, -np.inf, scores)  # (items, classes)
    rank = 1 + (others >= own[:, None] - TIE).sum(axis=1)
    best = np.where(right, scores, -np.inf).argmax(axis=1)
    return rank, np.where(rank == 1, best, others.argmax(axis=1))


@typed
def zero_shot_metrics(rank: Int[np.ndarray, " items"], classes: int) -> Metrics:
    """`topk`: the share of items whose right class is among the first k, for k ≤ `classes`."""
    return {f"top{k}": float((rank <= k).mean()) for k in CUTOFFS if k <= classes}


@typed
def chance_accuracy(right: Bool[np.ndarray, "items classes"]) -> Metrics:
    """What a random order of the C classes gives on average: 1 - C(C - R, k) / C(C, k), R right."""
    classes, counts = right.shape[1], right.sum(axis=1)  # (items,)
    return {
        f"top{k}": float((1 - comb(classes - counts, k) / comb(classes, k)).mean())
        for k in CUTOFFS
        if k <= classes
    }


@typed
def class_accuracy(
    correct: Bool[np.ndarray, " items"], right: Bool[np.ndarray, "items classes"]
) -> Float[np.ndarray, " classes"]:
    """The share of the items of each class that are correct; NaN for a class without items."""
    items = right.sum(axis=0)
    return np.divide(correct @ right, items, out=np.full(len(items), np.nan), where=items > 0)


@typed
def confusion(
    truth: Int[np.ndarray, " items"], predicted: Int[np.ndarray, " items"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How many items of each class (row) are taken for each class (column)."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def _row(model: str, items: ClassItems, prompts: Prompts, metrics: Metrics) -> Row:
    counts = {
        "items": len(items.rows),
        "classes": len(prompts.classes),
        "prompts": len(prompts.rows),
        "items_left_out": items.left_out,
    }
    row = new_row(items.chosen, prompts.texts, TASK, model, metrics | counts)
    row["truth"] = "label"
    return row


def _write_predictions(
    path: Path, items: ClassItems, prompts: Prompts, predictions: Predictions
) -> None:
    names = np.array(prompts.classes, dtype=object)
    table = items.chosen.dataset.table(["id", "label"]).take(items.rows)
    table = table.append_column("predicted", pa.array(names[predictions.predicted]))
    with replacing(path) as unfinished:
        pq.write_table(table.append_column("rank", pa.array(predictions.rank)), unfinished)


def _write_classes(
    path: Path, items: ClassItems, prompts: Prompts, accuracy: Mapping[str, np.ndarray]
) -> None:
    columns = {"class": list(prompts.classes), "items": items.right.sum(axis=0)}
    with replacing(path) as unfinished:
        pq.write_table(pa.table(columns | dict(accuracy)), unfinished)
