"""Actors killed on a local Ray; each run ends with the bytes of one machine.

    python tests/faults/on_ray.py --kills 10

In each round two actors make forty parts of a plan, and one of them gets SIGKILL at a random moment
after it has begun, or, in every fourth round, SIGSTOP: it is silent. Ray is started once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever runs beside it starves the actors

import ray

from cmcr.extract import RayEngine, extract, load_encoder, open_source, write_plan
from cmcr.files import sha256_file

sys.path[:0] = [str(Path(__file__).parents[1])]

from shell import below  # noqa: E402

PARTS, ROWS = 40, 10
SILENT = 4  # every so manieth
PATIENCE = 20.0  # seconds


def makers() -> list[int]:
    """The actors that are there."""
    found = []
    for pid in below(os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if title.startswith(b"ray::Maker"):
            found.append(pid)
    return found


def disturb(folder: Path, chance: random.Random, number: int, done: list[int]) -> None:
    """Kill or stop one actor after a random number of parts."""
    after = chance.randrange(PARTS - 10)
    while len(list(folder.glob("part-*.parquet"))) < after or not makers():
        time.sleep(0.01)
    pid = chance.choice(makers())
    os.kill(pid, signal.SIGSTOP if number % SILENT == SILENT - 1 else signal.SIGKILL)
    done.append(pid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    work = Path(tempfile.mkdtemp(prefix="cmcr-ray-"))
    lines = work / "t.txt"
    lines.write_text("".join(f"a photo of {number}\n" for number in range(PARTS * ROWS)))
    write_plan(work / "t.plan.parquet", open_source("text", str(lines)), ROWS)
    source = open_source("text", str(work / "t.plan.parquet"))
    encoder, rest = load_encoder("digits-clip"), {"workers": 0, "index": None}
    one: Any = extract(work / "one", encoder, source, "t", **rest)
    engine = RayEngine(partial(load_encoder, "digits-clip"), actors=2, patience=PATIENCE)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    expected = [sha256_file(path) for path in sorted(one.folder.glob("part-*.parquet"))]
    for number in range(given.kills):
        store, hit = work / str(number), list[int]()
        folder = store / one.folder.relative_to(work / "one")
        killer = threading.Thread(target=disturb, args=[folder, chance, number, hit], daemon=True)
        killer.start()
        began = time.perf_counter()
        many = extract(store, encoder, source, "t", engine=engine, **rest)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        assert hit, "nothing was killed"
        made = [sha256_file(path) for path in sorted(many.folder.glob("part-*.parquet"))]
        assert made == expected, f"other bytes in {many.folder}"
        assert many.rows == one.rows
        until = time.monotonic() + 30
        while makers() and time.monotonic() < until:
            time.sleep(0.1)
        assert not makers(), "actors are left"
        print(json.dumps({"kill": number, "pid": hit[0], "seconds": round(seconds, 1)}), flush=True)
    ray.shutdown()
    shutil.rmtree(work)
    print(
        f"{given.kills} runs of two actors, one of them lost, ended with the bytes of one machine"
    )


if __name__ == "__main__":
    main()
