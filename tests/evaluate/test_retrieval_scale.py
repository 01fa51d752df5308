"""Many matches, other libraries' metrics, intervals, classes, failures, indexes and the gap.

pytest tests/evaluate/test_retrieval_scale.py
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_recall,
)

from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.index import choose_factory, search, train_index
from cmcr.embeddings.search.hubness import Bank
from cmcr.errors import CmcrError, StoreError, UsageError
from cmcr.evaluate import (
    Budget,
    IndexChoice,
    evaluate_arrays,
    evaluate_gap,
    evaluate_index,
    evaluate_retrieval,
    find_matches,
    parse_budget,
    rank_both_ways,
    results_table,
    retrieval_metrics,
    select,
    weak_spots,
)
from cmcr.evaluate.ranking import metrics
from cmcr.evaluate.ranking.metrics import CUTOFFS, MEANS, PerQuery, intervals
from cmcr.evaluate.ranking.rankings import per_class
from cmcr.evaluate.ranking.ranks import TIE, ranks_by_buckets, ranks_by_comparing
from cmcr.evaluate.ranking.related import distance
from cmcr.evaluate.tasks.gap import alignment, uniformity
from cmcr.evaluate.tasks.index import INDEX, RECALL, share_found, tune

SOUNDS, PHOTOS = Key("ear", "audio", "sounds"), Key("eye", "image", "photos")


def labelled(labels):
    """A table with the columns label and group."""
    return pa.table(
        {
            "label": pa.array([[str(label)] for label in labels], pa.list_(pa.string())),
            "group": pa.array([None] * len(labels), pa.string()),
        }
    )


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 120), st.integers(1, 4), st.integers(0, 1000))
def test_ranks_of_few_and_of_many_matches_are_counted_alike(matching, step, seed):
    """By comparison or by buckets, ties and near ties included, as the definition says."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 150)).round(step).astype(np.float32)
    scores += rng.choice([0, 5e-7, 3e-6], scores.shape).astype(np.float32)
    relevant = np.zeros((2, 150), bool)
    relevant[0, rng.permutation(150)[:matching]] = relevant[1, rng.integers(150)] = True
    gallery = pa.table(
        {
            "label": [[str(q) for q in (0, 1) if relevant[q, item]] for item in range(150)],
            "group": pa.array([None] * 150, pa.string()),
        }
    )
    matches = find_matches(labelled([0, 1]), gallery)
    given = torch.from_numpy(scores.copy())
    ranks = ranks_by_buckets(given, matches.block(0, 2))
    # A query of all scores has them with the items of an identity.
    compared = ranks_by_comparing(given, torch.eye(150), matches.block(0, 2))
    assert (compared == ranks).all()
    for query in (0, 1):
        own = np.sort(scores[query][relevant[query]])[::-1]
        others = scores[query][~relevant[query]]
        expected = [
            nth + 1 + (others >= score - np.float32(TIE)).sum() for nth, score in enumerate(own)
        ]
        assert ranks[query][: len(own)].tolist() == expected
        assert not ranks[query][len(own) :].any()


def test_metrics_agree_with_torchmetrics():
    rng = np.random.default_rng(0)
    queries, gallery = unit(40, 16), unit(90, 16, seed=1)
    labels = rng.integers(7, size=90)
    asked = rng.integers(8, size=40)  # nothing in the gallery has the label 7
    metrics = retrieval_metrics(
        queries, gallery, find_matches(labelled(asked), labelled(labels))
    ).metrics
    lines = [
        # torchmetrics takes a match whose score is not above zero for none.
        (1 + queries[row].double() @ gallery.double().T, torch.from_numpy(labels == asked[row]))
        for row in np.flatnonzero(asked < 7)
    ]
    assert metrics["queries_without_match"] == 40 - len(lines)
    theirs = {"mAP": [retrieval_average_precision(*line).item() for line in lines]}
    for k in CUTOFFS:
        theirs[f"hit_rate@{k}"] = [retrieval_hit_rate(*line, top_k=k).item() for line in lines]
        theirs[f"recall@{k}"] = [retrieval_recall(*line, top_k=k).item() for line in lines]
    for name, values in theirs.items():
        assert metrics[name] == pytest.approx(np.mean(values), abs=1e-6), name


def per_query(count, seed=0):
    rng = np.random.default_rng(seed)
    return PerQuery(np.arange(count), rng.integers(1, 9, count), rng.random((count, len(MEANS))))


