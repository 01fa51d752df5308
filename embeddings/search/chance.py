"""What a score means: how many unpaired items score as high.

    sample = draw_sample(datasets, project)             # rows of one modality of a space, spread
    shares = log_shares(scores, sample_scores)          # of the items of that kind, for this query
    chance = unrelated_scores(queries, sample, score)   # of unrelated pairs, ascending
    rates = false_positives(scores, chance)             # share of unrelated items as high

A cosine says nothing by itself: those of one modality may all lie above those of another. The share
of a sample of the same modality that a query scores as high makes items of several modalities
comparable; it counts the related ones too. The rate of false positives does not: it comes from
pairs of unpaired rows, those left out that share a label, a group, or an id of one dataset's name.
Where rows have neither labels nor groups all pairs count, and the rate is an upper bound. The pairs
of few rows are many but not independent: a rate is known where ten rows of either side make it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from cmcr.embeddings.reader import Dataset
from cmcr.embeddings.search.hubness import Project
from cmcr.typed import typed

SAMPLE = 1024  # rows of a kind
COUNTED = 10  # unrelated rows that must score as high, for their share to be known
_TAIL, _LEAST_TAIL = 0.02, 10  # the part of a sample beyond which shares are extrapolated

RowKeys = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Sample:
    """Some rows in the joint space, and what each of them may share with a related one."""

    vectors: Tensor  # (rows, joint)
    keys: Sequence[RowKeys]
    known_as: Sequence[frozenset[str | None]]  # uri and text of each, where they are told

    def take(self, rows: np.ndarray) -> "Sample":
        """Those of these numbers, in this order."""
        keys, known_as = ([one[row] for row in rows] for one in (self.keys, self.known_as))
        return Sample(self.vectors[torch.from_numpy(rows)], keys, known_as)

    def without(self, known: Collection[str]) -> "Sample | None":
        """Those whose uri and text are not among `known`; None where no row is left."""
        kept = [row for row, names in enumerate(self.known_as) if names.isdisjoint(known)]
        if len(kept) == len(self.keys):
            return self
        return self.take(np.array(kept)) if kept else None


def draw_sample(datasets: Sequence[Dataset], project: Project) -> Sample | None:
    """At most `SAMPLE` rows, evenly spread over all; None where there are none."""
    total = sum(dataset.rows for dataset in datasets)
    if not total:
        return None
    wanted = np.linspace(0, total - 1, min(total, SAMPLE)).astype(np.int64)
    start = 0
    vectors, keys, known_as = [], [], []
    for dataset in datasets:
        rows = wanted[(wanted >= start) & (wanted < start + dataset.rows)] - start
        start += dataset.rows
        if not len(rows):
            continue
        lines = dataset.lines(["id", "label", "group", "uri", "text"], rows)
        key = dataset.key
        for block in dataset.chosen(rows):
            vectors.append(project(key.space, block, key.modality).cpu())
        keys += [_keys(key.dataset, line) for line in lines]
        known_as += [frozenset([line["uri"], line["text"]]) for line in lines]
    return Sample(torch.cat(vectors), keys, known_as)


def _keys(dataset: str, line: dict[str, object]) -> RowKeys:
    labels = line["label"] if isinstance(line["label"], list) else []
    keys = {("label", str(label)) for label in labels if label}
    if line["group"]:
        keys.add(("group", str(line["group"])))
    return frozenset([*keys, ("id", dataset, str(line["id"]))])


def unrelated_scores(
    queries: Sample, sample: Sample, score: Callable[[Tensor], np.ndarray]
) -> np.ndarray:
    """The scores of all unrelated pairs, ascending, float32.

    `score` gives those of joint vectors, (queries, joint) → (queries, sample).
    """
    number: dict[tuple[str, ...], int] = defaultdict(count().__next__)
    places = [[[number[key] for key in row] for row in one.keys] for one in (queries, sample)]
    first, second = (_incidence(rows, len(number)) for rows in places)
    related = (first @ second.T).toarray() > 0  # (queries, sample)
    return np.sort(score(queries.vectors)[~related])


def _incidence(rows: Sequence[Sequence[int]], width: int) -> csr_matrix:
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((place for row in rows for place in row), np.int64, ends[-1])
    return csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(rows), width))


def false_positives(scores: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The share of unrelated pairs, whose scores are `chance`, that score as high as each."""
    as_high = len(chance) - np.searchsorted(chance, scores, side="left")
    return np.asarray((as_high + 1) / (len(chance) + 1))


def least_known(queries: Sample, sample: Sample) -> float:
    """The least rate of false positives that the rows of two samples can tell, at most 1."""
    return min(1.0, COUNTED / min(len(queries.keys), len(sample.keys)))


@typed
def log_shares(
    scores: Float[np.ndarray, "queries found"], sample: Float[np.ndarray, "queries rows"]
) -> Float[np.ndarray, "queries found"]:
    """The logarithm of the share of a query's `sample` scores that are as high as each of `scores`.

    The highest fiftieth of a sample (ten at least) is taken to fall off exponentially, so that
    items that beat all of it are told apart: share(s) = share(u) exp(-(s - u) / (mean of the
    tail - u)) above its beginning u.
    """
    rows = sample.shape[1]
    tail = min(max(_LEAST_TAIL, math.ceil(_TAIL * rows)), rows - 1)
    logs = np.empty(scores.shape)
    for number, (found, others) in enumerate(zip(scores, sample, strict=True)):
        ordered = np.sort(others.astype(np.float64))  # ascending
        begins = ordered[rows - 1 - tail]
        scale = max(float((ordered[rows - tail :] - begins).mean()) if tail else 1.0, 1e-6)
        as_high = rows - np.searchsorted(ordered, found, side="left")
        logs[number] = np.where(
            found > begins,
            math.log(max(tail, 1) / rows) - (found - begins) / scale,
            np.log((as_high + 0.5) / (rows + 0.5)),
        )
    return logs
