"""How well a connection works, task by task, measured exactly and drawn.

from cmcr.evaluate import evaluate_retrieval, results_table

done = evaluate_retrieval(store, store / "connections" / "clip-clap", query, gallery)
rich.print(results_table(done.rows))

rows = cmcr.evaluate(x, y)     # arrays in one joint space: evaluate/arrays.py
"""

import sys
from typing import TYPE_CHECKING

from cmcr.embeddings.index import Budget, parse_budget
from cmcr.embeddings.search.where import RowFilter, parse_where, values_of
from cmcr.evaluate.arrays import Evaluate, evaluate_arrays
from cmcr.evaluate.export import results_csv, results_latex
from cmcr.evaluate.inputs.items import Items, select
from cmcr.evaluate.inputs.truth import SoundImage, read_truth, truth_of
from cmcr.evaluate.ranking.matches import Matches, find_matches
from cmcr.evaluate.ranking.metrics import Measured, chance_metrics, retrieval_metrics
from cmcr.evaluate.ranking.rankings import Ranking
from cmcr.evaluate.results import Results, Row, read_results, results_table, weak_spots
from cmcr.evaluate.tasks.counterfactual import evaluate_counterfactual, precision_recall
from cmcr.evaluate.tasks.gap import evaluate_gap
from cmcr.evaluate.tasks.index import IndexChoice, evaluate_index
from cmcr.evaluate.tasks.localization import (
    evaluate_localization,
    localization_metrics,
    success_rates,
)
from cmcr.evaluate.tasks.neighbours import PER_QUERY_FILES, write_per_query
from cmcr.evaluate.tasks.retrieval import evaluate_retrieval, rank_both_ways, why_no_truth
from cmcr.evaluate.tasks.runner import Evaluated
from cmcr.evaluate.tasks.zero_shot import evaluate_zero_shot

if TYPE_CHECKING:
    from cmcr.evaluate.report.found import write_found
    from cmcr.evaluate.report.page import write_report
else:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        # They draw, and drawing is heavy to import.
        homes = {"write_found": "found", "write_report": "page"}
        if name not in homes:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"cmcr.evaluate.report.{homes[name]}"), name)


__all__ = [
    "PER_QUERY_FILES",
    "Budget",
    "Evaluate",
    "Evaluated",
    "IndexChoice",
    "Items",
    "Matches",
    "Measured",
    "Ranking",
    "Results",
    "Row",
    "RowFilter",
    "SoundImage",
    "chance_metrics",
    "evaluate_arrays",
    "evaluate_counterfactual",
    "evaluate_gap",
    "evaluate_index",
    "evaluate_localization",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "find_matches",
    "localization_metrics",
    "parse_budget",
    "parse_where",
    "precision_recall",
    "rank_both_ways",
    "read_results",
    "read_truth",
    "results_csv",
    "results_latex",
    "results_table",
    "retrieval_metrics",
    "select",
    "success_rates",
    "truth_of",
    "values_of",
    "weak_spots",
    "why_no_truth",
    "write_found",
    "write_per_query",
    "write_report",
]

sys.modules[__name__].__class__ = Evaluate
