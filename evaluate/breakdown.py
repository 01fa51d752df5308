"""What lies behind a mean: the metrics of each class, and the queries that failed worst.

per_class(measured.per_query, speech.classes())
worst(measured.per_query, speech)                    # Items of evaluate/retrieval.py
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmcr.evaluate.metrics import PerQuery

if TYPE_CHECKING:
    from cmcr.evaluate.results import Row
    from cmcr.evaluate.retrieval import Items

WORST = 20

_SHOWN = 5


def per_class(found: PerQuery, classes: Sequence[str | None]) -> list[dict[str, Any]]:
    """The metrics over the queries of each class, by name; `classes` has one for every query.

    An item's class is its first label. Queries without one, or without a match, count nowhere.
    """
    names = np.array([classes[row] or "" for row in found.rows])  # (found,)
    return [
        {"label": str(name), "queries": int(own.sum()), "metrics": found.take(own).summary()}
        for name in np.unique(names[names != ""])
        for own in [names == name]
    ]


def worst(found: PerQuery, queries: "Items") -> list[dict[str, Any]]:
    """The twenty queries whose first match ranks last: their id, label and that rank.

    Queries whose first match comes first are no failures and not listed.
    """
    order = np.argsort(-found.first_rank, kind="stable")[:WORST]
    order = order[found.first_rank[order] > 1]
    ids = queries.table["id"].take(found.rows[order]).to_pylist()
    labels = queries.table["label"].take(found.rows[order]).to_pylist()
    return [
        {"id": name, "label": label, "first_rank": int(rank)}
        for name, label, rank in zip(ids, labels, found.first_rank[order], strict=True)
    ]


def weak_spots(rows: Sequence["Row"]) -> str:
    """For the terminal: the weakest classes and the worst failures of each row that has them."""
    lines = []
    for row in rows:
        classes = sorted(row.get("per_class", []), key=lambda line: line["metrics"]["mAP"])
        failures = row.get("worst", [])
        if classes or failures:
            lines.append(f"{row['query']} → {row['gallery']} by {row['model']}")
        if classes:
            lines.append(f"  mAP of {len(classes)} classes, lowest first: {_first(classes)}")
        if failures:
            lines.append(f"  worst failures, and where their first match ranks: {_first(failures)}")
    return "\n".join(lines)


def _first(lines: Sequence[dict[str, Any]]) -> str:
    shown = [
        f"{line['id']} {line['first_rank']:,}"
        if "id" in line
        else f"{line['label']} {line['metrics']['mAP']:.3f}"
        for line in lines[:_SHOWN]
    ]
    return ", ".join(shown)
