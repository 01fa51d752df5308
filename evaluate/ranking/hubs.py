"""How a search spreads over the gallery: what can be said where nothing tells what matches.

    found = nearest rows of each query, best first                # (queries, k)
    hub_metrics(found, len(gallery)), chance_hubs(len(found), len(gallery))
    most_found(found, len(gallery))                               # the hubs, and how often

N_k(x), the k-occurrence of an item, is how many queries have it among their first k. In many
dimensions its distribution is skewed: few items, the hubs, answer many queries, and many, the
antihubs, none (Radovanović, Nanopoulos, Ivanović: Hubs in Space, Journal of Machine Learning
Research 11, 2010, https://www.jmlr.org/papers/v11/radovanovic10a.html; the word antihub is theirs).
"""

import numpy as np
from jaxtyping import Int

from cmcr.evaluate.ranking.metrics import CUTOFFS
from cmcr.evaluate.results import Metrics
from cmcr.typed import typed

HUB_K = 10

_BLOCK = 65_536  # queries


@typed
def occurrences(
    found: Int[np.ndarray, "queries found"], gallery: int, k: int = HUB_K
) -> Int[np.ndarray, " gallery"]:
    """N_k of each of `gallery` items, where `found` are the rows nearest to each query."""
    often = np.zeros(gallery, np.int64)
    for start in range(0, len(found), _BLOCK):
        often += np.bincount(found[start : start + _BLOCK, :k].ravel(), minlength=gallery)
    return often


@typed
def hub_metrics(found: Int[np.ndarray, "queries found"], gallery: int) -> Metrics:
    """What the nearest rows of each query, best first, say of a gallery of so many items.

    - `coverage@k`: the share of items that are among the first k of any query.
    - `antihubs@10`: the share that is among the first 10 of none, 1 - `coverage@10`.
    - `skewness@10`: E[(N - μ)³] / σ³ of the 10-occurrences N of all items (Radovanović et al. 2010,
      equation 1): 0 where they spread evenly, above 1 hubs are strong. Left out where every item
      occurs equally often.
    - `top_hub@10`: the share of queries that have the most frequent item among their first 10.
    """
    often = occurrences(found, gallery)  # (gallery,)
    metrics = {
        f"coverage@{k}": float((occurrences(found, gallery, k) > 0).mean()) for k in CUTOFFS
    } | {f"antihubs@{HUB_K}": float((often == 0).mean())}
    off = often - often.mean()
    if off.any():
        metrics[f"skewness@{HUB_K}"] = float((off**3).mean() / (off**2).mean() ** 1.5)
    return metrics | {f"top_hub@{HUB_K}": float(often.max() / len(found))}


def chance_hubs(queries: int, gallery: int) -> Metrics:
    """The same where every order of N gallery items is equally likely.

    N_k is then binomial, of Q queries with p = k / N each: `coverage@k` is 1 - (1 - p)^Q, and the
    skewness (1 - 2p) / √(Q p (1 - p)). How frequent the most frequent item is has no closed form.
    """
    covered = {k: 1 - (1 - min(k, gallery) / gallery) ** queries for k in CUTOFFS}
    metrics = {f"coverage@{k}": covered[k] for k in CUTOFFS}
    metrics[f"antihubs@{HUB_K}"] = 1 - covered[HUB_K]
    p = HUB_K / gallery
    if p < 1:
        metrics[f"skewness@{HUB_K}"] = float((1 - 2 * p) / np.sqrt(queries * p * (1 - p)))
    return metrics


def most_found(found: np.ndarray, gallery: int, most: int) -> list[tuple[int, int]]:
    """The rows of the `most` items that occur most often, and how often, the first one first."""
    often = occurrences(found, gallery)  # (gallery,)
    order = np.argsort(-often, kind="stable")[:most]
    return [(int(row), int(often[row])) for row in order if often[row]]
