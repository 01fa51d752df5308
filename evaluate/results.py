"""Results: one row a dataset, model, task and direction, as JSON and as tables for the terminal.

    write_results(path, rows, inputs, ["precision.png"])
    read_results(path)["results"]
    rich.print(results_table(rows))          # one table a direction, the best of a column in bold

A row has the shape that CLIP_benchmark writes; `query` and `gallery` are SPACE/MODALITY:DATASET.
Beside the metrics there can be their 95 % intervals, and what lies behind them. Of each direction
the connection's row comes last, behind chance and the closed forms, and behind a model's row the
one of its corrected search, where there is one: `hubness` says so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict

from cmcr.errors import StoreError
from cmcr.files import read_regular, write_text

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table


Metrics = dict[str, float]
Inputs = dict[str, Any]
Filters = dict[str, list[str]]

_LESS_IS_BETTER = frozenset(
    {"median_rank", "distance", "alignment", "uniformity", "antihubs@10", "top_hub@10"}
)
_WITHOUT_BEST = frozenset(
    {"qps", "query_ms", "build_s", "index_mb", "false_positives", "skewness@10"}
)
_FORMATS = {
    "median_rank": "{:g}",
    "false_positives": "{:.2g}",
    "qps": "{:,.0f}",
    "query_ms": "{:.2f}",
    "build_s": "{:.1f}",
    "index_mb": "{:,.1f}",
}
WITH_INTERVAL = "mAP"
_SHOWN = 5  # of a long list
UNKNOWN = "none"  # the truth of a row where nothing says what matches
BOXES = "boxes"  # the truth of a row about regions: where a sound is heard
# It would be wider than a terminal.
_NOT_IN_TABLE = frozenset({"mAP@10", "nDCG@10", "false_positives"})
# Counts go below a table, where there is something to count.
COUNTS = {
    "queries": "queries",
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


class Unmatched(TypedDict):
    """Queries that nothing in the gallery matches, and the labels that they have, the first few."""

    queries: int
    of: int
    first: str
    labels: list[str]


class Selected(TypedDict):
    """The rows of a dataset that count: columns and the values kept, and how many of how many."""

    where: Filters  # empty where all count
    items: int
    of: int


class Named(Protocol):
    """A dataset by its name; as text it is what a row calls `query` or `gallery`."""

    @property
    def dataset(self) -> str:
        """The name."""


class Side(Protocol):
    """What a result is about: rows of a dataset, or of an array."""

    @property
    def key(self) -> Named:
        """The dataset."""

    @property
    def selected(self) -> Selected:
        """Which of its rows."""


class Row(TypedDict):
    """One result."""

    dataset: str
    model: str
    task: str
    query: str
    gallery: str
    metrics: dict[str, float]
    truth: NotRequired[str]  # what matching items share: group, label, id; boxes; "none": unknown
    unknown: NotRequired[str]  # why nothing says what matches
    selected: NotRequired[dict[Literal["query", "gallery"], Selected]]
    unmatched: NotRequired[Unmatched]
    intervals: NotRequired[dict[str, list[float]]]  # low and high, evaluate/ranking/metrics.py
    per_class: NotRequired[list[dict[str, Any]]]  # evaluate/ranking/rankings.py
    worst: NotRequired[list[dict[str, Any]]]
    hubs: NotRequired[list[dict[str, Any]]]
    false_positives_unknown_below: NotRequired[float]  # where unpaired rows are too few for less
    hubness: NotRequired[str]  # "nnn" where the search was corrected for hubs
    bank: NotRequired[dict[str, Any]]  # by how many neighbours and what rows


class Results(TypedDict):
    """A file of results, the fingerprints of their inputs, and the files that go with them."""

    results: list[Row]
    inputs: Inputs
    files: list[str]


def new_row(query: Side, gallery: Side, task: str, model: str, metrics: Metrics) -> Row:
    """A result about rows of two datasets."""
    return Row(
        dataset="+".join(sorted({query.key.dataset, gallery.key.dataset})),
        model=model,
        task=task,
        query=str(query.key),
        gallery=str(gallery.key),
        metrics=metrics,
        selected={"query": query.selected, "gallery": gallery.selected},
    )


def rows_of_connection(rows: Sequence[Row]) -> list[Row]:
    """Of each direction the row of the connection itself, not corrected for hubs."""
    plain = (row for row in rows if "hubness" not in row)
    return list({(row["query"], row["gallery"]): row for row in plain}.values())


def model_label(row: Row) -> str:
    """The model as it stands in a table: `ridge`, `ridge + nnn`."""
    return f"{row['model']} + {row['hubness']}" if "hubness" in row else row["model"]


def filters_of(inputs: Mapping[str, Any]) -> Filters:
    """What chose among all that two datasets offer, by what it is about, and the values kept.

    It is empty where every row counts, and the datasets themselves say classes and truth.
    """
    filters: Filters = {}
    for side in ("query", "gallery"):
        where = inputs.get(side, {}).get("where", {})
        filters |= {f"{side} {column}": sorted(where[column]) for column in sorted(where)}
    if inputs.get("templates"):
        filters["templates"] = sorted(inputs["templates"])
    filters.update(inputs.get("chosen", {}))
    return filters


def filters_line(filters: Filters) -> str:
    """Filters in words, long lists cut: `query take=0, 1; classes=owl, rat`."""
    parts = []
    for what, values in filters.items():
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        parts.append(f"{what}={', '.join(values[:_SHOWN])}{more}")
    return "; ".join(parts)


def write_results(path: Path, rows: list[Row], inputs: Inputs, files: list[str]) -> None:
    """Write `Results` as JSON, whole or not at all, metrics in the order of a table."""
    results = Results(results=rows, inputs=inputs, files=files)
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> Results:
    """What `write_results` wrote. Raises StoreError for a file that is missing or damaged."""
    try:
        read = json.loads(read_regular(path))
        if not isinstance(read["inputs"], dict) or not isinstance(read["results"], list):
            raise TypeError("no list of results and their inputs")
        for row in read["results"]:
            _check_row(row)
        return Results(results=read["results"], inputs=read["inputs"], files=read["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"the results cannot be read: {(str(error).splitlines() or ['nothing in it'])[0]}",
            where=path,
            fix="delete the file and run the evaluation again",
        ) from error


def _check_row(row: Any) -> None:
    """Raise TypeError or KeyError for what is no row."""
    if lacking := Row.__required_keys__ - row.keys():
        raise KeyError(min(lacking))
    if not all(isinstance(row[name], str) for name in Row.__required_keys__ - {"metrics"}):
        raise TypeError("a name in a row is no text")
    intervals = [value for both in row.get("intervals", {}).values() for value in _two(both)]
    if not all(isinstance(value, int | float) for value in [*row["metrics"].values(), *intervals]):
        raise TypeError("a metric is no number")


def _two(interval: Sequence[Any]) -> Sequence[Any]:
    low, high = interval
    return low, high


def results_table(rows: Sequence[Row]) -> "Group":
    """A table a task and direction, models in the order of `rows`, the best of a column in bold."""
    from rich.console import Group

    return Group(*(part for models in directions(rows) for part in _section(models)))


def directions(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that can be compared: of one task, one direction and one selection."""

    def about(row: Row) -> tuple[Any, ...]:
        return row["task"], row["query"], row["gallery"], row.get("selected")

    return [list(models) for _, models in groupby(rows, key=about)]


