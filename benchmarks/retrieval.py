r"""How fast and in how much memory retrieval is measured, beside searches that measure nothing.

    python benchmarks/retrieval.py                              # 10,000 queries, 100,000 items
    python benchmarks/retrieval.py --queries 100000 --gallery 1000000 --dim 64 --rounds 1 \
        --ways search,instance --no-index

The first table, in seconds and as a multiple of the FAISS search in the same run:

product    the matrix product of queries and gallery in blocks, its result thrown away: the least
           that an exact answer takes
search     faiss.IndexFlatIP, the ten nearest of every query; its `add` is not timed
topk       torch: the product and `topk` of ten, in blocks
instance   `retrieval_metrics`, one match a query, and `intervals`: every metric of a results row
several    the same with five matches a query
class      the same with 1,000 classes, so that a query has a hundredth of a hundred thousand items
bank       the products of gallery and bank in blocks, thrown away: the least that correcting takes
corrected  `correction` by --bank unpaired rows, then `instance` on vectors that are one longer

All ways take turns, ROUNDS times after one that is not timed; printed are the medians of times and
of ratios, and the ratios' range. `memory` is the process's peak beyond what it held before queries,
gallery and bank were made, as a multiple of these; what a way leaves cached counts for later ones.

The second table is of indexes over the same gallery: `train_index`, `tune` and `measure` of
evaluate/tasks/index.py, with 1,000 of the queries. The vectors are drawn around 1,000 directions.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from math import isqrt
from pathlib import Path

import faiss  # noqa: TID253
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from cmcr.embeddings.index import search, train_index
from cmcr.embeddings.search.hubness import correction, with_correction, with_one
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.metrics import Measured, intervals, retrieval_metrics
from cmcr.evaluate.tasks.index import RECALL, measure, tune
from cmcr.evaluate.tasks.neighbours import TOP_K

CLASSES = 1000
BLOCK = 512
BANK_BLOCK = 65_536  # rows, as a store is read
SAMPLE = 1000


def main() -> None:
    """Measure what the command line asks for, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument(
        "--ways", default="product,search,topk,instance,several,class,bank,corrected"
    )
    parser.add_argument("--index", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(f"{args.threads} threads, {_processor()}, torch {torch.__version__}, ", end="")
    print(f"faiss {faiss.__version__}: {args.queries:,} by {args.gallery:,} by {args.dim}\n")
    before = _resident("VmRSS")
    centres = torch.randn(CLASSES, args.dim, generator=torch.Generator().manual_seed(0))
    queries, query_classes = draw(centres, args.queries, seed=1)
    gallery, gallery_classes = draw(centres, args.gallery, seed=2)
    bank, _ = draw(centres, args.bank, seed=3)
    each = torch.arange(args.gallery).numpy()
    one, five = (
        Matches(_keys(each[: args.queries], args.gallery), _keys(each // n, args.gallery))
        for n in (1, 5)
    )
    same_class = Matches(_keys(query_classes, CLASSES), _keys(gallery_classes, CLASSES))
    ways: dict[str, Callable[[], object]] = {
        "product": lambda: product(queries, gallery),
        "search": lambda: index.search(queries.numpy(), TOP_K),
        "topk": lambda: product(queries, gallery, TOP_K),
        "instance": lambda: intervals(retrieval_metrics(queries, gallery, one).per_query),
        "several": lambda: intervals(retrieval_metrics(queries, gallery, five).per_query),
        "class": lambda: intervals(retrieval_metrics(queries, gallery, same_class).per_query),
        "bank": lambda: product(gallery, bank),
        "corrected": lambda: intervals(corrected(queries, gallery, bank, one).per_query),
    }
    ways = {name: ways[name] for name in args.ways.split(",")}
    peaks = {name: _peak(ways[name]) - before for name in ways if name not in ("search",)}
    index = faiss.IndexFlatIP(args.dim)
    if "search" in ways:
        index.add(gallery.numpy())
    matrices = queries.nbytes + gallery.nbytes + bank.nbytes
    report(take_turns(ways, args.rounds), peaks, matrices)
    if args.index:
        report_indexes(queries[:SAMPLE].numpy(), gallery.numpy(), one)


def draw(centres: Tensor, items: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Unit vectors around `centres`, (items, dim), and the number of the centre of each."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(len(centres), (items,), generator=generator)
    vectors = torch.randn(items, centres.shape[1], generator=generator)  # (items, dim)
    for start in range(0, items, BLOCK):
        block = vectors[start : start + BLOCK]
        block += centres[classes[start : start + BLOCK]]
        block /= torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return vectors, classes.numpy()


def product(queries: Tensor, gallery: Tensor, k: int = 0) -> None:
    """The scores of all queries, a block at a time, and the `k` best of each."""
    buffer = torch.empty(BLOCK * len(gallery))
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]  # (block, dim)
        scores = buffer[: len(block) * len(gallery)].view(len(block), -1)  # (block, gallery)
        torch.mm(block, gallery.T, out=scores)
        if k:
            scores.topk(k, dim=1)


def corrected(queries: Tensor, gallery: Tensor, bank: Tensor, matches: Matches) -> Measured:
    """What `retrieval_metrics` says of the search that `bank` corrects for hubs."""
    r = correction(gallery, bank.split(BANK_BLOCK))
    return retrieval_metrics(with_one(queries), with_correction(gallery, r), matches)


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(seconds: dict[str, list[float]], peaks: dict[str, int], matrices: int) -> None:
    """Print the first table."""
    print("| way | seconds | times search | memory |\n|---|---:|---:|---:|")
    for name, times in seconds.items():
        ratio = ""
        if "search" in seconds:
            ratios = [one / other for one, other in zip(times, seconds["search"], strict=True)]
            middle = statistics.median(ratios)
            ratio = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        memory = f"{peaks[name] / matrices:.2f}" if name in peaks else ""
        print(f"| {name} | {statistics.median(times):.2f} | {ratio} | {memory} |", flush=True)


def report_indexes(queries: np.ndarray, gallery: np.ndarray, matches: Matches) -> None:
    """Print the second table."""
    items, dim = gallery.shape
    cells = 4 * isqrt(items)
    sample = Matches(matches.query_keys[: len(queries)], matches.gallery_keys)
    exact = search(queries, gallery, TOP_K)[1]  # (queries, k)
    print("\n| index | set to | recall of the exact ten | queries/s | ms alone | build s | MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    sketch = f"PQ{dim // 4}"
    for factory in ("Flat", f"IVF{cells},Flat", "HNSW32", f"IVF{cells},{sketch}", sketch):
        started = time.perf_counter()
        index = train_index(gallery, factory)
        seconds = time.perf_counter() - started
        setting = tune(index, factory, queries, exact, seconds=None)
        found = measure(lambda rows: index.search(rows, TOP_K)[1], queries, exact, sample)  # noqa: B023
        size = faiss.serialize_index(index).nbytes / 1e6
        print(
            f"| {factory} | {setting} | {found[RECALL]:.3f} | {found['qps']:,.0f} "
            f"| {found['query_ms']:.2f} | {seconds:.1f} | {size:,.0f} |",
            flush=True,
        )


def _keys(numbers: np.ndarray, width: int) -> csr_matrix:
    """One key an item: `Matches` without its names."""
    rows = np.arange(len(numbers) + 1)
    return csr_matrix((np.ones(len(numbers), bool), numbers, rows), shape=(len(numbers), width))


def _peak(way: Callable[[], object]) -> int:
    """The most bytes that the process holds while `way` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
    way()
    return _resident("VmHWM")


def _resident(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1]) * 1024


def _processor() -> str:
    names = [
        x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    return names[0].partition(": ")[2] if names else platform.machine()


if __name__ == "__main__":
    main()
