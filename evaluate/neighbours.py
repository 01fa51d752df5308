"""The nearest gallery items of every query, from a FAISS flat index: who found whom.

    table = nearest_neighbours(connection, speech, photos)   # Items of evaluate/retrieval.py

The index is exact, so the share of queries with a `match` among their ten is `hit_rate@10`.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from cmcr.connect import Connection
from cmcr.evaluate.relevance import find_matches
from cmcr.evaluate.retrieval import Items
from cmcr.typed import typed

NEIGHBOURS = 10


@typed
def search(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], k: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Inner products and rows of the `k` nearest gallery items, or of all where there are fewer."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    scores, rows = index.search(queries, min(k, len(gallery)))  # (queries, k), (queries, k)
    return scores, rows


def nearest_neighbours(model: Connection, query: Items, gallery: Items) -> pa.Table:
    """One row a query and neighbour: both datasets and ids, rank from 1, cosine, and `match`."""
    scores, found = search(
        query.projected(model).numpy(), gallery.projected(model).numpy(), NEIGHBOURS
    )  # (queries, k), (queries, k)
    queries, k = found.shape
    asked = np.repeat(np.arange(queries), k)  # (queries · k,)
    matches = find_matches(query.table, gallery.table)
    return pa.table(
        {
            "query": pa.repeat(str(query.key), queries * k).dictionary_encode(),
            "query_id": query.table["id"].take(asked),
            "gallery": pa.repeat(str(gallery.key), queries * k).dictionary_encode(),
            "gallery_id": gallery.table["id"].take(found.ravel()),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), queries),
            "cosine": scores.ravel(),
            "match": matches.pairs(asked, found.ravel()),
        }
    )
