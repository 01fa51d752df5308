"""An approximate FAISS index over the projected gallery, measured beside the exact search.

    choice = IndexChoice("IVF1000,PQ64", Budget(query_seconds=0.01))
    done = evaluate_index(store, store / "connections" / "clip-clap", speech, photos, choice)
    done.rows            # Flat, then the index: recall of the exact answer, speed, time, size

FOLDER/index.json       the rows
       index.faiss      the index, memory-mapped and used again while connection, gallery and
                        factory string stay the same; index.about.json says what it was built from

The index lies in the folder of all queries, so that it serves filtered ones too.

A search through cells (IVF) or a graph (HNSW) reads more the longer one lets it: `nprobe` or
`efSearch` is doubled until 0.95 of the exact ten are found or the budget's time is reached. Indexes
are built and timed on the GPUs that FAISS sees, where it has such an index for them.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmcr.embeddings import Key
from cmcr.embeddings.index import Budget, choose_factory, on_gpus, search, train_index
from cmcr.embeddings.search.hubness import (
    NNN,
    Bank,
    Hubness,
    correction,
    with_correction,
    with_one,
)
from cmcr.embeddings.search.where import RowFilter
from cmcr.evaluate.inputs.items import Items, check_pair, select
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.metrics import CUTOFFS
from cmcr.evaluate.ranking.rankings import tell_truth
from cmcr.evaluate.results import Metrics, Row, filters_of, new_row
from cmcr.evaluate.tasks.neighbours import TOP_K
from cmcr.evaluate.tasks.retrieval import open_banks
from cmcr.evaluate.tasks.runner import (
    Evaluated,
    Models,
    Opened,
    Task,
    results_folder,
    run_task,
)
from cmcr.files import replacing, sha256_file, write_json

TASK = "index"
INDEX = "index.faiss"
ABOUT = "index.about.json"
INDEX_VERSION = 2

RECALL = f"found@{TOP_K}"
_ENOUGH, _HARDLY = 0.95, 0.005  # recall
_QUERIES = 1000
_ALONE = 32  # queries that are timed one by one

Search = Callable[[np.ndarray], np.ndarray]  # (queries, dim) → rows of the nearest, (queries, k)


@dataclass(frozen=True)
class IndexChoice:
    """The FAISS factory string of an index; None: what `choose_factory` takes for the budget."""

    factory: str | None
    budget: Budget


def evaluate_index(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    choice: IndexChoice,
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
    hubness: Hubness = "none",
    out: Path | None = None,
) -> Evaluated:
    """Index `gallery` by `choice` and measure a search through it.

    At most 1,000 queries, evenly spread over those there are, are asked. The rows are of task
    `index`: `found@10`, the recall of the exact ten; `hit_rate@k` as the index finds, where
    something says what matches; `qps`,
    queries a second when all are asked at once; `query_ms` of one alone, the median; `build_s`,
    seconds; `index_mb`, 10⁶ bytes. With `hubness` "nnn" they are of the corrected search, whose
    vectors are one value longer. Raises UsageError for a factory string that FAISS cannot build or
    a budget that nothing fits, and what `evaluate_retrieval` does.
    """

    def pose(opened: Opened) -> Task:
        asked, found = select(opened.query, query_where), select(opened.gallery, gallery_where)
        inputs = {
            "index_version": INDEX_VERSION,
            "query": asked.inputs,
            "gallery": found.inputs,
            "choice": asdict(choice),
        }
        about: dict[str, Any] = {"connection": opened.fingerprint, "gallery": found.inputs}
        bank = None
        if hubness == NNN:
            bank = open_banks(opened, (asked, found))[0]
            inputs["chosen"] = {"hubness": [NNN]}
            inputs["bank"] = about["bank"] = bank.inputs
        every_query = filters_of({name: inputs[name] for name in inputs if name != "query"})
        home = out or results_folder(store, path, query, gallery, every_query)
        compute = partial(_compute, choice, asked, found, bank, home, about)
        return Task(TASK, inputs, compute, with_baselines=False)

    return run_task(store, path, query, gallery, pose, out)


def _compute(
    choice: IndexChoice,
    asked: Items,
    found: Items,
    bank: Bank | None,
    home: Path,
    about: dict[str, Any],
    models: Models,
    folder: Path,
) -> tuple[list[Row], list[str]]:
    every = check_pair([models.connection], asked, found)
    sample = asked.spread(_QUERIES)
    matches = every.take(np.searchsorted(asked.rows, sample.rows))
    joint = found.projected(models.connection)  # (gallery, joint)
    asking = sample.projected(models.connection)  # (queries, joint)
    if bank is not None:
        r = correction(joint, bank.blocks(models.connection.project))
        joint, asking = with_correction(joint, r), with_one(asking)
    vectors, queries = joint.numpy(), asking.numpy()
    items, dim = vectors.shape
    kind = choice.factory or choose_factory(items, dim, choice.budget)
    index, seconds = _stored_index(home, about | {"factory": kind}, vectors)

    def flat(rows: np.ndarray) -> np.ndarray:
        return search(rows, vectors, TOP_K)[1]

    exact = flat(queries)  # (queries, k)
    setting = tune(index, kind, queries, exact, choice.budget.query_seconds)
    rows = []
    if kind != "Flat":
        costs = {"build_s": 0.0, "index_mb": vectors.nbytes / 1e6}
        rows.append(("Flat", measure(flat, queries, exact, matches) | costs))
    costs = {"build_s": seconds, "index_mb": (home / INDEX).stat().st_size / 1e6}
    fast = _through(on_gpus(index), exact.shape[1])
    rows.append((f"{kind} {setting}".strip(), measure(fast, queries, exact, matches) | costs))
    where = os.path.relpath(home / INDEX, folder)
    done = [new_row(asked, found, TASK, *row) for row in rows]
    for row in done:
        tell_truth(row, every)
    if bank is not None:
        for row in done:
            row["hubness"], row["bank"] = NNN, bank.summary
    return done, [where]


def tune(
    index: Any, factory: str, queries: np.ndarray, exact: np.ndarray, seconds: float | None
) -> str:
    """Set how far `index` looks; gives the setting, such as `nprobe=16`, or nothing if it has none.

    It is the first of 1, 2, 4, … (16, 32, … for a graph) that finds 0.95 of the rows `exact`,
    (queries, k), or the last before a query alone takes more than `seconds`, or before the next
    finds hardly more: a sketch of the vectors limits what can be found.
    """
    import faiss

    if "IVF" in factory:
        name, values = "nprobe", _doubled(1, faiss.extract_index_ivf(index).nlist)
    elif factory.startswith("HNSW"):
        name, values = "efSearch", _doubled(16, index.ntotal)
    else:
        return ""
    space = faiss.ParameterSpace()
    find = _through(index, exact.shape[1])
    chosen, share = 0, -1.0
    for value in values:
        space.set_index_parameter(index, name, value)
        if chosen and seconds is not None and _seconds_alone(find, queries) > seconds:
            break
        found = share_found(find(queries), exact)
        if found < share + _HARDLY:
            break
        chosen, share = value, found
        if share >= _ENOUGH:
            break
    space.set_index_parameter(index, name, chosen)
    return f"{name}={chosen}"


def measure(find: Search, queries: np.ndarray, exact: np.ndarray, matches: Matches) -> Metrics:
    """How well and how fast `find` answers `queries`, whose nearest rows are `exact`."""
    started = time.perf_counter()
    rows = find(queries)  # (queries, k)
    seconds = time.perf_counter() - started
    asked = np.repeat(np.arange(len(rows)), rows.shape[1])
    match = matches.pairs(asked, np.maximum(rows.ravel(), 0)).reshape(rows.shape) & (rows >= 0)
    answerable = matches.counts() > 0  # (queries,)
    cutoffs = CUTOFFS if answerable.any() else ()
    return {
        RECALL: share_found(rows, exact),
        **{f"hit_rate@{k}": float(match[answerable, :k].any(axis=1).mean()) for k in cutoffs},
        "qps": len(queries) / seconds,
        "query_ms": 1e3 * _seconds_alone(find, queries),
    }


def share_found(rows: np.ndarray, exact: np.ndarray) -> float:
    """The share of the rows `exact`, (queries, k), that are among `rows`, (queries, k)."""
    return float((exact[:, :, None] == rows[:, None, :]).any(axis=2).mean())


def _stored_index(folder: Path, about: dict[str, Any], vectors: np.ndarray) -> tuple[Any, float]:
    """The index in `folder` if it was built from `about`, else a new one; and its build's time."""
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INDEX
    built = _read(folder / ABOUT)
    if not path.exists() or built.get("about") != about or built["sha256"] != sha256_file(path):
        (folder / ABOUT).unlink(missing_ok=True)
        started = time.perf_counter()
        index = train_index(vectors, about["factory"])
        seconds = time.perf_counter() - started
        with replacing(path) as unfinished:
            faiss.write_index(index, str(unfinished))
        built = {"about": about, "build_seconds": seconds, "sha256": sha256_file(path)}
        write_json(folder / ABOUT, built)
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), built["build_seconds"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _through(index: Any, k: int) -> Search:
    return lambda queries: index.search(queries, k)[1]


def _seconds_alone(find: Search, queries: np.ndarray) -> float:
    """The median time of one query."""
    seconds = []
    for row in range(min(_ALONE, len(queries))):
        started = time.perf_counter()
        find(queries[row : row + 1])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _doubled(first: int, last: int) -> Iterator[int]:
    """`first`, twice that, and so on below `last`, then `last`."""
    value = first
    while value < last:
        yield value
        value *= 2
    yield last
