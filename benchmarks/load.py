"""What other processes cost: each stage of the digits world beside none, one and two busy ones.

    cmcr run digits                          # once: embeds and connects
    python benchmarks/load.py                # five rounds, medians; some ten minutes on two cores
    python benchmarks/load.py --stages connect --rounds 3

A busy process computes without end on one core. Every measurement is a fresh process that times
the stage without its imports:

ours       threads follow the size of the work (`cmcr.devices.threads_for`)
crowded    the same, started with OMP_NUM_THREADS four times the number of cores
all        every product on all threads, as torch does by itself

Printed are seconds, and multiples of `ours` beside none. Ways and loads take turns in each round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmcr import devices

BUSY = "while True: pass"
WAYS = ("ours", "crowded", "all")
LOADS = (0, 1, 2)
STORE = Path("stores/digits")


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="connect,extract,evaluate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--all-threads", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.once:
        if flags.all_threads:
            devices.WORTH_A_THREAD = 1
        print(seconds(flags.once, flags.store))
        return
    seconds_of: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    stages = flags.stages.split(",")
    for _ in range(flags.rounds):
        for stage in stages:
            for busy in LOADS:
                with others(busy):
                    for way in WAYS:
                        seconds_of[stage, way, busy].append(in_a_process(stage, way, flags.store))
    print(f"{devices.cores()} cores, medians of {flags.rounds}\n")
    print("| stage | threads | idle | beside one | beside two |\n|---|---|---:|---:|---:|")
    for stage in stages:
        idle = statistics.median(seconds_of[stage, "ours", 0])
        for way in WAYS:
            times = [statistics.median(seconds_of[stage, way, busy]) for busy in LOADS]
            cells = " | ".join(f"{taken:.2f} s, {taken / idle:.2f} x" for taken in times)
            print(f"| {stage} | {way} | {cells} |")


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many busy processes beside what runs within."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def in_a_process(stage: str, way: str, store: Path) -> float:
    """Seconds that `stage` takes in a process of its own."""
    command = [sys.executable, __file__, "--once", stage, "--store", str(store)]
    environment = dict(os.environ)
    if way == "all":
        command.append("--all-threads")
    if way == "crowded":
        environment["OMP_NUM_THREADS"] = str(4 * devices.cores())
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def seconds(stage: str, store: Path) -> float:
    """Run `stage` once, into a folder that is thrown away; seconds without imports."""
    from cmcr.cli.recipes.pipelines import load_pipelines
    from cmcr.connect import connect, read_config
    from cmcr.embeddings import Key
    from cmcr.evaluate import evaluate_retrieval
    from cmcr.extract import extract, load_encoder, open_source

    recipe = load_pipelines().named("digits")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        if stage == "extract":
            encoder = load_encoder("digits-clap")
            source = open_source("audio", "builtin:digits/speech-train")
        else:
            config = read_config(recipe.connect[0].config)
        started = time.perf_counter()
        if stage == "extract":
            extract(out, encoder, source, "speech")
        elif stage == "connect":
            connect(store, config, name="load", out=out / "connection")
        else:
            query = Key("digits-clap", "audio", "speech-test")
            gallery = Key("digits-clip", "image", "handwriting-test")
            evaluate_retrieval(store, store / "connections/digits", query, gallery, out=out)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