def test_intervals_are_those_of_the_mean_and_the_same_every_time():
    found = per_query(2000)
    low, high = intervals(found)["mAP"]
    mean, error = found.summary()["mAP"], found.scores[:, MEANS.index("mAP")].std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), rel=0.01)
    assert intervals(found) == intervals(found)
    low, high = intervals(found)["median_rank"]
    assert low <= found.summary()["median_rank"] <= high
    assert all(low == high for low, high in intervals(per_query(1)).values())


@pytest.mark.parametrize("count", [20_000, 20_001])
def test_intervals_of_many_queries_are_those_of_all_resamples(count):
    """Of 20,000, as draws of how often each value that occurs is among the queries."""
    rng = np.random.default_rng(count)
    ranks = rng.geometric(0.1, count)
    columns = [ranks <= 1, ranks <= 5, ranks <= 10, ranks == 60, np.ones(count),
               ranks % 7 / 6, ranks % 3 * (ranks > 40), 1 / ranks,
               1 / np.log2(ranks + 1)]  # fmt: skip
    found = PerQuery(np.arange(count), ranks, np.column_stack(columns).astype(float))
    ends = intervals(found)
    for values, name in zip([*found.scores.T, ranks], ends, strict=True):
        kinds, often = np.unique(values, return_counts=True)
        drawn = rng.multinomial(count, often / count, size=20_000)  # (resamples, kinds)
        if name == "median_rank":
            sums = drawn.cumsum(axis=1)
            middle = [(sums < at).sum(axis=1) for at in ((count + 1) // 2, count // 2 + 1)]
            resampled = kinds[middle].mean(axis=0)
        else:
            resampled = drawn @ kinds / count
        low, high = np.quantile(resampled, (0.025, 0.975))
        least = max((high - low) / 40, 0.5 / count)  # a count is a whole number
        assert ends[name] == pytest.approx([low, high], abs=least), name
    assert ends["recall@1"][0] >= 0
    assert ends["recall@5"] == [1, 1]


def test_intervals_of_few_and_of_many_queries_agree(monkeypatch):
    found = per_query(3000)
    few = intervals(found)
    monkeypatch.setattr(metrics, "RESAMPLED", 0)
    for name, (low, high) in intervals(found).items():
        # A quantile of 1,000 resamples is a twentieth of the interval's half off, now and then two.
        assert (low, high) == pytest.approx(few[name], abs=0.1 * (few[name][1] - few[name][0]))


def test_classes_make_up_the_mean():
    found = per_query(30)
    names = [None if row % 4 == 3 else "ab"[row % 2] for row in range(30)]
    lines = per_class(found, pa.array(names))
    assert [(line["label"], line["queries"]) for line in lines] == [("a", 15), ("b", 8)]
    named = found.take(np.array([name is not None for name in names]))
    mean = sum(line["queries"] * line["metrics"]["mAP"] for line in lines) / 23
    assert mean == pytest.approx(named.summary()["mAP"])


# The gap


def test_the_gap_is_its_definition():
    queries, gallery = unit(50, 6), unit(50, 6, seed=1)
    matches = find_matches(labelled(range(50)), labelled(range(50)))
    x, y = queries.double(), gallery.double()
    assert distance(queries, gallery) == pytest.approx(float((x.mean(0) - y.mean(0)).norm()))
    aligned = float((x - y).square().sum(1).mean())
    assert alignment(queries, gallery, matches) == pytest.approx(aligned, rel=1e-5)
    kernel = [np.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(50) for j in range(i)]
    assert uniformity(queries) == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)
    assert uniformity(queries[:1].expand(9, -1)) == pytest.approx(0, abs=1e-5)


def test_alignment_with_several_matches_is_near_the_mean_over_all():
    queries, gallery = unit(300, 6), unit(80, 6, seed=1)
    asked, labels = np.arange(300) % 6, np.arange(80) % 5  # label 5 has no match
    matches = find_matches(labelled(asked), labelled(labels))
    squares = (2 - 2 * queries @ gallery.T).numpy()
    means = [squares[row][labels == asked[row]].mean() for row in range(300) if asked[row] < 5]
    assert alignment(queries, gallery, matches) == pytest.approx(np.mean(means), abs=0.05)


# Blocks and files


SIZES = {
    "cmcr.large.arrays.LARGE": st.just(1),
    "cmcr.evaluate.ranking.matches._BLOCK_PAIRS": st.integers(1, 400),
    "cmcr.evaluate.ranking.matches._BLOCK_ROWS": st.integers(1, 50),
    "cmcr.evaluate.ranking.ranks._ROWS": st.integers(1, 50),
    "cmcr.evaluate.ranking.ranks._COLUMNS": st.integers(1, 9).map(lambda words: 8 * words),
    "cmcr.evaluate.ranking.ranks._BLOCK_SCORES": st.integers(1, 2000),
    "cmcr.evaluate.ranking.ranks._MOST_SCORES": st.integers(1, 2000),
    "cmcr.evaluate.ranking.ranks._AT_ONCE": st.integers(1, 100),
    "cmcr.evaluate.ranking.rankings._BLOCK": st.integers(1, 50),
    "cmcr.evaluate.ranking.hubs._BLOCK": st.integers(1, 50),
}


def measured_arrays():
    """Rows of few and of many matches a query, of some that have none, and of no truth."""
    x, y = unit(46, 6), unit(70, 6, seed=1)
    asked = [[str(row % 8), str(row % 5)] if row % 3 else str(row % 9) for row in range(46)]
    labels = [str(row % 8) if row % 2 else ["1", "3"] for row in range(70)]
    return [*evaluate_arrays(x, y, labels=(asked, labels)), *evaluate_arrays(x, y, paired=False)]


@settings(deadline=None, max_examples=10)
@given(st.fixed_dictionaries(SIZES))
def test_blocks_of_any_size_give_the_same_results(sizes):
    whole = measured_arrays()
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(name, size)
        blocks = measured_arrays()
    for row, expected in zip(blocks, whole, strict=True):
        for name in ("metrics", "intervals"):  # sums of many matches are of other partial sums
            for metric, value in row.pop(name, {}).items():
                assert value == pytest.approx(expected[name][metric], rel=1e-12), metric
        assert row["task"] == expected["task"]
        for name in ("worst", "hubs", "unmatched"):
            assert row.get(name) == expected.get(name)


# On a store


@pytest.fixture
def world(make_dataset):
    """A connection without training between spaces of 8 and 12 dims: `make(labels...)`."""

    def make(sounds, photos, **columns):
        rng = np.random.default_rng(0)
        classes = rng.normal(size=(100, 8))
        turn = rng.normal(size=(8, 12))
        texts = rng.integers(100, size=200)
        ids = [f"t{row}" for row in range(200)]
        words = classes[texts]
        make_dataset("eye/text:texts", words + 0.1 * rng.normal(size=words.shape), id=ids)
        make_dataset("ear/text:texts", words @ turn + 0.1 * rng.normal(size=(200, 12)), id=ids)
        heard, seen = classes[sounds] @ turn, classes[photos]
        label = [str(x) for x in sounds]
        made = make_dataset(
            "ear/audio:sounds", heard + 0.3 * rng.normal(size=heard.shape), label=label
        )
        label = [str(x) for x in photos]
        make_dataset(
            "eye/image:photos", seen + 0.3 * rng.normal(size=seen.shape), label=label, **columns
        )
        store = made.folder.parents[2]
        config = {
            "spaces": ["eye", "ear"],
            "via": "text",
            "train": ["texts"],
            "method": "ridge",
            "ridge_strength": 0.01,
        }
        return store, connect(store, read_config(config), name="closed").path

    return make


def test_results_have_intervals_classes_and_failures(world):
    store, path = world(np.arange(40) % 9, np.arange(60) % 7)  # sounds 7 and 8 are not seen
    done = evaluate_retrieval(store, path, SOUNDS, PHOTOS)
    rows = {row["model"]: row for row in done.rows if row["query"] == "ear/audio:sounds"}
    assert "intervals" not in rows["chance"]
    row = rows["ridge"]
    assert row["metrics"]["queries_without_match"] == 8
    for name, (low, high) in row["intervals"].items():
        assert low <= row["metrics"][name] <= high, name
    assert [line["label"] for line in row["per_class"]] == list("0123456")
    ranks = [line["first_rank"] for line in row["worst"]]
    assert ranks == sorted(ranks, reverse=True)
    assert min(ranks, default=2) > 1
    assert "mAP of 7 classes" in weak_spots(done.rows)
    assert json.loads((done.folder / "retrieval.json").read_text())["results"] == done.rows
    console = Console(width=200)
    with console.capture() as capture:
        console.print(results_table(done.rows))
    assert "95 %" in capture.get()


def test_one_item_in_the_gallery_is_ranked_first(world):
    store, path = world([3, 3, 5], [3])
    row = evaluate_retrieval(store, path, SOUNDS, PHOTOS).rows[1]
    assert row["metrics"]["mAP"] == row["metrics"]["median_rank"] == 1
    assert row["metrics"]["gallery_size"] == row["metrics"]["queries_without_match"] == 1
    before, _, after, alone = evaluate_gap(store, path, SOUNDS, PHOTOS).rows[:2] + [
        row for row in evaluate_gap(store, path, SOUNDS, PHOTOS).rows if row["model"] == "ridge"
    ]
    assert before["metrics"].keys() == {"uniformity"}  # 12 dims and 8: no distance between them
    assert after["metrics"].keys() == {"distance", "alignment", "uniformity"}
    assert alone["metrics"].keys() == {"distance", "alignment"}  # one photo is not spread at all
    assert not evaluate_gap(store, path, SOUNDS, PHOTOS).fresh


def test_ids_that_occur_twice_are_refused(world, monkeypatch):
    store, _ = world([1, 2], [1, 2, 2])
    dataset = open_dataset(store, PHOTOS)
    table = dataset.table(["id", "label", "group"]).set_column(0, "id", [["a", "b", "a"]])
    monkeypatch.setattr(type(dataset), "table", lambda self, columns: table)
    with pytest.raises(StoreError, match="eye/image:photos occur more than once, 'a' 2 times"):
        select(dataset)


def test_blocks_of_the_store_are_the_rows_that_were_selected(world):
    store, path = world(np.arange(40) % 9, np.arange(60) % 9, take=[str(x % 3) for x in range(60)])
    photos = open_dataset(store, PHOTOS)
    picked = select(photos, {"take": ["1"]})
    assert (picked.embeddings() == photos.embeddings()[1::3]).all()
    model = load_connection(path)
    whole = select(photos).projected(model)  # (60, joint)
    assert torch.allclose(picked.projected(model), whole[1::3], atol=1e-6)
    assert picked.spread(5).table["id"].to_pylist() == ["1", "13", "28", "43", "58"]
    sounds = select(open_dataset(store, SOUNDS))
    assert len(rank_both_ways({"ridge": model}, sounds, picked)) == 4


def test_each_filter_has_a_folder_of_its_own(world):
    store, path = world(np.arange(40) % 9, np.arange(60) % 9)
    full = evaluate_gap(store, path, SOUNDS, PHOTOS)
    folders = {full.folder}
    for side, labels in (("query", ["1", "2"]), ("gallery", ["1", "2"]), ("query", ["1"])):
        filters = {f"{side}_where": {"label": labels}}
        some = evaluate_gap(store, path, SOUNDS, PHOTOS, **filters)
        assert some.fresh
        chosen = "_".join([side, "label", *labels])
        assert some.folder.name.startswith(f"{full.folder.name}--{chosen}-")
        assert not evaluate_gap(store, path, SOUNDS, PHOTOS, **filters).fresh
        folders.add(some.folder)
    assert len(folders) == 4
    again = evaluate_gap(store, path, SOUNDS, PHOTOS)
    assert (again.fresh, again.rows) == (False, full.rows)


SMALL = {
    "cmcr.large.arrays.LARGE": 1,
    "cmcr.large.arrays._BLOCK": 7,
    "cmcr.large.tables.LARGE": 1,
    "cmcr.large.tables.PART_ROWS": 9,
    "cmcr.evaluate.ranking.rankings._BLOCK": 16,
    "cmcr.embeddings.search.hubness._BLOCK": 16,
    "cmcr.evaluate.tasks.neighbours._BLOCK_QUERIES": 16,
}


@pytest.mark.parametrize("hubness", ["none", "nnn"])
def test_files_and_blocks_change_no_result(world, tmp_path, hubness):
    """As with more rows than are held in memory: what is written is the same, to the last bit."""
    store, path = world(np.arange(40) % 9, np.arange(60) % 7)
    given = (store, path, SOUNDS, PHOTOS)
    done = []
    for folder in ("held", "in-blocks"):
        with pytest.MonkeyPatch.context() as patch:
            for name, size in SMALL.items() if folder == "in-blocks" else ():
                patch.setattr(name, size)
            patch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])
            banks = "cmcr.evaluate.tasks.retrieval.open_banks"
            patch.setattr(banks, lambda opened, both: [Bank([(one.dataset, one.rows)])
                                                       for one in both])  # fmt: skip
            done.append(evaluate_retrieval(*given, hubness=hubness, out=tmp_path / folder))
    held, blocks = done
    assert blocks.rows == held.rows
    for name in ("per-query.parquet", "neighbours.parquet"):
        one, other = (pq.read_table(each.folder / name) for each in done)
        assert one.equals(other), name


