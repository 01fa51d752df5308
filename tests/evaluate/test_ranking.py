"""Retrieval metrics against their definitions restated in float64, ties included.

pytest tests/evaluate/test_ranking.py
"""

from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcr.errors import CmcrError
from cmcr.evaluate.ranking import ranks
from cmcr.evaluate.ranking.matches import find_matches
from cmcr.evaluate.ranking.metrics import CUTOFFS, chance_metrics, retrieval_metrics
from cmcr.evaluate.ranking.ranks import ranks_by_buckets, ranks_by_comparing


def items(labels=None, groups=None):
    """A table with the columns label and group."""
    rows = len(labels if labels is not None else groups)
    labels = labels if labels is not None else [None] * rows
    return pa.table(
        {
            "label": pa.array(
                [[x] if isinstance(x, str) else x for x in labels], pa.list_(pa.string())
            ),
            "group": pa.array(groups if groups is not None else [None] * rows, pa.string()),
        }
    )


def orders(scores, relevant):
    """The gallery as each query ranks it: by score, a non-match before a match of equal score."""
    for line, matching in zip(scores, relevant, strict=True):
        yield sorted(range(len(line)), key=lambda item: (-line[item], matching[item]))


def restated(orders, relevant):
    """The metrics by their definitions, from the order that each query gives the gallery."""
    hits, recalls, precisions, of_ten, gains, firsts = [], [], [], [], [], []
    for order, matching in zip(orders, relevant, strict=True):
        total = sum(matching)
        if not total:
            continue
        found = [matching[item] for item in order]
        hits.append([any(found[:k]) for k in CUTOFFS])
        recalls.append([sum(found[:k]) / total for k in CUTOFFS])
        precisions.append(
            sum(sum(found[: rank + 1]) / (rank + 1) for rank, match in enumerate(found) if match)
            / total
        )
        of_ten.append(
            sum(
                sum(found[: rank + 1]) / (rank + 1)
                for rank in range(min(10, len(found)))
                if found[rank]
            )
            / min(total, 10)
        )
        discounts = [1 / np.log2(2 + place) for place in range(10)]
        gained = sum(discount for discount, match in zip(discounts, found, strict=False) if match)
        gains.append(gained / sum(discounts[: int(total)]))
        firsts.append(found.index(True) + 1)
    return {
        **{f"hit_rate@{k}": x for k, x in zip(CUTOFFS, np.mean(hits, axis=0), strict=True)},
        **{f"recall@{k}": x for k, x in zip(CUTOFFS, np.mean(recalls, axis=0), strict=True)},
        "mAP@10": np.mean(of_ten),
        "mAP": np.mean(precisions),
        "nDCG@10": np.mean(gains),
        "median_rank": np.median(firsts),
        "gallery_size": len(relevant[0]),
        "queries_without_match": sum(not any(matching) for matching in relevant),
    }


@st.composite
def rankings(draw):
    """Scores on a coarse grid, so that many are equal, and what matches by label or group."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 25))
    grid = st.integers(-4, 4).map(lambda step: step / 4)
    scores = draw(
        st.lists(
            st.lists(grid, min_size=gallery, max_size=gallery), min_size=queries, max_size=queries
        )
    )
    names = st.sampled_from("abc")
    one = st.tuples(st.none() | names, st.lists(names, max_size=2))
    return scores, *(
        draw(st.lists(one, min_size=size, max_size=size)) for size in (queries, gallery)
    )


def match(one, other):
    if one[0] is not None and other[0] is not None:
        return one[0] == other[0]
    return bool(set(one[1]) & set(other[1]))


@settings(deadline=None)
@given(rankings())
def test_metrics_are_their_definitions_and_ties_count_against_us(ranking):
    scores, queries, gallery = ranking
    relevant = [[match(query, item) for item in gallery] for query in queries]
    tables = [items([x[1] for x in side], [x[0] for x in side]) for side in (queries, gallery)]
    matches = find_matches(*tables)
    assert (matches.block(0, len(queries)).toarray() == np.array(relevant)).all()
    assert (matches.counts() == np.sum(relevant, axis=1)).all()
    # The scores themselves as embeddings: a query picks its column of the gallery.
    arguments = (torch.eye(len(queries)), torch.tensor(scores).T.contiguous())
    if not np.any(relevant):
        with pytest.raises(CmcrError, match="no query has a match"):
            retrieval_metrics(*arguments, matches)
        return
    measured = retrieval_metrics(*arguments, matches)
    assert measured.metrics == pytest.approx(restated(orders(scores, relevant), relevant))


def test_blocks_of_queries_change_nothing():
    rng = np.random.default_rng(0)
    queries, gallery = (torch.from_numpy(rng.normal(size=(n, 8))).float() for n in (23, 31))
    matches = find_matches(*(items(list(rng.choice(list("abcde"), n))) for n in (23, 31)))
    whole = retrieval_metrics(queries, gallery, matches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_BLOCK_SCORES", 100)
        blocks = retrieval_metrics(queries, gallery, matches)
    assert blocks.metrics == pytest.approx(whole.metrics)
    assert blocks.precision == pytest.approx(whole.precision)
    assert whole.precision.mean() == pytest.approx(whole.metrics["mAP"], abs=0.05)


def test_equal_vectors_tie_wherever_they_lie():
    """float32 scores of one vector differ from column to column; they are ties all the same."""
    rng = np.random.default_rng(0)
    vector = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(1, 512))).float())
    queries = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(7, 512))).float())
    for size in (2, 7, 50, 101):
        matches = find_matches(items(["a"] * 7), items(["a"] + ["b"] * (size - 1)))
        found = retrieval_metrics(queries, vector.expand(size, -1).contiguous(), matches)
        assert found.metrics["median_rank"] == size
        assert found.metrics["hit_rate@1"] == 0


def test_reverse_swaps_queries_and_gallery():
    matches = find_matches(items(["a", "b", "b"]), items(["b", "a"]))
    assert (matches.reverse().block(0, 2).toarray() == matches.block(0, 3).toarray().T).all()


def test_groups_come_before_labels_and_empty_names_are_none():
    query = items(["a", "a", "", None], ["1", None, "", ""])
    gallery = items(["a", "b", "a", ""], ["2", "1", None, ""])
    assert find_matches(query, gallery).block(0, 4).toarray().tolist() == [
        [False, True, True, False],
        [True, False, True, False],
        [False, False, False, False],
        [False, False, False, False],
    ]


def test_classes_are_found_by_either_spelling():
    """ModelNet40's folders are `night_stand`, its prompts are of "night stand"."""
    folders = items(["night_stand", "flower_pot", "sofa"], ["g_1", None, None])
    prompts = items(["night stand", "sofa", "night stand"], [None, None, "g 1"])
    assert find_matches(folders, prompts).block(0, 3).toarray().tolist() == [
        [True, False, False],
        [False, False, False],
        [False, True, False],
    ]


