"""What plans and many processes cost.

    python benchmarks/scale.py plan --items 1000000 --part-rows 8192
    python benchmarks/scale.py finish --items 200000 --part-rows 8192
    python benchmarks/scale.py ray --items 8000 --part-rows 4000
    python benchmarks/scale.py driver --items 8000 --part-rows 800

plan    a list of texts is planned; then its last part is read by a process that has read no other.
        Items a second, bytes an item, bytes of the footer a part, seconds to open and to read.
finish  parts of 512 values a row, as `cmcr.embeddings` writes them, then the manifest: seconds a
        part to write, and bytes a second that finishing hashes.
ray     the texts of a plan through digits-clip, by this process and by one actor of a Ray of its
        own. Each makes a plan of `--items` and one of twice as many; what the second takes longer
        is the time of so many items after the start-up.
driver  what this process, which drives one actor, holds at most beyond what it held before, with
        parts of so many rows, and with ten times as many parts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cmcr.embeddings.parts import write_part
from cmcr.embeddings.schema import Description
from cmcr.embeddings.writer import begin, finish
from cmcr.extract import RayEngine, extract, load_encoder, open_source, write_plan

READ = """
import sys, time
from cmcr.extract import open_source
began = time.perf_counter()
source = open_source("text", sys.argv[1])
opened = time.perf_counter()
rows = sum(1 for _ in source.part(-(-source.total // source.part_rows) - 1))
print(opened - began, time.perf_counter() - opened, rows)
"""


def texts(folder: Path, items: int, name: str = "t") -> Path:
    """A list of so many texts."""
    path = folder / f"{name}.txt"
    with path.open("w") as lines:
        lines.writelines(f"a photo of the number {number}\n" for number in range(items))
    return path


def plan(folder: Path, items: int, part_rows: int) -> dict[str, Any]:
    """What a plan takes to write, and its last part to read."""
    source = open_source("text", str(texts(folder, items)))
    target = folder / "t.plan.parquet"
    began = time.perf_counter()
    write_plan(target, source, part_rows)
    seconds = time.perf_counter() - began
    parts = pq.read_metadata(target).num_row_groups
    with target.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        footer = int.from_bytes(file.read(4), "little")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(target)], check=True, capture_output=True, text=True
    )
    opened, read, _ = map(float, done.stdout.split())
    return {
        "items": items,
        "parts": parts,
        "items_per_s": items / seconds,
        "bytes_per_item": target.stat().st_size / items,
        "footer_bytes_per_part": footer / parts,
        "open_s": opened,
        "read_last_part_s": read,
    }


def finishing(folder: Path, items: int, part_rows: int) -> dict[str, Any]:
    """What parts take to write, and the manifest."""
    description = Description(
        space="x", modality="text", dataset="t", dim=512, part_rows=part_rows,
        encoder={"encoder": "x"}, source={"kind": "none"},
    )  # fmt: skip
    place = begin(folder / "store", description)
    rows = np.random.default_rng(0).standard_normal((part_rows, 512), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = -(-items // part_rows)
    began = time.perf_counter()
    for part in range(parts):
        ids = [f"photos/{part}/{row}.jpg" for row in range(part_rows)]
        write_part(place, description, part, {"id": ids, "uri": ids}, rows)
    written = time.perf_counter()
    manifest = finish(place, description, parts)
    assert manifest is not None
    size = sum(part.bytes for part in manifest.parts)
    return {
        "parts": parts,
        "bytes_per_row": size / manifest.rows,
        "write_s_per_part": (written - began) / parts,
        "finish_bytes_per_s": size / (time.perf_counter() - written),
    }


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most bytes that this process holds within the block, beyond what it held before."""
    most = [0]
    before, ended = _resident(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], _resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def on_ray(folder: Path, items: int, part_rows: int) -> dict[str, Any]:
    """Seconds of this process and of one actor."""
    ray = _started()
    encoder = load_encoder("digits-clip")
    rest: dict[str, Any] = {"workers": 0, "index": None}
    engine = RayEngine(partial(load_encoder, "digits-clip"), 1)
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    for number, count in enumerate((items, 2 * items)):
        target = folder / f"{number}.plan.parquet"
        write_plan(target, open_source("text", str(texts(folder, count))), part_rows)
        source = open_source("text", str(target))
        hashes = []
        for name, more in (("local", {}), ("ray", {"engine": engine})):
            began = time.perf_counter()
            made = extract(folder / name, encoder, source, f"d{number}", **rest, **more)
            seconds[name].append(time.perf_counter() - began)
            listed = json.loads((made.folder / "manifest.json").read_text())["parts"]
            hashes.append([part["sha256"] for part in listed])
        assert hashes[0] == hashes[1]
    ray.shutdown()
    longer = {name: two - one for name, (one, two) in seconds.items()}
    return {
        "items": items,
        "local_s": longer["local"],
        "ray_s": longer["ray"],
        "ratio": longer["ray"] / longer["local"],
        "same_sha256": True,
    }


def driver(folder: Path, items: int, part_rows: int) -> dict[str, Any]:
    """What this process holds at most while an actor makes parts, few and ten times as many."""
    ray = _started()
    encoder = load_encoder("digits-clip")
    engine = RayEngine(partial(load_encoder, "digits-clip"), 1)
    most = []
    for rows in (part_rows, part_rows // 10):
        target = folder / f"{rows}.plan.parquet"
        write_plan(target, open_source("text", str(texts(folder, items))), rows)
        source = open_source("text", str(target))
        with watched() as held:
            extract(folder / "s", encoder, source, f"m{rows}", engine=engine, workers=0, index=None)
        most.append(held[0] / 1e6)
    ray.shutdown()
    return {"items": items, "mb": most[0], "mb_ten_times_the_parts": most[1]}


def _started() -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as this process
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    return ray


def main() -> None:
    """Measure one of them, and print it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    work = {"plan": plan, "finish": finishing, "ray": on_ray, "driver": driver}
    parser.add_argument("what", choices=work)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--part-rows", type=int, default=8192)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = work[given.what](Path(folder), given.items, given.part_rows)
    print(json.dumps({"what": given.what, "part_rows": given.part_rows, **measured}))


if __name__ == "__main__":
    main()
