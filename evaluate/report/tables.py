"""Tables of the page: results beside their baselines, classes, failures, hubs, confusions.

for table in result_tables(evaluation.rows): ...     # one a direction, the best marked
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cmcr.errors import StoreError
from cmcr.evaluate.ranking.matches import plain_name
from cmcr.evaluate.report.words import heading, terms
from cmcr.evaluate.results import (
    COUNTS,
    Row,
    best_values,
    counts_line,
    directions,
    format_value,
    metric_names,
    model_label,
    selected_line,
    sure_line,
)
from cmcr.evaluate.tasks.zero_shot import CLASSES_FILE, PREDICTIONS, confusion

_SHOWN_METRICS = ("hit_rate@1", "hit_rate@10", "mAP", "median_rank")  # of a class
MOST_CLASSES = 20  # of a confusion table


@dataclass(frozen=True)
class Cell:
    """One value; `share` in 0..1 shades it, `interval` stands beside it."""

    text: str
    best: bool = False
    interval: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """One line and what it is about."""

    heading: str
    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """`corner` heads the first column; `note` stands below."""

    caption: str
    corner: str
    columns: Sequence[str]
    lines: Sequence[Line]
    note: str = ""
    terms: Sequence[tuple[str, str]] = ()  # columns, and what they mean


def result_tables(rows: Sequence[Row]) -> list[Table]:
    """A table a direction: models in their order, the best of each metric marked."""
    return [_results(models) for models in directions(rows)]


def class_tables(rows: Sequence[Row]) -> list[Table]:
    """Of each row that has them its classes, the weakest first."""
    tables = []
    for row in rows:
        classes = sorted(row.get("per_class", []), key=lambda line: line["metrics"]["mAP"])
        if classes:
            names = [name for name in _SHOWN_METRICS if name in classes[0]["metrics"]]
            lines = [
                Line(line["label"], [Cell(f"{line['queries']:,}"), *_cells(line["metrics"], names)])
                for line in classes
            ]
            caption = f"{row['query']} → {row['gallery']}, by class"
            headings = ["queries", *map(heading, names)]
            note = f"By {model_label(row)}."
            tables.append(Table(caption, "class", headings, lines, note, terms(names)))
    return tables


def failure_tables(rows: Sequence[Row]) -> list[Table]:
    """Of each row that has them the queries whose first match ranks last."""
    return [
        Table(
            f"{row['query']} → {row['gallery']}, worst failures",
            "query",
            ["label", "rank of the first match"],
            [
                Line(
                    query["id"],
                    [Cell(", ".join(query["label"] or [])), Cell(f"{query['first_rank']:,}")],
                )
                for query in row["worst"]
            ],
            f"By {model_label(row)}.",
        )
        for row in rows
        if row.get("worst")
    ]


def hub_tables(rows: Sequence[Row]) -> list[Table]:
    """Of each row that has them the items that most queries find."""
    return [
        Table(
            f"{row['query']} → {row['gallery']}, hubs",
            "item",
            ["label", "queries that have it among their first ten"],
            [
                Line(item["id"], [Cell(", ".join(item["label"] or [])), Cell(f"{item['found']:,}")])
                for item in row["hubs"]
            ],
            f"By {model_label(row)}.",
        )
        for row in rows
        if row.get("hubs")
    ]


def accuracy_table(folder: Path) -> Table:
    """The share of each class that each model names rightly, from classes.parquet."""
    table = pq.read_table(folder / CLASSES_FILE, partitioning=None)
    models = [name for name in table.column_names if name not in ("class", "items")]
    lines = []
    for line in table.to_pylist():
        shares = {name: line[name] for name in models if line[name] == line[name]}
        best = max(shares.values(), default=None)
        cells = [
            Cell("" if name not in shares else f"{shares[name]:.3f}", shares.get(name) == best)
            for name in models
        ]
        lines.append(Line(line["class"], [Cell(f"{line['items']:,}"), *cells]))
    return Table("Share of each class named rightly", "class", ["items", *models], lines)


def confusion_table(folder: Path) -> Table:
    """What items of each class are taken for, in shares of the class, from predictions.parquet.

    Of more than `MOST_CLASSES` classes, those with the most mistakes.
    """
    table = pq.read_table(folder / CLASSES_FILE, columns=["class", "items"], partitioning=None)
    classes: list[str] = table["class"].to_pylist()
    number = {name: at for at, name in enumerate(classes)}
    truth, predicted = [], []
    columns = ["label", "predicted", "rank"]
    items = pq.read_table(folder / PREDICTIONS, columns=columns, partitioning=None)
    for item in items.to_pylist():
        labels = [item["predicted"]] if item["rank"] == 1 else map(plain_name, item["label"] or ())
        right = next((number[name] for name in labels if name in number), None)
        if right is None or item["predicted"] not in number:
            raise StoreError(
                f"{CLASSES_FILE} and {PREDICTIONS} are of two evaluations",
                where=folder,
                fix="delete them and run `cmcr evaluate zero-shot` again",
            )
        truth.append(right)
        predicted.append(number[item["predicted"]])
    counts = confusion(np.array(truth), np.array(predicted), len(classes))  # (classes, classes)
    wrong = counts.sum(axis=1) - counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    lines = [
        Line(
            classes[row],
            [
                Cell(
                    f"{100 * shares[row, column]:.0f}" if counts[row, column] else "",
                    best=row == column,
                    share=float(shares[row, column]),
                )
                for column in shown
            ],
        )
        for row in shown
    ]
    left_out = f" The {MOST_CLASSES} with the most mistakes." if len(shown) < len(classes) else ""
    return Table(
        "What each class is taken for",
        "is ↓ taken for →",
        [classes[at] for at in shown],
        lines,
        f"Per cent of the class.{left_out}",
    )


def _results(rows: list[Row]) -> Table:
    metrics = [row["metrics"] for row in rows]
    every = [name for name in metric_names(metrics) if name not in COUNTS]
    names = [name for name in every if name != "false_positives"]  # which the note says
    best = best_values(metrics)
    lines = [
        Line(model_label(row), _cells(row["metrics"], names, best, row.get("intervals", {})))
        for row in rows
    ]
    counted = [counts_line(rows[0]), sure_line(rows), selected_line(rows[0])]
    notes = [f"{line[0].upper()}{line[1:]}." for line in counted if line]
    if any("intervals" in row for row in rows):
        notes.append("Small: 95 % interval, by the bootstrap over the queries.")
    return Table(
        f"{rows[0]['query']} → {rows[0]['gallery']}",
        "model",
        list(map(heading, names)),
        lines,
        " ".join(notes),
        terms(every),
    )


def _cells(
    metrics: Mapping[str, float],
    names: Sequence[str],
    best: Mapping[str, float] | None = None,
    intervals: Mapping[str, Any] | None = None,
) -> list[Cell]:
    cells = []
    for name in names:
        value = metrics.get(name)
        if value is None:
            cells.append(Cell(""))
            continue
        ends = (intervals or {}).get(name, ())
        cells.append(
            Cell(
                format_value(name, value),
                best=value == (best or {}).get(name),
                interval=" to ".join(format_value(name, end) for end in ends),
            )
        )
    return cells