def _section(rows: Sequence[Row]) -> Iterator["RenderableType"]:
    """A heading, the table, and what was counted; text of its own is not wrapped to the table."""
    from rich.text import Text

    first = rows[0]
    task = "" if first["task"] == "retrieval" else f"{first['task']}: "
    yield Text(f"{task}{first['query']} → {first['gallery']}", style="bold")
    yield _table(rows)
    for line in filter(None, (counts_line(first), sure_line(rows))):
        yield Text(line, style="dim")
    if chosen := selected_line(first):
        yield Text(chosen, style="dim")
    if "unmatched" in first:
        yield Text(unmatched_line(first["unmatched"]), style="bold yellow")
    yield ""


def _table(rows: Sequence[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    names, best = shown_metrics(rows), best_values([row["metrics"] for row in rows])
    with_interval = any(WITH_INTERVAL in row.get("intervals", {}) for row in rows)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("model", overflow="fold")
    for name, heading in zip(names, _headings(names), strict=True):
        table.add_column(heading, justify="right", no_wrap=True)
        if with_interval and name == WITH_INTERVAL:
            table.add_column("\n95 %", justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for name in names:
            value = row["metrics"].get(name)
            text = "" if value is None else format_value(name, value)
            cells.append(f"[bold]{text}[/bold]" if text and value == best.get(name) else text)
            if with_interval and name == WITH_INTERVAL:
                cells.append(half_width(row.get("intervals", {}).get(name)))
        table.add_row(Text(model_label(row)), *cells)
    return table


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that have a column in a table."""
    names = metric_names([row["metrics"] for row in rows])
    return [name for name in names if name not in COUNTS and name not in _NOT_IN_TABLE]


def half_width(interval: list[float] | None) -> str:
    """Half of an interval as it stands in a table, nothing where there is none."""
    if interval is None:
        return ""
    low, high = interval
    return "±" + f"{(high - low) / 2:.3f}".removeprefix("0")


def metric_names(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Every name that occurs, in the order of the fullest line."""
    fullest = max(metrics, key=len)
    return list(dict.fromkeys([*fullest, *(name for line in metrics for name in line)]))


def _headings(names: Sequence[str]) -> list[str]:
    """Two lines a column: `hit_rate@1`, `hit_rate@5` are "hit rate / @1" and " / @5"."""
    headings, last = [], ""
    for name in names:
        above, _, below = name.replace("@", "_@").rpartition("_")
        above = above.replace("_", " ")
        headings.append(f"{'' if above == last else above}\n{below}")
        last = above
    return headings


def best_values(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best of each metric: the least where less is better. Not all have one."""
    return {
        name: (min if name in _LESS_IS_BETTER else max)(
            line[name] for line in metrics if name in line
        )
        for name in metric_names(metrics)
        if name not in _WITHOUT_BEST
    }


def format_value(name: str, value: float) -> str:
    """A metric as it stands in a table."""
    return _FORMATS.get(name, "{:.3f}").format(value)


def counts_line(row: Row) -> str:
    """What stands below a table: what was counted, and what a match is."""
    metrics = row["metrics"]
    counts = [f"{metrics[name]:,} {meaning}" for name, meaning in COUNTS.items()
              if metrics.get(name)]  # fmt: skip
    truth = row.get("truth")
    if truth == UNKNOWN:
        why = f": {row['unknown']}" if "unknown" in row else ""
        counts.append(f"nothing says what matches{why}")
    elif truth == BOXES:
        counts.append("right is what covers the boxes where the sound is heard")
    elif truth:
        counts.append(f"a match has the same {truth}")
    return "; ".join(counts)


def sure_line(rows: Sequence[Row]) -> str:
    """How much of what is unrelated scores as high as what is related; empty where not known."""
    return "; ".join(
        f"{format_value('false_positives', row['metrics']['false_positives'])} of unrelated pairs "
        f"score as high as the median match by {model_label(row)}{_unknown_below(row)}"
        for row in rows
        if "false_positives" in row["metrics"]
    )


def _unknown_below(row: Row) -> str:
    least = row.get("false_positives_unknown_below")
    if least is None:
        return ""
    share = format_value("false_positives", least)
    return f" (not known: so few unpaired rows tell no share below {share})"


def selected_line(row: Row) -> str:
    """Which rows were selected, and how many of how many; empty where all of them count."""
    return "; ".join(
        f"{side} {filters_line(chosen['where'])}: {chosen['items']:,} of {chosen['of']:,} rows"
        for side, chosen in row.get("selected", {}).items()
        if chosen["where"]
    )


def unmatched_line(unmatched: Unmatched) -> str:
    """The warning that stands below a table."""
    labels = ", ".join(unmatched["labels"])
    return (
        f"{unmatched['queries']:,} of {unmatched['of']:,} queries match nothing in the gallery and "
        f"count nowhere, the first is {unmatched['first']!r}"
        + (f"; their labels are such as {labels}" if labels else "")
    )


def weak_spots(rows: Sequence["Row"]) -> str:
    """For the terminal: the weakest classes and the worst failures of each row that has them."""
    lines = []
    for row in rows:
        classes = sorted(row.get("per_class", []), key=lambda line: line["metrics"]["mAP"])
        failures, hubs = row.get("worst", []), row.get("hubs", [])
        if classes or failures or hubs:
            lines.append(f"{row['query']} → {row['gallery']} by {model_label(row)}")
        if classes:
            lines.append(f"  mAP of {len(classes)} classes, lowest first: {_first(classes)}")
        if failures:
            lines.append(f"  worst failures, and where their first match ranks: {_first(failures)}")
        if hubs:
            often = ", ".join(f"{line['id']} {line['found']:,}" for line in hubs[:_SHOWN])
            lines.append(f"  hubs, and how many queries have them among their first ten: {often}")
    return "\n".join(lines)


def _first(lines: Sequence[dict[str, Any]]) -> str:
    shown = [
        f"{line['id']} {line['first_rank']:,}"
        if "id" in line
        else f"{line['label']} {line['metrics']['mAP']:.3f}"
        for line in lines[:_SHOWN]
    ]
    return ", ".join(shown)
