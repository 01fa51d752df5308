"""What each stage keeps in memory, over the number of rows: data may be larger than memory.

    python benchmarks/memory.py                            # 100,000 and 1,000,000 rows, 64 values
    python benchmarks/memory.py --rows 1000000 --rows 10000000 --stages import,verify
    python benchmarks/memory.py --rows 1000000 --queries 100000 --labels 250000 --stages evaluate

Two spaces with as many paired texts, and images of the second as memory and gallery. The memory of
c-mcr has 1,000 rows: its time is that of pairs times memory, what it keeps is not. `evaluate` asks
with 1,000 sounds, each with a thousandth of the images as matches, then the other way. Printed is
the largest amount of memory of a stage's own (RssAnon, twenty looks a second) in MB, less what the
same command needs with 50,000 rows: libraries and what does not grow. Pages of mapped files do not
count, for they are given up when memory is short. Beside it stands what a column of ids alone
takes, as Arrow keeps it and as a Python list. Linux only, for it reads /proc.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 64
QUERIES = 1_000
BLOCK = 100_000
SMALL = 50_000  # from some 20,000 rows on validation and blocks have their full size
LABELS = 1_000
STAGES = ("import", "verify", "connect cca", "connect c-mcr", "evaluate", "project")


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, action="append", help="can be given again")
    parser.add_argument("--folder", type=Path, help="where the stores are made (a temporary one)")
    parser.add_argument("--queries", type=int, default=QUERIES, help="sounds of `evaluate`")
    parser.add_argument("--labels", type=int, default=LABELS, help="that items are spread over")
    parser.add_argument("--stages", default=",".join(STAGES), help="those that are measured")
    flags = parser.parse_args()
    stages = flags.stages.split(",")
    sizes = [SMALL, *(flags.rows or [100_000, 1_000_000])]
    peaks: dict[int, dict[str, float]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
            peaks[rows] = measured(Path(folder), rows, flags)
    print(f"| MB at rows | {' | '.join(f'{rows:,}' for rows in sizes[1:])} |")
    print("|---|" + "---:|" * (len(sizes) - 1))
    for stage in stages:
        more = [max(0.0, peaks[rows][stage] - peaks[SMALL][stage]) for rows in sizes[1:]]
        print(f"| {stage} | {' | '.join(f'{value:,.0f}' for value in more)} |")
    for name, each in (("ids, Arrow", 4 + 8), ("ids, Python list", 8 + 57)):
        print(f"| {name} | {' | '.join(f'{each * rows / 1e6:,.0f}' for rows in sizes[1:])} |")


def measured(folder: Path, rows: int, flags: argparse.Namespace) -> dict[str, float]:
    """The peak of each stage in MB, on a store of this many rows a dataset made in `folder`."""
    stages = flags.stages.split(",")
    store, results = str(folder / "store"), {}
    for place, count in (
        ("a/text:captions", rows),
        ("b/text:captions", rows),
        ("b/image:photos", rows),
        ("a/audio:sounds", min(flags.queries, rows)),
        ("b/image:few", QUERIES),
    ):
        array, ids = vectors(folder, place, count, flags.labels)
        space, rest = place.split("/")
        modality, dataset = rest.split(":")
        results[place] = peak(
            f"import --space {space} --modality {modality} --dataset {dataset} --index none "
            f"--embeddings {array} --metadata {ids} --store {store}"
        )
        array.unlink()
    common = f"--via text --spaces a,b --train captions --store {store}"
    pair = f"--query a/audio:sounds --gallery b/image:photos --store {store}"
    once = "--set epochs=1 --set joint_dim=64"
    commands = {
        "verify": f"verify {store}",
        "connect cca": f"connect {common} --memory photos --method cca --name cca",
        "connect c-mcr": f"connect {common} --memory few --method c-mcr --name c-mcr {once}",
        "evaluate": f"evaluate retrieval {pair} --connection cca --no-pipeline",
        "project": f"project --connection cca --store {store}",
    }
    results = {"import": max(results.values())}
    needed = {*stages, *(["connect cca"] if {"evaluate", "project"} & {*stages} else [])}
    results |= {stage: peak(command) for stage, command in commands.items() if stage in needed}
    return results


def vectors(folder: Path, place: str, rows: int, labelled: int) -> tuple[Path, Path]:
    """Random rows of one place as .npy, written block by block, and their ids."""
    random = np.random.default_rng(len(place))
    array, ids = folder / "array.npy", folder / "ids.parquet"
    whole = np.lib.format.open_memmap(array, "w+", np.float32, (rows, DIM))
    with pq.ParquetWriter(ids, pa.schema([("id", pa.string()), ("label", pa.string())])) as writer:
        for start in range(0, rows, BLOCK):
            stop = min(rows, start + BLOCK)
            whole[start:stop] = random.normal(size=(stop - start, DIM))
            numbers = np.arange(start, stop)
            labels = [f"{number % labelled}" for number in numbers]
            writer.write_table(pa.table({"id": numbers.astype(str), "label": labels}))
    return array, ids


def peak(command: str) -> float:
    """The largest RssAnon of `cmcr COMMAND`, its children included, in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cmcr", *command.split()], stdout=subprocess.PIPE, text=True
    )
    highest = 0.0
    while process.poll() is None:
        highest = max(highest, own_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"cmcr {command}\nended with {process.returncode}")
    return highest


def own_memory(pid: int) -> float:
    """RssAnon of a process and what it started, in MB; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon")]
    return sum(int(line[1]) / 1024 for line in lines) + sum(own_memory(int(c)) for c in children)


if __name__ == "__main__":
    main()
