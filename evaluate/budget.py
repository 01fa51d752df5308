"""Which FAISS index to search with, from a budget of memory and time.

    budget = parse_budget("4G", "10ms")
    choose_index(1_000_000, 512, budget)          # "HNSW32"

The first of these that fits is taken, for N items of D dims:

    Flat           4·D bytes an item; exact; reads all of it for a query, 8 GB/s
    HNSW32         4·D + 272 bytes; a graph, a millisecond or so
    IVFk,Flat      4·D + 8 bytes; k = 4·√N cells, of which a few are read
    IVFk,PQm       m + 8 bytes; m = D/2, D/4, … down to 8: a sketch of each item instead of it

Only Flat is judged by time beforehand. How many cells are read or how far a graph is followed is
then set by measurement, within the time (evaluate/index.py).
"""

import math
import re
from dataclasses import dataclass

from cmcr.errors import UsageError

_FLAT_BYTES_PER_SECOND = 8e9
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LEAST_PQ = 8
_ITEMS_PER_CELL = 39  # what FAISS wants to train on


@dataclass(frozen=True)
class Budget:
    """What an index may take; None: as much as it wants."""

    memory: int | None = None  # bytes
    query_seconds: float | None = None


def parse_budget(max_memory: str | None, max_query_time: str | None) -> Budget:
    """A budget from what the command line takes: `4G` (K, M, G, T: powers of 1024), `10ms`.

    Raises UsageError for anything else, and for nothing.
    """
    memory = seconds = None
    if max_memory is not None:
        number, unit = _number(max_memory, _UNITS, "--max-memory 4G")
        memory = int(number * _UNITS[unit])
    if max_query_time is not None:
        number, unit = _number(max_query_time, _SECONDS, "--max-query-time 10ms")
        seconds = number * _SECONDS[unit]
    return Budget(memory, seconds)


def choose_index(items: int, dim: int, budget: Budget) -> str:
    """The FAISS factory string for `items` vectors of `dim` values.

    Raises UsageError when none fits into the memory.
    """
    memory = math.inf if budget.memory is None else budget.memory
    seconds = math.inf if budget.query_seconds is None else budget.query_seconds
    flat = 4 * dim * items  # bytes
    if flat <= memory and flat / _FLAT_BYTES_PER_SECOND <= seconds:
        return "Flat"
    if flat + 272 * items <= memory:
        return "HNSW32"
    cells = max(1, min(4 * math.isqrt(items), items // _ITEMS_PER_CELL))
    beside = 4 * dim * cells + 8 * items  # centroids and ids
    if flat + beside <= memory:
        return f"IVF{cells},Flat"
    tables = 4 * dim * 256
    for size in _sketches(dim):
        least = size * items + beside + tables
        if least <= memory:
            return f"IVF{cells},PQ{size}"
    raise UsageError(
        f"no index of {items:,} items of {dim} dims fits into {memory:,.0f} bytes",
        cure=f"--max-memory {math.ceil(least / 2**20)}M is the least",
    )


def _sketches(dim: int) -> list[int]:
    """Bytes a vector that product quantisation can take: halves of `dim` that divide it."""
    sizes = [dim // 2**halving for halving in range(1, dim.bit_length()) if dim % 2**halving == 0]
    return [size for size in sizes if size >= _LEAST_PQ] or [dim]


def _number(text: str, units: dict[str, float] | dict[str, int], example: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text)
    if not found or found[2] not in units or not float(found[1]):
        raise UsageError(
            f"{text!r} is no amount above zero with a unit of {', '.join(u for u in units if u)}",
            cure=f"such as {example}",
        )
    return float(found[1]), found[2]
