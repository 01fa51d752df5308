"""Results: one row a dataset, model, task and direction, as JSON and as tables for the terminal.

    write_results(path, rows, inputs, ["precision.png"])
    read_results(path)["results"]
    rich.print(results_table(rows))          # one table a direction, the best of a column in bold

A row has the shape that CLIP_benchmark writes; `query` and `gallery` are SPACE/MODALITY:DATASET.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cmcr.errors import StoreError
from cmcr.files import write_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_RANKS = frozenset({"median_rank"})
# Counts go below a table, where there is something to count.
_COUNTS = {
    "gallery_size": "items in the gallery",
    "queries_without_match": "queries without a match left out",
    "items": "items",
    "classes": "classes",
    "prompts": "prompts",
    "items_left_out": "items of other classes left out",
    "pairs": "pairs",
    "silent_pairs": "silent pairs",
    "pairs_left_out": "pairs that the store does not have left out",
}


class Row(TypedDict):
    """One result."""

    dataset: str
    model: str
    task: str
    query: str
    gallery: str
    metrics: dict[str, float]


class Results(TypedDict):
    """A file of results, the fingerprints of their inputs, and the files that go with them."""

    results: list[Row]
    inputs: dict[str, Any]
    files: list[str]


def write_results(path: Path, rows: list[Row], inputs: dict[str, Any], files: list[str]) -> None:
    """Write `Results` as JSON, whole or not at all, metrics in the order of a table."""
    results = Results(results=rows, inputs=inputs, files=files)
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> Results:
    """What `write_results` wrote. Raises StoreError for a file that is missing or damaged."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return Results(results=read["results"], inputs=read["inputs"], files=read["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "the results cannot be read",
            where=path,
            cure="delete the file and run the evaluation again",
        ) from error


def results_table(rows: Sequence[Row]) -> "Group":
    """A table a task and direction, models in the order of `rows`, the best of a column in bold."""
    from rich.console import Group

    directions = groupby(rows, key=lambda row: (row["task"], row["query"], row["gallery"]))
    tables = (part for _, models in directions for part in (_table(list(models)), ""))
    return Group(*tables)


def _table(rows: Sequence[Row]) -> "Table":
    from rich.table import Table

    first = rows[0]["metrics"]
    names = [name for name in first if name not in _COUNTS]
    best = {
        name: (min if name in _RANKS else max)(row["metrics"][name] for row in rows)
        for name in names
    }
    task = "" if rows[0]["task"] == "retrieval" else f"{rows[0]['task']}: "
    table = Table(
        title=f"{task}{rows[0]['query']} → {rows[0]['gallery']}",
        caption=_counts(first),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("model", no_wrap=True)
    for heading in _headings(names):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = [row["metrics"][name] for name in names]
        cells = (
            f"[bold]{_cell(name, value)}[/bold]" if value == best[name] else _cell(name, value)
            for name, value in zip(names, values, strict=True)
        )
        table.add_row(row["model"], *cells)
    return table


def _headings(names: Sequence[str]) -> list[str]:
    """Two lines a column: `hit_rate@1`, `hit_rate@5` are "hit rate / @1" and " / @5"."""
    headings, last = [], ""
    for name in names:
        above, _, below = name.replace("@", "_@").rpartition("_")
        above = above.replace("_", " ")
        headings.append(f"{'' if above == last else above}\n{below}")
        last = above
    return headings


def _cell(name: str, value: float) -> str:
    return f"{value:g}" if name in _RANKS else f"{value:.3f}"


def _counts(metrics: Mapping[str, float]) -> str:
    return "; ".join(
        f"{metrics[name]:,} {meaning}" for name, meaning in _COUNTS.items() if metrics.get(name)
    )
