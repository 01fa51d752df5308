r"""How sure a search is, and whether one modality fills the first page.

    python benchmarks/search.py --store stores/digits      # a store that `cmcr run digits` made

The first table: what rate of unrelated items comes where a rate of false positives is asked for. In
the synthetic world of benchmarks/methods.py, 1,000 text pairs, 10,000 unpaired rows and 2,000 test
items a modality; and in the digits world with every second voice and picture of the training split
to connect by, the others to search with and in; then as the demo has it, the test split.

The second: the share of pictures among the first ten where pictures and speech are searched at
once, by raw cosine, centred by modality, and as `cmcr search` ranks them. Relevance alone gives the
share of pictures among the items of the query's digit. 150 queries of each kind.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from methods import DIM, LATENT, SPACES, View

from cmcr.connect import JointSpace, connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key, import_embeddings, open_dataset

ASKED = (0.1, 0.05, 0.01, 0.001)
PAIRS, UNPAIRED, TEST = 1_000, 10_000, 2_000
PICTURES, SPEECH = "digits-clip/image:handwriting-test", "digits-clap/audio:speech-test"
QUERIES = 150


def main() -> None:
    """Measure both, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("stores/digits"))
    parser.add_argument("--queries", type=int, default=400, help="of each world's first table")
    options = parser.parse_args()
    print("| world, method | " + " | ".join(f"asked {rate:g}" for rate in ASKED) + " |")
    print("|---|" + "---:|" * len(ASKED))
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic(Path(folder))
        made = fitted(store, ["hear", "see"], "captions", ["pictures", "sounds"], "ridge")
        rates("synthetic, `ridge`", store, made, "hear/audio:test", "see/image:test", options)
    with tempfile.TemporaryDirectory() as folder:
        store = halves(options.store, Path(folder))
        places = ("digits-clap/audio:held", "digits-clip/image:held")
        for method in ("ridge", "c-mcr"):
            spaces = ["digits-clip", "digits-clap"]
            made = fitted(store, spaces, "phrases", ["known"], method)
            rates(f"digits, held out, `{method}`", store, made, *places, options)
    made = load_connection(options.store / "connections" / "digits")
    rates("digits, test split, `c-mcr`", options.store, made, SPEECH, PICTURES, options)
    print("\n| query | relevance alone | raw cosine | centred by modality | by share |")
    print("|---|---:|---:|---:|---:|")
    for place in (
        "digits-clip/text:phrases",
        "digits-clap/text:phrases",
        "digits-clip/image:handwriting-train",
        "digits-clap/audio:speech-train",
    ):
        shares(place, options.store, made)


def fitted(
    store: Path, spaces: list[str], train: str, memory: list[str], method: str
) -> JointSpace:
    """A connection through text."""
    fields = {"via": "text", "spaces": spaces, "train": [train], "memory": memory, "method": method}
    if method == "c-mcr":
        fields |= {"epochs": 10, "batch_size": 256}
    return load_connection(connect(store, read_config(fields), name=method).path)


def synthetic(folder: Path) -> Path:
    """The store of a synthetic world."""
    random = np.random.default_rng(0)
    concepts = {"captions": random.normal(size=(PAIRS, LATENT)),
                "test": random.normal(size=(TEST, LATENT))}  # fmt: skip
    for number, (space, modality) in enumerate(SPACES.items()):
        unpaired = {"see": "pictures", "hear": "sounds"}[space]
        concepts[unpaired] = random.normal(size=(UNPAIRED, LATENT))
        for kind, name in (("text", "captions"), (modality, unpaired), (modality, "test")):
            view = View(number, 0 if kind == "text" else 1, seed=0)
            seen = view(concepts[name], random)
            assert seen.shape[1] == DIM
            put(
                folder,
                f"{space}/{kind}:{name}",
                seen,
                [f"{name}-{row}" for row in range(len(seen))],
            )
    return folder


