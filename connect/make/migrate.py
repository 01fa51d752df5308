"""`cmcr migrate`: a new model over an old index: its queries are mapped into the old space.

    done = migrate(store, "clip", "clip-L", "image", name="clip-L-in-clip")
    done.connected.path, done.method, done.figures

The connection keeps the old space, and every index over it, as it is: `procrustes`, `ridge`,
`ex-cca`, `kernel` or `ex-mcr` from the new space into the old one, fitted on items that both have
embedded.

**What is measured.** A quarter of the common items (2,048 at most) is held out: no method is fitted
on them or chosen by them. Each is a query among the others that are held out: among those that the
mapping was fitted on it would be found too well. More items are harder to search among.

    re-embedding    embedded by the new model, among items embedded by the new model
    mapped          embedded by the new model and mapped, among items embedded by the old one
    no mapping      the same without the mapping; where dimensions differ, a random order
    old model       embedded by the old model, among items embedded by the old one

`neighbours@10` is the share of the ten items that re-embedding finds first which are found among
the first ten. It needs no labels, is 1 for re-embedding, and cannot be expected to exceed what the
old model has, of whose vectors the index is. `recall@10` is the share of an item's matches among
the first ten, those of the same `group`, or of a common `label` where neither has a group; where no
held-out items match it is `neighbours@10`. `kept` is recall@10 over that of re-embedding, with a
bootstrap interval over queries of 95 %. (Drift-Adapter, arXiv 2509.23471, reports such a share.)

`auto` takes the closed form with the best recall@10 in cross-validation among the other items.
`ex-mcr` trains a residual on `ex-cca`, and is tried only where it is named. What is taken is fitted
again on all items.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.connect.config import read_config
from cmcr.connect.connection.projectors import Projector
from cmcr.connect.make.pair import Connected, connect, no_more_threads_than_cores
from cmcr.connect.methods.problem import Data, Problem, pose
from cmcr.connect.methods.solve import cross_validated, fit, judged, start, with_schedule
from cmcr.connect.spaces.datasets import SpaceData, find_bridge
from cmcr.devices import float32
from cmcr.embeddings import Modality, list_datasets
from cmcr.errors import UsageError, near

K = 10
HELD_OUT = 0.25
FEW = 10 * K  # items, of which the first ten are more than a tenth
CLOSED = ("ex-cca", "procrustes", "ridge", "kernel")  # the one of equals comes first
METHODS = (*CLOSED, "ex-mcr")
DRAWS = 1_000  # of the bootstrap

Way = Literal["re-embedding", "mapped", "no mapping", "old model"]


@dataclass(frozen=True)
class Figure:
    """One way to search, over the held-out items; `kept` is None for re-embedding itself."""

    way: Way
    recall: float
    neighbours: float
    kept: float | None = None
    interval: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For tables and `--json`."""
        low, high = self.interval or (None, None)
        return {
            "search": self.way,
            f"recall@{K}": self.recall,
            "kept": self.kept,
            "from": low,
            "to": high,
            f"neighbours@{K}": self.neighbours,
        }


@dataclass(frozen=True)
class Migrated:
    """The connection, by which method, and what it does with `held` items that it did not see."""

    connected: Connected
    method: str
    tried: Mapping[str, float]  # recall@10 in cross-validation, of each that was compared
    held: int
    labelled: bool  # whether recall is by groups or labels
    figures: Sequence[Figure]

    @property
    def mapped(self) -> Figure:
        """What the mapping does."""
        return next(one for one in self.figures if one.way == "mapped")

    def __str__(self) -> str:
        by = "items of the same group or label" if self.labelled else "what the new model finds"
        of = f"re-embedding's recall@{K} on {self.held:,} held-out items, by {by}"
        if self.mapped.interval is None:
            return f"{self.connected}\n  what it keeps cannot be said: {of}, is 0"
        low, high = self.mapped.interval
        return (
            f"{self.connected}\n  keeps {self.mapped.kept:.3f} ({low:.3f} to {high:.3f}) of {of}"
            + ("; so few items say little" if self.held < FEW else "")
        )