def test_small_products_have_one_thread(world, monkeypatch):
    store, path = world(np.arange(40) % 9, np.arange(60) % 9)
    model = load_connection(path)
    seen = []

    def project(*arguments):
        seen.append(torch.get_num_threads())
        return type(model).project(model, *arguments)

    monkeypatch.setattr(model, "project", project)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        items = [select(open_dataset(store, key)) for key in (SOUNDS, PHOTOS)]
        rank_both_ways({"ridge": model}, *items)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


# Indexes


def test_an_index_is_measured_kept_and_used_again(world):
    store, path = world(np.arange(60), np.arange(600) % 100)
    choice = IndexChoice("IVF15,Flat", Budget())
    done = evaluate_index(store, path, SOUNDS, PHOTOS, choice)
    flat, cells = done.rows
    assert (flat["model"], flat["task"]) == ("Flat", "index")
    assert cells["model"].startswith("IVF15,Flat nprobe=")
    assert flat["metrics"][RECALL] == 1
    assert 0.95 <= cells["metrics"][RECALL] <= 1
    assert cells["metrics"]["index_mb"] == (done.folder / INDEX).stat().st_size / 1e6
    assert min(cells["metrics"].values()) > 0
    exact = evaluate_retrieval(store, path, SOUNDS, PHOTOS).rows
    ridge = next(row for row in exact if row["model"] == "ridge")
    assert flat["metrics"]["hit_rate@1"] == ridge["metrics"]["hit_rate@1"]
    assert not evaluate_index(store, path, SOUNDS, PHOTOS, choice).fresh
    built = (done.folder / INDEX).stat().st_mtime_ns
    some = evaluate_index(store, path, SOUNDS, PHOTOS, choice, query_where={"label": ["1", "2"]})
    assert (some.fresh, some.folder == done.folder) == (True, False)
    assert (done.folder / INDEX).stat().st_mtime_ns == built  # other queries, the same index
    for name in ("build_s", "index_mb"):
        assert some.rows[1]["metrics"][name] == cells["metrics"][name]
    assert not evaluate_index(store, path, SOUNDS, PHOTOS, choice).fresh
    (done.folder / INDEX).write_bytes(b"damaged")
    evaluate_index(store, path, SOUNDS, PHOTOS, choice, query_where={"label": ["3"]})
    assert (done.folder / INDEX).stat().st_size == cells["metrics"]["index_mb"] * 1e6
    with pytest.raises(UsageError, match="cannot build an index 'Nonsense'"):
        evaluate_index(store, path, SOUNDS, PHOTOS, IndexChoice("Nonsense", Budget()))