def halves(store: Path, folder: Path) -> Path:
    """Half of the training split called `known`, the other half `held`."""
    speech, pictures = "digits-clap/audio:speech-train", "digits-clip/image:handwriting-train"
    for space in ("digits-clip", "digits-clap"):
        phrases = open_dataset(store, Key.parse(f"{space}/text:phrases"))
        put(folder, str(phrases.key), phrases.embeddings(), phrases.ids())
    voices = open_dataset(store, Key.parse(speech)).table(["voice"])["voice"].to_pylist()
    some = np.isin(voices, sorted(set(voices))[::2])
    even = np.arange(open_dataset(store, Key.parse(pictures)).rows) % 2 == 0
    for place, known in ((speech, some), (pictures, even)):
        dataset = open_dataset(store, Key.parse(place))
        table = dataset.table(["id", "label"])
        for name, kept in (("known", known), ("held", ~known)):
            rows = table.take(np.flatnonzero(kept))
            labels = [label[0] for label in rows["label"].to_pylist()]
            target = f"{dataset.key.space}/{dataset.key.modality}:{name}"
            put(folder, target, dataset.embeddings()[kept], rows["id"].to_pylist(), labels)
    return folder


def put(
    store: Path, place: str, vectors: np.ndarray, ids: list[str], labels: list[str] | None = None
) -> None:
    """One dataset."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    array, rows = store / "x.npy", store / "x.parquet"
    np.save(array, vectors.astype(np.float32))
    pq.write_table(pa.table({"id": ids} | ({"label": labels} if labels else {})), rows)
    import_embeddings(store, Key.parse(place), array, rows, index=None)


def rates(
    name: str,
    store: Path,
    made: JointSpace,
    query: str,
    gallery: str,
    options: argparse.Namespace,
) -> None:
    """One line of the first table: what comes, and the share of related items among it."""
    asked, found = (open_dataset(store, Key.parse(place)) for place in (query, gallery))
    rows = np.unique(np.linspace(0, asked.rows - 1, options.queries).astype(int))
    own, others = (names(one) for one in (asked, found))
    related = own[rows][:, None] == others[None]  # (queries, gallery)
    cells = []
    for rate in ASKED:
        hits = made.search(
            store,
            asked.embeddings()[rows],
            [gallery],
            space=asked.key.space,
            modality=asked.key.modality,
            k=found.rows,
            false_positives=rate,
        )
        wrong = sum(not related[number, hit.row] for number, one in enumerate(hits) for hit in one)
        right = sum(map(len, hits)) - wrong
        cells.append(f"{wrong / (~related).sum():.2g} ({right / related.sum():.0%})")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def names(dataset: Dataset) -> np.ndarray:
    """What says that two items are related: the label, else the id."""
    rows = dataset.table(["id", "label"]).to_pylist()
    return np.array([row["label"][0] if row["label"] else row["id"] for row in rows])


def shares(place: str, store: Path, made: JointSpace) -> None:
    """One line of the second table."""
    key = Key.parse(place)
    asked = open_dataset(store, key)
    rows = np.random.default_rng(0).permutation(asked.rows)[:QUERIES]
    vectors = asked.embeddings()[rows]
    galleries = [open_dataset(store, Key.parse(one)) for one in (PICTURES, SPEECH)]
    related = [(names(asked)[rows][:, None] == names(one)[None]).sum(axis=1) for one in galleries]
    alone = float((related[0] / (related[0] + related[1])).mean())
    joint = [made.project(one.key.space, one.embeddings(), one.key.modality) for one in galleries]
    query = made.project(key.space, vectors, key.modality)
    raw = [(query @ items.T).numpy() for items in joint]
    centred = [scores - scores.mean() for scores in raw]
    hits = made.search(store, vectors, [PICTURES, SPEECH], space=key.space, modality=key.modality)
    ours = np.mean([hit.dataset == PICTURES for one in hits for hit in one])
    first, second = (
        float((np.concatenate(two, axis=1).argsort(axis=1)[:, -10:] < two[0].shape[1]).mean())
        for two in (raw, centred)
    )
    print(f"| {place} | {alone:.2f} | {first:.2f} | {second:.2f} | {ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