def migrate(
    store: Path,
    old: str,
    new: str,
    via: Modality,
    *,
    name: str,
    method: str = "auto",
    train: Sequence[str] = (),
    memory: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    replace: bool = False,
) -> Migrated:
    """Connect `new` into `old` by the items of `via` that both embedded, and measure it.

    `train` are datasets, else all that both spaces have. `memory`, as for `connect`, are datasets
    of another modality, which is then centred on its own. `method` is one of METHODS, or "auto".
    Raises UsageError for spaces without common datasets or another method, MismatchError for fewer
    than ten common items, and what `connect` raises.
    """
    if method not in ("auto", *METHODS):
        fix = near(method, ("auto", *METHODS))
        raise UsageError(f"{method} does not keep the old space as it is", fix=fix)
    for space in (old, new):
        if space not in (names := sorted({key.space for key in list_datasets(store)})):
            raise UsageError(f"the store has no space {space}", where=store, fix=near(space, names))
    bridge = find_bridge(store, new, [old], via=via, train=train)
    fields = {"spaces": (new, old), "via": via, "train": bridge.train, "memory": memory}
    config = read_config(fields | {"seed": seed, "validation": HELD_OUT, "method": "ex-cca"})
    with no_more_threads_than_cores():
        whole = pose(store, config, device)
        seen = whole.on(whole.data.part(whole.data.rows[0], np.arange(0)))
        matches = _Matches(whole.data)
        chosen, tried = _choose(seen, method, matches)
        with TemporaryDirectory() as left:
            projectors = _solved(chosen, Path(left))
        trial = _Trial(whole.data, matches)
        figures = _figures(trial, projectors[0], via, seed)
    kept = ("method", "projector", "centric")
    taken = {name: getattr(chosen.config, name) for name in kept}
    final = read_config(fields | {"seed": seed} | taken)
    connected = connect(store, final, name=name, device=device, replace=replace)
    held = len(whole.data.rows[1])
    labelled = trial.matches is not None
    return Migrated(connected, chosen.config.model_name, tried, held, labelled, figures)


def _variant(problem: Problem, method: str) -> Problem:
    """The method, with nothing left open; what is trained starts from `ex-cca`."""
    if method == "ex-mcr":
        return with_schedule(problem.variant(method=method, projector="residual"))
    return judged(problem.variant(method=method), cross_validated)[0]


def _solved(problem: Problem, folder: Path) -> tuple[Projector, Projector]:
    if not problem.config.trained:
        return start(problem)
    return fit(problem, folder)[0]


def _choose(seen: Problem, method: str, matches: "_Matches") -> tuple[Problem, dict[str, float]]:
    """The method that is named, or the best by cross-validation; where none can be, the first."""
    if method != "auto":
        return _variant(seen, method), {}
    candidates = {name: _variant(seen, name) for name in CLOSED}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLOSED}
    for fold in seen.data.folds:
        trial = _Trial(fold, matches)
        for name, candidate in candidates.items():
            each = trial.mapped(start(candidate.on(fold))[0], seen.config.via)
            found[name].append((_mean(each[0]), _mean(each[1])))
    # Where recall says nothing, as among few items, neighbours do.
    tried = {name: tuple(np.mean(each, axis=0)) for name, each in found.items() if each}
    taken = max(tried, key=tried.__getitem__, default=CLOSED[0])
    return candidates[taken], {name: float(recall) for name, (recall, _) in tried.items()}


