"""The modality gap, alignment and uniformity, before and after connecting (`cmcr evaluate gap`).

    done = evaluate_gap(store, store / "connections" / "clip-clap", speech, photos)   # `Key`s

Rows come one a model and direction, as retrieval's do. `before` are the embeddings as they were
extracted, the other models project them first.

- `distance`: ‖mean of the queries - mean of the gallery‖ (Liang et al., Mind the Gap, NeurIPS
  2022, section 4.2). 0 to 2.
- `alignment`: mean of ‖x - y‖² over the queries x and their matches y; 0 to 4, less is nearer.
- `uniformity`: log of the mean of exp(-2 ‖x - x'‖²) over pairs of queries; -4 or a bit less is
  evenly spread over a sphere of many dims, 0 is a single point (both: Wang, Isola, Understanding
  Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere, ICML
  2020, section 4.1, α = t = 2).

Between spaces of different dims there is neither distance nor alignment before they are connected,
one query has no uniformity, and where nothing says what matches there is no alignment: such a
metric is left out of its row.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.connect import JointSpace
from cmcr.devices import threads_for
from cmcr.embeddings import Key
from cmcr.embeddings.search.where import RowFilter
from cmcr.evaluate.inputs.items import Items, check_pair, select
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.rankings import tell_truth
from cmcr.evaluate.ranking.related import distance, draw, related_cosines
from cmcr.evaluate.results import Metrics, Row, new_row
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.typed import typed

TASK = "gap"
GAP_VERSION = 1


@typed
def alignment(
    queries: Float[Tensor, "queries dim"], gallery: Float[Tensor, "gallery dim"], matches: Matches
) -> float:
    """Mean squared distance of unit vectors `queries` to a match, drawn 16 times for each query.

    Of 4,096 queries where more have a match, drawn with a fixed seed as well. NaN where none has.
    """
    return float((2 - 2 * related_cosines(queries, gallery, matches)).mean())


@typed
def uniformity(items: Float[Tensor, "items dim"]) -> float:
    """Log of the mean of exp(-2 ‖x - x'‖²) over all pairs of unit vectors, of 4,096 at most."""
    drawn = items[draw(len(items))]  # (drawn, dim)
    return float(torch.pdist(drawn).square().mul(-2).exp().mean().log())


def evaluate_gap(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
    out: Path | None = None,
) -> Evaluated:
    """The gap between two datasets of `store`, before and after the connection in `path`.

    Results go to gap.json in the folder `out`, else in `results_folder`, and are computed again
    only when something changed. Raises what `evaluate_retrieval` does.
    """

    def pose(opened: Opened) -> Task:
        asked, found = select(opened.query, query_where), select(opened.gallery, gallery_where)
        inputs = {"gap_version": GAP_VERSION, "query": asked.inputs, "gallery": found.inputs}
        return Task(TASK, inputs, partial(_compute, asked, found))

    return run_task(store, path, query, gallery, pose, out)


def _compute(asked: Items, found: Items, models: Models, _: Path) -> tuple[list[Row], list[str]]:
    return gap_rows(models.all, asked, found), []


def gap_rows(models: Mapping[str, JointSpace], query: Items, gallery: Items) -> list[Row]:
    """The rows of task `gap`: `before`, then `models` in their order, first of `query`.

    Raises what `rank_both_ways` does.
    """
    matches = check_pair(models.values(), query, gallery)
    both = (query, gallery)
    rows = _rows("before", both, [items.projected(None) for items in both], matches)
    for name, model in each(models):
        with threads_for(len(query.rows) * len(gallery.rows) * model.joint_dim):
            vectors = [items.projected(model) for items in both]
        rows += _rows(name, both, vectors, matches)
    return [*rows[0::2], *rows[1::2]]


def _rows(
    model: str, both: tuple[Items, Items], vectors: Sequence[Tensor], matches: Matches
) -> list[Row]:
    query, gallery = both
    one, other = vectors
    rows = [
        new_row(query, gallery, TASK, model, _metrics(one, other, matches)),
        new_row(gallery, query, TASK, model, _metrics(other, one, matches.reverse())),
    ]
    for row in rows:
        tell_truth(row, matches)
    return rows


def _metrics(queries: Tensor, gallery: Tensor, matches: Matches) -> Metrics:
    metrics = {}
    if queries.shape[1] == gallery.shape[1]:
        with threads_for(len(queries) * len(gallery) * queries.shape[1]):
            metrics["distance"] = distance(queries, gallery)
            if matches.truth:
                metrics["alignment"] = alignment(queries, gallery, matches)
    if len(queries) > 1:  # on all threads: they share a sum whose last bits hang on their number
        metrics["uniformity"] = uniformity(queries)
    return metrics
