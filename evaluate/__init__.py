"""How well a connection works, task by task, measured exactly and drawn.

from cmcr.evaluate import evaluate_retrieval, results_table

done = evaluate_retrieval(store, store / "connections" / "clip-clap", query, gallery)
rich.print(results_table(done.rows))
"""

from cmcr.evaluate.breakdown import weak_spots
from cmcr.evaluate.budget import Budget, parse_budget
from cmcr.evaluate.counterfactual import evaluate_counterfactual, precision_recall
from cmcr.evaluate.gap import evaluate_gap
from cmcr.evaluate.index import IndexChoice, evaluate_index
from cmcr.evaluate.localization import (
    evaluate_localization,
    localization_metrics,
    success_rates,
)
from cmcr.evaluate.metrics import Measured, chance_metrics, retrieval_metrics
from cmcr.evaluate.relevance import Matches, find_matches
from cmcr.evaluate.results import Results, Row, read_results, results_table
from cmcr.evaluate.retrieval import Items, Ranking, parse_where, rank_both_ways, select
from cmcr.evaluate.reuse import Evaluated
from cmcr.evaluate.run import evaluate_retrieval
from cmcr.evaluate.truth import Pair, read_truth, truth_of
from cmcr.evaluate.zero_shot import evaluate_zero_shot

__all__ = [
    "Budget",
    "Evaluated",
    "IndexChoice",
    "Items",
    "Matches",
    "Measured",
    "Pair",
    "Ranking",
    "Results",
    "Row",
    "chance_metrics",
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
    "results_table",
    "retrieval_metrics",
    "select",
    "success_rates",
    "truth_of",
    "weak_spots",
]
