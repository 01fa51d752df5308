"""What pools are worth: few known pairs, and bridge items of which nobody knows which is which.

    python benchmarks/pools.py                                   # all worlds, 30, 100 and 300 pairs
    python benchmarks/pools.py --world classes --pairs 30 --overlap 1 --seeds 5

Of a world of `benchmarks/worlds.py` with PAIRS + POOL texts the first are known pairs. The rest are
the pools, in an order of its own in each space: `--overlap` is the share of the items of one that
the other has too. Printed are first places on the world's test, mean ± sd over seeds: `cca` from
the pairs alone, with whatever is found in the pools, and as the guard decides; how many worlds
it kept the pools in; and how many of the pairs found last are right.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from methods import CONNECT, SPACES, first_places, write
from worlds import WORLDS, World

from cmcr.connect import read_config
from cmcr.connect.methods.pools import enlarge, unknown, with_pools
from cmcr.connect.methods.problem import pose
from cmcr.connect.methods.solve import start
from cmcr.embeddings import Key, import_embeddings

POOL = 1_000
POOLS = [f"{space}/text:pool" for space in SPACES]


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=list(WORLDS), action="append")
    parser.add_argument("--pairs", type=int, action="append")
    parser.add_argument("--overlap", type=float, action="append")
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print("| world | pairs | overlap | pairs alone | with what is found | guarded | kept | right |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.world or WORLDS:
        for pairs in options.pairs or (30, 100, 300):
            for overlap in options.overlap or (1.0, 0.5, 0.0):
                found = np.array([
                    measured(name, pairs, options.pool, overlap, seed)
                    for seed in range(options.seeds)
                ])  # fmt: skip
                alone, taken, kept, right = found.T
                guarded = np.where(kept, taken, alone)
                cells = [spread(alone), spread(taken), spread(guarded),
                         f"{int(kept.sum())} of {len(kept)}", f"{right.mean():.2f}"]  # fmt: skip
                print(f"| {name} | {pairs} | {overlap:g} | {' | '.join(cells)} |", flush=True)


def measured(name: str, pairs: int, pool: int, overlap: float, seed: int) -> tuple[float, ...]:
    """First places alone and with what is found, whether that is kept, the share that is right."""
    common = round(overlap * pool)
    world = WORLDS[name](pairs=pairs + 2 * pool - common, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        numbers = store_with_pools(world, store, pairs, pool, common, seed)
        config = read_config(CONNECT | {"method": "cca", "pool": POOLS, "seed": seed})
        problem = pose(store, config)
        guarded = with_pools(problem)
        enlarged = enlarge(problem, unknown(problem.data))
        measure, test = first_places(world), []
        for one in (problem, enlarged):
            whole = one.on(one.data.whole)
            test.append(measure(whole.finished(start(whole), {})))
        found = enlarged.data.whole.found
        assert found is not None
        same = numbers[0][found.first.rows] == numbers[1][found.second.rows]
        return (*test, float(guarded.data.pooled["kept"]), float(np.mean(same)))


def store_with_pools(
    world: World, store: Path, pairs: int, pool: int, common: int, seed: int
) -> list[np.ndarray]:
    """The world's store, its texts cut into pairs and pools; the number of each pool row's item."""
    known = tuple(x[: max(pairs, 2)] for x in world.captions)  # those of no use are not looked at
    write(replace(world, captions=known), store)  # type: ignore
    random, numbers = np.random.default_rng((5, seed)), []
    order = pairs + random.permutation(len(world.captions[0]) - pairs)
    parts = (order[:pool], order[pool - common :])
    for space, captions, part in zip(SPACES, world.captions, parts, strict=True):
        part = random.permutation(part)
        np.save(store.parent / "x.npy", captions[part].astype(np.float32))
        key = Key(space, "text", "pool")
        import_embeddings(store, key, store.parent / "x.npy", None, index=None)
        numbers.append(part)
    return numbers


def spread(values: np.ndarray) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {values.std(ddof=1):.3f}".replace("0.", ".") if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation}"


if __name__ == "__main__":
    main()