def test_the_time_of_a_query_bounds_how_far_an_index_looks(world):
    store, path = world(np.arange(60), np.arange(600) % 100)
    choice = IndexChoice("IVF15,PQ1", Budget(query_seconds=1e-9))
    done = evaluate_index(store, path, SOUNDS, PHOTOS, choice)
    assert done.rows[1]["model"] == "IVF15,PQ1 nprobe=1"


def test_an_index_looks_no_further_than_it_finds_more():
    gallery, queries = unit(2000, 16).numpy(), unit(50, 16, seed=1).numpy()
    exact = search(queries, gallery, 10)[1]
    sketched, whole = (train_index(gallery, factory) for factory in ("IVF32,PQ1", "IVF32,Flat"))
    looks = tune(sketched, "IVF32,PQ1", queries, exact, None)
    assert int(looks.removeprefix("nprobe=")) < 32
    tune(whole, "IVF32,Flat", queries, exact, None)
    assert share_found(whole.search(queries, 10)[1], exact) >= 0.95


@pytest.mark.parametrize(
    ("memory", "seconds", "chosen"),
    [
        (None, None, "Flat"),
        ("4G", None, "Flat"),
        ("4G", "10ms", "HNSW32"),
        ("2.1G", "10ms", "IVF4000,Flat"),
        ("300M", "10ms", "IVF4000,PQ256"),
        ("100M", None, "IVF4000,PQ64"),
    ],
)
def test_a_budget_chooses_the_first_index_that_fits(memory, seconds, chosen):
    assert choose_factory(1_000_000, 512, parse_budget(memory, seconds)) == chosen


def test_a_budget_that_nothing_fits_names_the_least():
    with pytest.raises(UsageError, match="no index of 1,000,000 items") as error:
        choose_factory(1_000_000, 512, parse_budget("1M", None))
    least = error.value.fix.split()[1]
    assert choose_factory(1_000_000, 512, parse_budget(least, None)) == "IVF4000,PQ8"


@pytest.mark.parametrize("budget", [("4", None), ("4X", None), (None, "10"), (None, "0ms")])
def test_a_budget_that_cannot_be_read_is_refused(budget):
    if budget == ("4", None):
        assert parse_budget(*budget) == Budget(memory=4)
        return
    with pytest.raises(CmcrError, match="no amount above zero"):
        parse_budget(*budget)
