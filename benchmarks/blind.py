"""No known pairs: how often two pools are matched, and whether what is matched is right.

    python benchmarks/blind.py                                  # 500 items, all of them in common
    python benchmarks/blind.py --world classes --pool 250 --overlap 0 --seeds 50

Of a world of `benchmarks/worlds.py` either pool has POOL texts, in an order of its own; `--overlap`
is the share of them that the other has too. A line a seed: how both Gram matrices agree and how
those of pools with nothing in common do, how many starts there were and how many ended alike; and
where `--blind` connects, how many of the pairs are right, and the first places of `cca` on the
world's test beside those with the true pairs. The last line counts. While the constants were chosen
the seeds 100 to 108 were looked at.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from methods import CONNECT, first_places
from pools import POOLS, spread, store_with_pools
from worlds import WORLDS

from cmcr.connect import Connection, read_config
from cmcr.connect.methods.pools import blind
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.methods.solve import start
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.errors import MismatchError


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=list(WORLDS), action="append")
    parser.add_argument("--pool", type=int, default=500)
    parser.add_argument("--overlap", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.world or WORLDS:
        found = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            began = time.perf_counter()
            right, *places, said = measured(name, options.pool, options.overlap, seed)
            found.append((right, *places))
            cells = " ".join(f"{value:.3f}" for value in (right, *places))
            took = time.perf_counter() - began
            print(f"{name} {seed}: {said}: {cells} ({took:.0f} s)", flush=True)
        done = np.array([one for one in found if not np.isnan(one[0])]).reshape(-1, 3)
        each = ", ".join(spread(column) for column in done.T) if len(done) else "nothing"
        print(
            f"{name}, {options.pool} items, overlap {options.overlap:g}: connected in "
            f"{len(done)} of {len(found)}, most pairs right in {int((done[:, 0] > 0.5).sum())}; "
            f"right, first places, with true pairs: {each}",
            flush=True,
        )


def measured(name: str, pool: int, overlap: float, seed: int) -> tuple[float, float, float, str]:
    """The share of the pairs that is right, first places, those with the true pairs; what was said.

    Not a number where nothing is connected.
    """
    common = round(overlap * pool)
    world = WORLDS[name](pairs=2 * pool - common, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        numbers = store_with_pools(world, store, 0, pool, common, seed)
        fields = {"method": "cca", "pool": POOLS, "train": [], "blind": True, "seed": seed}
        problem = pose(store, read_config(CONNECT | fields))
        try:
            matched = blind(problem)
        except MismatchError as error:
            return np.nan, np.nan, np.nan, error.what.partition(": ")[2]
        pairs, said = matched.data.pairs, matched.data.pooled
        same = numbers[0][pairs.first.rows] == numbers[1][pairs.second.rows]
        _, *rows = np.intersect1d(*numbers, return_indices=True)
        one, two = (
            Rows(side.blocks, there)
            for side, there in zip((pairs.first, pairs.second), rows, strict=True)
        )
        known, measure = problem.on(problem.data.of(Pairs(one, two))), first_places(world)
        places = [measure(made(each)) for each in (matched, known)]
        told = " ".join(f"{key} {value:.3g}" for key, value in said.items())
        return float(np.mean(same)), places[0], places[1], told


def made(problem: Problem) -> Connection:
    """The connection of a closed form on all pairs."""
    whole = problem.on(problem.data.whole)
    return whole.finished(start(whole), {})


if __name__ == "__main__":
    main()
