"""Searching several datasets at once, of one modality or of many, in one space.

    places = open_places(store, [key], where={})
    query = Query(vector, {("clap", "audio"): 1.0})        # in the joint space, and what it is of
    for hits in search_places(store, joint, [query], places, k=5): ...

Items of one space and modality are ranked by their score, the cosine or what is left of it where
hubs are corrected. Those of several are ranked by how few of the unpaired items of their own kind
score as high for the query (chance.py): the modality that lies nearest fills no first page.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.embeddings.index import open_index, search
from cmcr.embeddings.reader import open_dataset
from cmcr.embeddings.search.chance import (
    SAMPLE,
    Sample,
    draw_sample,
    false_positives,
    least_known,
    log_shares,
    unrelated_scores,
)
from cmcr.embeddings.search.hubness import (
    NNN,
    Bank,
    Hubness,
    correction,
    open_bank,
    with_correction,
    with_one,
)
from cmcr.embeddings.search.places import Joint, Kind, Place
from cmcr.embeddings.search.where import COLUMNS, SPAN
from cmcr.errors import UsageError

log = logging.getLogger(__name__)

# The sample of each kind that was drawn last for a joint space, and of which datasets it is.
_DRAWN: WeakKeyDictionary[Joint, dict[Kind, tuple[tuple[str, ...], Sample | None]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class Query:
    """A unit vector in the joint space, and the weight of each kind that it is made of.

    `known_as` are the uris or texts of what is asked, which are part of no sample of others.
    """

    vector: Tensor  # (joint,)
    kinds: Mapping[Kind, float]
    known_as: Collection[str] = ()


@dataclass(frozen=True)
class Hit:
    """One item that was found. `score` ranks those of one kind, `share` those of several.

    `share` is how much of the unpaired items of its kind scores as high for this query, and
    `false_positives` how much of those that are unrelated to a query does; None where there is
    nothing to tell it by. Below `least_known` it is less than so few unpaired rows can tell.
    """

    dataset: str
    row: int
    rank: int
    cosine: float
    score: float
    share: float
    false_positives: float | None
    least_known: float | None
    item: Mapping[str, Any] = field(repr=False)  # id, uri, text, label, group, of a span start, end

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        left_out = ("item", "row", "least_known")
        fields = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**fields, "false_positives_known": self.known, **self.item}

    @property
    def known(self) -> bool:
        """Whether there are unpaired rows enough to tell `false_positives`."""
        told = (self.false_positives, self.least_known)
        return told[0] is not None and told[1] is not None and told[0] >= told[1]


def search_places(
    store: Path,
    joint: Joint,
    queries: Sequence[Query],
    places: Sequence[Place],
    *,
    k: int = 10,
    hubness: Hubness = "none",
    index: bool = False,
    most_false: float | None = None,
) -> list[list[Hit]]:
    """The `k` best items for each query, in the order of `queries`.

    With `index` a dataset's own FAISS index answers, approximately or not; the places must then be
    whole datasets in the joint space. With `most_false` items are left out that a larger share of
    unrelated ones equals, and it raises UsageError where nothing tells that. With `hubness` "nnn"
    scores are corrected; it raises UsageError where there are no rows to do it by.
    """
    found: list[list[Hit]] = [[] for _ in queries]
    groups: dict[tuple[tuple[Kind, float], ...], list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(tuple(query.kinds.items()), []).append(number)
    for kinds, numbers in groups.items():
        asked = [queries[number] for number in numbers]
        known = {name for query in asked for name in query.known_as}
        search_one = _Search(store, joint, dict(kinds), known, hubness, places)
        vectors = torch.stack([query.vector for query in asked])  # (queries, joint)
        hits = search_one.hits(vectors, k, index, most_false)
        for number, own in zip(numbers, hits, strict=True):
            found[number] = own
    return found


@dataclass(frozen=True)
class _Best:
    """The best of one kind for each query, (queries, ≤ k) each: a place, a row, score, r."""

    place: np.ndarray
    row: np.ndarray
    score: np.ndarray
    r: np.ndarray


@dataclass(frozen=True)
class _Search:
    """Queries of one composition in the places."""

    store: Path
    joint: Joint
    kinds: Mapping[Kind, float]
    known: Collection[str]
    hubness: Hubness
    places: Sequence[Place]

    def hits(
        self, vectors: Tensor, k: int, index: bool, most_false: float | None
    ) -> list[list[Hit]]:
        """The best of all kinds for each of (queries, joint)."""
        by_kind: dict[Kind, list[int]] = {}
        for number, place in enumerate(self.places):
            by_kind.setdefault(place.kind, []).append(number)
        parts = []
        for kind, numbers in by_kind.items():
            best = self._best(vectors, numbers, k, index)
            sample = self._unpaired(kind, self.known) or self._searched(numbers)
            r = self._corrections(sample.vectors)
            shares = log_shares(best.score, self._scores(vectors, sample, r))  # (queries, ≤ k)
            rates = self._rates(best.score, sample, r, most_false)
            least = None if self._alike is None else least_known(self._alike, sample)
            parts.append((best, shares, rates, least))
        several = len(parts) > 1
        found = []
        for query in range(len(vectors)):
            lines = [
                (best.place[query, at], best.row[query, at], best.score[query, at],
                 best.r[query, at], shares[query, at],
                 None if rates is None else rates[query, at], least)
                for best, shares, rates, least in parts
                for at in range(best.row.shape[1])
                if best.row[query, at] >= 0
            ]  # fmt: skip
            lines.sort(key=(lambda line: line[4]) if several else (lambda line: -line[2]))
            if most_false is not None:
                lines = [line for line in lines if line[5] is not None and line[5] <= most_false]
            found.append(lines[:k])
        return self._told(found)

    def _best(self, vectors: Tensor, numbers: Sequence[int], k: int, index: bool) -> _Best:
        """The best of one kind, by score."""
        count = len(vectors)
        best = _Best(*(np.empty((count, 0), kind) for kind in (int, int, np.float32, np.float32)))
        for number in numbers:
            place = self.places[number]
            if index:
                products, rows = open_index(place.dataset).search(vectors.numpy(), k)
                best = _merged(best, number, rows, products, np.zeros_like(products), k)
                continue
            asked = with_one(vectors) if self._banks else vectors
            start = 0
            for joint in place.blocks(self.joint):
                r = self._corrections(joint)  # (block,)
                items = with_correction(joint, r) if self._banks else joint
                products, rows = search(asked.numpy(), items.numpy(), k)  # (queries, ≤ k) each
                scores = 2 * products if self._banks else products
                own = place.rows[start : start + len(joint)]
                best = _merged(best, number, own[rows], scores, r.numpy()[rows], k)
                start += len(joint)
        return best

    @cached_property
    def _banks(self) -> Mapping[Kind, Bank]:
        """By which rows hubs are corrected, for each kind of the query; none where they are not."""
        if self.hubness != NNN:
            return {}
        keys = {kind: self.joint.unpaired(*kind) for kind in self.kinds}
        modalities = {modality for _, modality in self.kinds}
        searched = [
            (place.dataset.key, place.dataset.table(["id"])["id"])
            for place in self.places
            if place.dataset.key.modality in modalities
        ]
        return {kind: open_bank(self.store, keys[kind], searched, self.known) for kind in keys}

    def _corrections(self, items: Tensor) -> Tensor:
        """r of each item, (n, joint) → (n,): the mean over the kinds of the query, by weight."""
        total = sum(abs(weight) for weight in self.kinds.values())
        r = torch.zeros(len(items))
        for kind, bank in self._banks.items():
            share = abs(self.kinds[kind]) / total
            r += share * correction(items, bank.blocks(self.joint.project))
        return r

    def _scores(self, vectors: Tensor, sample: Sample, r: Tensor) -> np.ndarray:
        """(queries, rows of the sample), float32."""
        products = vectors @ sample.vectors.T
        return np.asarray(2 * products - r if self._banks else products)

    def _unpaired(self, kind: Kind, without: Collection[str] = ()) -> Sample | None:
        keys = [key for key in self.joint.unpaired(*kind) if key.folder(self.store).is_dir()]
        datasets = [open_dataset(self.store, key, check=False) for key in keys]
        there = tuple(dataset.fingerprint for dataset in datasets)
        drawn = _DRAWN.setdefault(self.joint, {})
        if kind not in drawn or drawn[kind][0] != there:
            drawn[kind] = there, draw_sample(datasets, self.joint.project)
        sample = drawn[kind][1]
        return sample and sample.without(without)

    def _searched(self, numbers: Sequence[int]) -> Sample:
        """A sample of what is searched in, where there are no unpaired rows of its kind."""
        there = [self.places[number].spread(SAMPLE) for number in numbers]
        vectors = torch.cat([block for place in there for block in place.blocks(self.joint)])
        untold = [frozenset[Any]()] * len(vectors)
        return Sample(vectors, untold, untold)

    @cached_property
    def _alike(self) -> Sample | None:
        """Queries like these, of unpaired rows: one of each kind, put together by weight."""
        samples = [self._unpaired(kind) for kind in self.kinds]
        if len(samples) == 1:
            return samples[0]
        drawn, random = [], np.random.default_rng(0)
        for sample in samples:
            if sample is None:
                return None
            drawn.append(sample.take(random.integers(len(sample.keys), size=SAMPLE)))
        weights = list(self.kinds.values())
        total = sum(weight * one.vectors for weight, one in zip(weights, drawn, strict=True))
        assert isinstance(total, Tensor)
        keys = [frozenset().union(*own) for own in zip(*(one.keys for one in drawn), strict=True)]
        return Sample(normalize(total, dim=1), keys, [frozenset()] * len(keys))

    def _rates(
        self, scores: np.ndarray, sample: Sample, r: Tensor, most_false: float | None
    ) -> np.ndarray | None:
        """The rate of false positives at each of `scores`."""
        chance = (
            np.empty(0)
            if self._alike is None
            else unrelated_scores(self._alike, sample, lambda own: self._scores(own, sample, r))
        )
        if most_false is not None and len(chance) and most_false * (len(chance) + 1) < 1:
            raise UsageError(
                f"{len(chance):,} pairs of unrelated items cannot tell a share of {most_false:g}",
                where=self.store,
                fix=f"--false-positives {1 / len(chance):.1g} or more",
            )
        if len(chance):
            assert self._alike is not None
            least = least_known(self._alike, sample)
            if most_false is not None and most_false < least:
                rows = min(len(self._alike.keys), len(sample.keys))
                log.warning(
                    "a share of %g is not known from %s unrelated rows: they tell %.1g or more",
                    most_false, f"{rows:,}", least,
                )  # fmt: skip
            return false_positives(scores, chance)
        if most_false is None:
            return None
        named = " and ".join(f"{space}/{modality}" for space, modality in self.kinds)
        raise UsageError(
            f"nothing tells how often unrelated items score as high: there are no unpaired rows of "
            f"{named}",
            where=self.store,
            fix="search without --false-positives, or connect with such rows as --memory",
        )

    def _told(self, found: list[list[tuple[Any, ...]]]) -> list[list[Hit]]:
        """Hits with what the store says of the items."""
        wanted: dict[int, list[int]] = {}
        for lines in found:
            for place, row, *_ in lines:
                wanted.setdefault(int(place), []).append(int(row))
        items: dict[tuple[int, int], dict[str, Any]] = {}
        for place, rows in wanted.items():
            dataset = self.places[place].dataset
            columns = [*COLUMNS, *(SPAN if set(SPAN) <= set(dataset.manifest.numbers) else ())]
            lines_of = dataset.lines(columns, np.array(rows))
            items |= {(place, row): line for row, line in zip(rows, lines_of, strict=True)}
        return [
            [
                Hit(
                    str(self.places[place].dataset.key),
                    int(row),
                    rank,
                    float((score + r) / 2 if self._banks else score),
                    float(score),
                    float(np.exp(share)),
                    None if rate is None else float(rate),
                    least,
                    items[int(place), int(row)],
                )
                for rank, (place, row, score, r, share, rate, least) in enumerate(lines, 1)
            ]
            for lines in found
        ]


def _merged(
    best: _Best, place: int, rows: np.ndarray, scores: np.ndarray, r: np.ndarray, k: int
) -> _Best:
    """The best k of what there was and of (queries, some) more; an index gives -1 for no row."""
    scores = np.where(rows < 0, -np.inf, scores)
    joined = [
        np.concatenate(two, axis=1)
        for two in (
            (best.place, np.full(rows.shape, place)),
            (best.row, rows),
            (best.score, scores),
            (best.r, r),
        )
    ]
    order = np.argsort(-joined[2], axis=1, kind="stable")[:, :k]
    return _Best(*(np.take_along_axis(array, order, axis=1) for array in joined))
