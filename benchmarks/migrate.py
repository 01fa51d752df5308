"""What a mapping of queries keeps of re-embedding, where the truth is known (docs/migrate.md).

    python benchmarks/migrate.py                        # all worlds, three seeds
    python benchmarks/migrate.py --world digits --seeds 1

`cmcr migrate` fits the mapping on 1,000 items that both models embedded, and says what it keeps by
those of them that it held out. Beside that stands what the same connection keeps on items that were
never in the store: other queries among another gallery. Re-embedding is the new model alone.

synthetic   concepts in 12 dimensions, seen by two models through random networks (worlds.py); a
            match is another view of the same concept, one among 2,000
classes     classes in two linear models of 512 and 768 dimensions; of 400, five pictures each match
digits      handwriting by the digits-clip that ships and by one that was trained from another seed;
            a match is the same digit, among the 400 pictures that neither was trained on
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from worlds import LATENT, View, _Modality

import cmcr
from cmcr.connect import migrate
from cmcr.embeddings import Key, import_embeddings

ITEMS, K = 1_000, 10
Rows = np.ndarray


class Upgrade(NamedTuple):
    """(n, D) of the new model and of the old one, and what each row shows."""

    common: tuple[Rows, Rows, Rows]  # what `migrate` is given
    gallery: tuple[Rows, Rows, Rows]
    queries: tuple[Rows, Rows, Rows]


def synthetic(seed: int) -> Upgrade:
    """Two views of each concept: one in the gallery, one a query."""
    random = np.random.default_rng((9, seed))
    models = [View(space, 1, seed) for space in (0, 1)]

    def seen(concepts: Rows, kinds: Rows) -> tuple[Rows, Rows, Rows]:
        new, old = (model(concepts[kinds], random) for model in models)
        return new, old, kinds

    common, test = random.normal(size=(ITEMS // 2, LATENT)), random.normal(size=(2_000, LATENT))
    twice, once = np.repeat(np.arange(ITEMS // 2), 2), np.arange(2_000)
    return Upgrade(seen(common, twice), seen(test, once), seen(test, once))


def classes(seed: int) -> Upgrade:
    """Classes that the common items show, and others that are searched."""
    random = np.random.default_rng((9, seed))
    spread = np.arange(1, 97) ** -0.5
    named, unseen = (random.standard_t(5, size=(400, 96)) * spread for _ in range(2))
    models = [_Modality(random.normal(size=(96, dim)), random) for dim in (512, 768)]

    def seen(concepts: Rows, kinds: Rows) -> tuple[Rows, Rows, Rows]:
        new, old = (model(concepts[kinds], 2.2) for model in models)
        return new, old, kinds

    numbers = np.arange(400)
    return Upgrade(
        seen(named, random.permutation(np.repeat(numbers, 3))[:ITEMS]),
        seen(unseen, np.repeat(numbers, 5)),
        seen(unseen, np.repeat(numbers, 2)),
    )


def digits(seed: int) -> Upgrade:
    """The new model is trained as the old one was, from another seed."""
    from safetensors.torch import load_file

    from cmcr.extract.digits.pretrain import pictures, pretrain_clip
    from cmcr.extract.digits.towers import DATA, untrained

    old = untrained("digits-clip")
    old.load_state_dict(load_file(DATA / "digits-clip.safetensors"))
    new = pretrain_clip(100 + seed)

    def seen(ink: torch.Tensor, kinds: torch.Tensor) -> tuple[Rows, Rows, Rows]:
        with torch.inference_mode():
            fresh, stale = (towers.eval()["image"](ink).numpy() for towers in (new, old))
        return fresh, stale, kinds.numpy()

    ink, kinds = pictures("train")
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(len(ink))[:ITEMS])
    test = seen(*pictures("test"))
    return Upgrade(seen(ink[drawn], kinds[drawn]), test, test)


WORLDS: dict[str, Callable[[int], Upgrade]] = {
    "synthetic": synthetic,
    "classes": classes,
    "digits": digits,
}


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="auto")
    options = parser.parse_args()
    print("| world | seed | method | said by migrate | new items: kept | no mapping | old model | "
          "neighbours@10 | of the old model |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in options.world or WORLDS:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder, cmcr.quiet():
                print(line(name, seed, Path(folder), options.method), flush=True)


def line(name: str, seed: int, folder: Path, method: str) -> str:
    """A row of the table."""
    with redirect_stdout(None):  # what pretraining prints
        world = WORLDS[name](seed)
    for number, space in enumerate(("new", "old")):
        np.save(folder / "x.npy", world.common[number].astype(np.float32))
        rows = {"id": [str(row) for row in range(ITEMS)], "label": world.common[2].astype(str)}
        pq.write_table(pa.table(rows), folder / "x.parquet")
        key = Key(space, "image", "common")
        import_embeddings(folder / "S", key, folder / "x.npy", folder / "x.parquet", index=None)
    done = migrate(folder / "S", "old", "new", "image", name="m", method=method, seed=seed)
    connection = cmcr.load_connection(done.connected.path)
    queries = {
        "re-embedding": (unit(world.queries[0]), unit(world.gallery[0])),
        "mapped": (
            connection.project("new", world.queries[0], "image").numpy(),
            unit(world.gallery[1]),
        ),
        "old model": (unit(world.queries[1]), unit(world.gallery[1])),
    }
    if world.queries[0].shape[1] == world.gallery[1].shape[1]:
        queries["no mapping"] = (unit(world.queries[0]), unit(world.gallery[1]))
    found = {
        way: first(*both, same=world.queries is world.gallery) for way, both in queries.items()
    }
    recall = {way: recall_of(world, rows) for way, rows in found.items()}
    kept = {way: value / recall["re-embedding"] for way, value in recall.items()}
    chance = K / len(world.gallery[2]) / recall["re-embedding"]
    alike = {way: neighbours(found["re-embedding"], rows) for way, rows in found.items()}
    low, high = done.mapped.interval or (0, 0)
    return (
        f"| {name} | {seed} | {done.method} | {done.mapped.kept:.3f} ({low:.3f} to {high:.3f}) | "
        f"**{kept['mapped']:.3f}** | {kept.get('no mapping', chance):.3f} | "
        f"{kept['old model']:.3f} | {alike['mapped']:.3f} | {alike['old model']:.3f} |"
    )


def unit(rows: Rows) -> Rows:
    """Rows of length one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def first(queries: Rows, gallery: Rows, same: bool) -> Rows:
    """The first ten of each query, (n, 10); where both are the `same`, an item finds no itself."""
    scores = queries @ gallery.T
    if same:
        np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :K]


def recall_of(world: Upgrade, found: Rows) -> float:
    """Share of the matches of a query among its first ten, on average."""
    matches = world.queries[2][:, None] == world.gallery[2][None]
    if world.queries is world.gallery:
        np.fill_diagonal(matches, False)
    return float((np.take_along_axis(matches, found, 1).sum(1) / matches.sum(1)).mean())


def neighbours(fresh: Rows, found: Rows) -> float:
    """Share of the first ten by re-embedding among the first ten."""
    return float((found[:, :, None] == fresh[:, None, :]).any(2).mean())


if __name__ == "__main__":
    main()
