"""What the page says in words: how well a connection works, and what each metric means.

verdict(evaluations)        # one sentence, with numbers: against chance, raw cosine, closed forms
terms(["hit_rate@1"])       # [("hit rate @ 1", "the share of queries that ...")]
"""

import re
from collections.abc import Sequence

from cmcr.evaluate.report.inventory import Evaluation
from cmcr.evaluate.results import Row, directions, rows_of_connection

# Where the files of results are told apart: the metric that a sentence speaks of, and its words.
_SPOKEN = {
    "retrieval": ("hit_rate@1", "finds a match first for {} of the queries"),
    "zero-shot": ("top1", "names the class of {} of the items"),
}
_PLAIN = {"chance": "chance", "identity": "raw cosine"}

TERMS = {
    "hit_rate@k": "the share of queries with a match among the first k (what CLIP papers call R@k)",
    "recall@k": "the share of a query's matches that is among the first k, mean over the queries",
    "mAP": "mean average precision: precision at the rank of each match, mean over the matches, "
    "then over the queries; 1 where all matches come first",
    "mAP@k": "the same of the first k, divided by the matches that can be there",
    "nDCG@k": "discounted cumulative gain of the first k, divided by that of all matches first",
    "median_rank": "half of the queries have their first match at this rank or before it",
    "false_positives": "the share of unrelated pairs, of what the connection was made from, that "
    "score as high as the median match",
    "coverage@k": "the share of the gallery that is among the first k of any query",
    "antihubs@k": "the share of the gallery that is among the first k of no query",
    "skewness@k": "skewness of how often an item is among the first k (Radovanović et al. 2010): "
    "0 is even, above 1 a few hubs answer many queries",
    "top_hub@k": "the share of queries that have the most frequent item among their first k",
    "top": "the share of items whose right class is among the first so many",
    "success@k": "the share of sounds whose region has a cIoU of at least so much",
    "auc": "the area under the success rate over the cIoU asked for, 0 to 1",
    "ap": "average precision of confident answers: right are those in the right place",
    "ap_slavc": "the same as SLAVC's published code samples it",
    "max_f1": "the best harmonic mean of precision and recall over all confidences",
    "max_f1_slavc": "the same as SLAVC's published code samples it",
    "distance": "how far the means of the two modalities lie apart, 0 to 2 (Liang et al. 2022)",
    "alignment": "mean squared distance of matches, 0 to 4 (Wang and Isola 2020)",
    "uniformity": "how evenly the queries spread over the sphere: -4 is evenly, 0 a single point "
    "(Wang and Isola 2020)",
    "found@k": "the share of the exact k nearest that the index finds",
    "qps": "queries a second, all asked at once",
    "query_ms": "milliseconds that one query alone takes, the median",
    "build_s": "seconds that building the index took",
    "index_mb": "size of the index, 10⁶ bytes",
}


def heading(name: str) -> str:
    """A metric as the head of a column."""
    return name.replace("_", " ").replace("@", " @ ")


def terms(names: Sequence[str]) -> list[tuple[str, str]]:
    """What each kind of metric means, once: `hit rate @ k`."""
    kinds = dict.fromkeys(
        re.sub(r"^top\d+$", "top", re.sub(r"@[\d.]+$", "@k", name)) for name in names
    )
    return [(heading(kind), TERMS[kind]) for kind in kinds if kind in TERMS]


def verdict(evaluations: Sequence[Evaluation]) -> str:
    """How well a connection works and against what, by its first result that tells it.

    One number lies clearly above another where their 95 % intervals do not meet; without intervals
    nothing is said to be clear.
    """
    unknown = ""
    for task in ("retrieval", "zero-shot"):
        for evaluation in evaluations:
            if evaluation.task != task or not evaluation.rows:
                continue
            models = directions(evaluation.rows)[0]
            if models[0]["task"] == task:
                return _sentence(models, *_SPOKEN[task])
            unknown = unknown or _without_truth(models)
    return unknown or "Nothing has been measured yet that tells how well it works."


def _without_truth(models: Sequence[Row]) -> str:
    row = rows_of_connection(models)[0]
    covered = row["metrics"]["coverage@10"]
    return (
        f"Nothing says what matches between {row['query']} and {row['gallery']}, so how well it "
        f"works is not known: {_percent(covered)} of the gallery is among the first ten of a "
        f"query, by chance {_percent(models[0]['metrics']['coverage@10'])}."
    )


def _sentence(models: Sequence[Row], metric: str, words: str) -> str:
    own = rows_of_connection(models)[0]
    low, high = _ends(own, metric)
    value = own["metrics"][metric]
    interval = f" (95 % interval {_percent(low)} to {_percent(high)})" if low < high else ""
    sides: dict[str, list[str]] = {}
    for row, name in _others(models, own, metric):
        below, above = _ends(row, metric)
        if metric not in own.get("intervals", {}):
            side = "beside"
        elif low > above or high < below:
            side = "clearly more than" if low > above else "clearly less than"
        else:
            side = "not clearly different from"
        sides.setdefault(side, []).append(f"{name} ({_percent(row['metrics'][metric])})")
    against = "; ".join(f"{side} {_listed(names)}" for side, names in sides.items())
    asked = f"{own['query']} in {own['gallery']}"
    return f"{own['model']} {words.format(_percent(value))}{interval}, {asked}: {against}."


def _others(models: Sequence[Row], own: Row, metric: str) -> list[tuple[Row, str]]:
    """What it is held against, and how that is called: chance, raw cosine, the best closed form."""
    plain = [row for row in models if "hubness" not in row and row["model"] != own["model"]]
    found = [(row, _PLAIN[row["model"]]) for row in plain if row["model"] in _PLAIN]
    closed = [row for row in plain if row["model"] not in _PLAIN]
    if closed:
        best = max(closed, key=lambda row: row["metrics"][metric])
        found.append((best, f"the best closed form beside it, {best['model']}"))
    return found


def _ends(row: Row, metric: str) -> tuple[float, float]:
    """The interval of a metric; where there is none, its value twice."""
    value = row["metrics"][metric]
    low, high = row.get("intervals", {}).get(metric, (value, value))
    return low, high


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
