"""How well a connection works: cross-modal retrieval, measured exactly and drawn.

from cmcr.evaluate import evaluate_retrieval, results_table

done = evaluate_retrieval(store, store / "connections" / "clip-clap", query, gallery)
rich.print(results_table(done.rows))
"""

from cmcr.evaluate.breakdown import weak_spots
from cmcr.evaluate.budget import Budget, parse_budget
from cmcr.evaluate.gap import evaluate_gap
from cmcr.evaluate.index import IndexChoice, evaluate_index
from cmcr.evaluate.metrics import Measured, chance_metrics, retrieval_metrics
from cmcr.evaluate.relevance import Matches, find_matches
from cmcr.evaluate.results import Results, Row, read_results, results_table
from cmcr.evaluate.retrieval import Items, Ranking, parse_where, rank_both_ways, select
from cmcr.evaluate.reuse import Evaluated
from cmcr.evaluate.run import evaluate_retrieval

__all__ = [
    "Budget",
    "Evaluated",
    "IndexChoice",
    "Items",
    "Matches",
    "Measured",
    "Ranking",
    "Results",
    "Row",
    "chance_metrics",
    "evaluate_gap",
    "evaluate_index",
    "evaluate_retrieval",
    "find_matches",
    "parse_budget",
    "parse_where",
    "rank_both_ways",
    "read_results",
    "results_table",
    "retrieval_metrics",
    "select",
    "weak_spots",
]