class _Matches:
    """Which items match: the same group, else a common label; `known` where any two do."""

    def __init__(self, data: Data) -> None:
        said = list(_said(data.spaces[0]))
        names = [said[row] for row in data.pairs.first.rows]
        count = Counter(name for own in names for name in own)
        self.known = all(names) and any(times > 1 for times in count.values())
        number = {name: place for place, name in enumerate(count)}
        self.numbers = [[number[name] for name in own] for own in names]

    def among(self, rows: np.ndarray) -> Tensor | None:
        """(n, n) bool, no item with itself; None where nothing says it, or none of them match."""
        if not self.known:
            return None
        same = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        holders: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            for name in self.numbers[row]:
                holders.setdefault(name, []).append(place)
        for places in holders.values():
            same[np.ix_(places, places)] = True
        return same if same.fill_diagonal_(False).any() else None


def _said(space: SpaceData) -> Iterator[list[tuple[str, str]]]:
    """What each row of the bridge is: its group, else its labels."""
    for dataset in space.bridge:
        table = dataset.table(["group", "label"])
        for group, labels in zip(*(table[name].to_pylist() for name in ("group", "label")),
                                 strict=True):  # fmt: skip
            yield [("group", group)] if group else [("label", label) for label in labels or []]


class _Trial:
    """The held-out items, each a query among the others."""

    def __init__(self, data: Data, matches: _Matches) -> None:
        held = data.pairs.subset(data.rows[1])
        self.new, self.old = (
            normalize(float32(rows[:], "cpu"), dim=1) for rows in (held.first, held.second)
        )  # (n, D) each
        self.matches = matches.among(data.rows[1])

    def ways(self, projector: Projector, via: Modality) -> dict[Way, Tensor]:
        """The first ten of each query, (queries, ≤ 10), each way."""
        with torch.no_grad():
            mapped = projector.to("cpu").project(self.new, via)
        return {
            "re-embedding": self._first(self.new @ self.new.T),
            "mapped": self._first(mapped @ self.old.T),
            "no mapping": self._first(self._unmapped()),
            "old model": self._first(self.old @ self.old.T),
        }

    def _unmapped(self) -> Tensor:
        if self.new.shape == self.old.shape:
            return self.new @ self.old.T
        return torch.rand(len(self.new), len(self.old), generator=torch.Generator().manual_seed(0))

    def _first(self, scores: Tensor) -> Tensor:
        """Of (n, n), the item itself left out."""
        scores = scores.fill_diagonal_(-torch.inf)
        return scores.topk(min(K, len(scores) - 1), dim=1).indices

    def measured(self, fresh: Tensor, found: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """recall@10 of the queries that have a match, and neighbours@10 of all."""
        kept = (found[:, :, None] == fresh[:, None, :]).any(dim=2).float().mean(dim=1)
        if self.matches is None:
            return kept.numpy(), kept.numpy()
        have = self.matches.sum(dim=1)  # (queries,)
        recall = self.matches.gather(1, found).sum(dim=1)[have > 0] / have[have > 0]
        return recall.numpy(), kept.numpy()

    def mapped(self, projector: Projector, via: Modality) -> tuple[np.ndarray, np.ndarray]:
        """`measured` of the mapping."""
        ways = self.ways(projector, via)
        return self.measured(ways["re-embedding"], ways["mapped"])


def _figures(trial: _Trial, projector: Projector, via: Modality, seed: int) -> list[Figure]:
    ways = trial.ways(projector, via)
    each = {way: trial.measured(ways["re-embedding"], found) for way, found in ways.items()}
    fresh = each["re-embedding"][0]
    return [
        Figure(way, _mean(recall), _mean(neighbours), *_kept(way, recall, fresh, seed))
        for way, (recall, neighbours) in each.items()
    ]


def _kept(
    way: Way, recall: np.ndarray, fresh: np.ndarray, seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """The ratio of the means, and where 95 % of its bootstrap draws lie."""
    if way == "re-embedding" or not fresh.any():
        return None, None
    rows = np.random.default_rng(seed).integers(0, len(fresh), (DRAWS, len(fresh)))
    drawn = recall[rows].mean(axis=1) / np.maximum(fresh[rows].mean(axis=1), 1e-12)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return _mean(recall) / _mean(fresh), (float(low), float(high))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