def test_ranks_of_several_matches():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4]])
    matches = find_matches(items(["a", "b"]), items(["a", "a", "b", "a"]))
    for found in (
        ranks_by_buckets(scores, matches.block(0, 2)),
        ranks_by_comparing(scores, torch.eye(4), matches.block(0, 2)),
    ):
        assert found.tolist() == [[1, 3, 4], [2, 0, 0]]


def test_a_vector_that_is_not_finite_is_refused():
    queries = torch.tensor([[torch.nan, 0.0]])
    with pytest.raises(CmcrError, match="NaN"):
        retrieval_metrics(queries, torch.eye(2), find_matches(items(["a"]), items(["a", "b"])))


@pytest.mark.parametrize("counts", [(1,), (2, 2), (0, 1, 3), (5, 1), (6,)])
def test_chance_is_the_mean_over_every_order(counts):
    gallery = 6
    relevant = [[item < count for item in range(gallery)] for count in counts]
    every = list(permutations(range(gallery)))
    expected = [restated([order] * len(counts), relevant) | {"order": order} for order in every]
    chance = chance_metrics(np.array(counts), gallery)
    cut = [f"{kind}@{k}" for kind in ("hit_rate", "recall") for k in CUTOFFS]
    for name in [*cut, "mAP@10", "mAP", "nDCG@10"]:
        assert chance[name] == pytest.approx(np.mean([row[name] for row in expected])), name
    firsts = [
        min(order.index(item) for item in range(count)) + 1
        for order in every
        for count in counts
        if count
    ]
    assert chance["median_rank"] == np.quantile(firsts, 0.5, method="inverted_cdf")
    assert chance["queries_without_match"] == counts.count(0)


def test_chance_is_the_mean_of_random_rankings():
    rng = np.random.default_rng(0)
    gallery = items(list(rng.choice(list("abcdef"), 200)))
    query = items(list("abcdef") * 500)
    matches = find_matches(query, gallery)
    chance = chance_metrics(matches.counts(), matches.gallery)
    queries = torch.eye(3000)
    scores = torch.from_numpy(rng.random((200, 3000), np.float32))
    measured = retrieval_metrics(queries, scores, matches).metrics
    assert measured == pytest.approx(chance, rel=0.1, abs=0.01)


@pytest.mark.parametrize("matches", [1, 3, 12])
def test_chance_of_map_at_ten_is_its_definition(matches):
    """E[AP@10] over all orders: rank i and rank j < i are both matches with R(R-1) / N(N-1)."""
    gallery = 15
    alone, both = matches / gallery, matches * (matches - 1) / (gallery * (gallery - 1))
    expected = sum((alone + (i - 1) * both) / i for i in range(1, 11)) / min(matches, 10)
    assert chance_metrics(np.array([matches]), gallery)["mAP@10"] == pytest.approx(expected)


def test_chance_without_matches_is_refused():
    with pytest.raises(CmcrError, match="no query has a match"):
        chance_metrics(np.array([0, 0]), 5)


def test_one_item_is_found_for_certain():
    matches = find_matches(items(groups=["x"]), items(groups=["x"]))
    found = retrieval_metrics(torch.eye(1), torch.eye(1), matches).metrics
    assert found == chance_metrics(matches.counts(), 1)
    assert found["mAP"] == found["hit_rate@1"] == found["median_rank"] == 1
