"""Kills, full disks and mutated media, as many as are wanted; each ends as an undisturbed run.

    python tests/faults/stress.py                         # a minute or two
    python tests/faults/stress.py --kills 1000 --full 200 --media 10000

A run is `cmcr ...` in a process forked from this one, which has imported all that it needs, so most
of the time goes into what is tried. Its workers' server is forked here too instead of started.
Where a check does not hold, the folder is kept and its name printed.
"""

import argparse
import ctypes
import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Imported once, for all runs
import faiss  # noqa: F401, TID253
import matplotlib.figure  # noqa: F401, TID253
import numpy as np
import pyarrow.dataset  # noqa: F401
import sklearn.manifold  # noqa: F401, TID253
import torch
import torch._dynamo  # an optimizer does

import cmcr.connect
import cmcr.evaluate  # noqa: F401
from cmcr.cli import app
from cmcr.evaluate.figures import joint_space
from cmcr.extract import open_source
from cmcr.extract.engine import processes
from cmcr.extract.engine.workers import Batch, load

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from conftest import Bytes  # noqa: E402
from shell import below  # noqa: E402

TEXTS = 120
SECONDS = 120  # for one run
_MS_REMOUNT = 32  # sys/mount.h
_MAY_MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]


class Forked:
    """What the engine starts its server with, forked: `subprocess.Popen` as far as it is used."""

    def __init__(self, command: list[str], pass_fds: list[int], **_: Any) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            main = Connection(os.dup(pass_fds[0]))
            keep = main.fileno()
            os.closerange(3, keep)
            os.closerange(keep + 1, 4096)
            sys.path[:] = main.recv()
            processes._server = None
            processes.serve(main)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def run(arguments: list[str], errors: Path) -> int:
    """Start `cmcr` with these arguments; gives the process."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    output = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    subprocess.Popen = Forked  # type: ignore[assignment, misc]
    joint_space.embed_2d = lambda vectors: vectors[:, :2]  # t-SNE takes seconds, and no file
    sys.argv = ["cmcr", *arguments]
    code = 1
    try:
        app.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    processes._close_server()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finished(pid: int) -> int:
    """Its exit code; a run that takes longer than `SECONDS` is a mistake."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise AssertionError(f"process {pid} has not ended in {SECONDS} s: {below(pid)}")


def content(folder: Path) -> dict[str, bytes]:
    """The files below, but locks and what was measured in time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


def commands(folder: Path) -> dict[str, list[str]]:
    """Each stage on the store of `folder`."""
    store = ["--store", str(folder / "S")]
    sources = ["--source", f"text={folder.parent / 'texts.csv'}", "--dataset", "t"]
    extract = [*sources, "--part-rows", "10", "--batch-size", "5", "--workers", "2", *store]
    connect = ["--via", "text", "--spaces", "digits-clip,digits-clap", "--train", "t"]
    pair = ["--query", "digits-clap/text:t", "--gallery", "digits-clip/text:t"]
    return {
        "extract": ["extract", "--no-pipeline", "--encoder", "digits-clip", *extract],
        "again": ["extract", "--no-pipeline", "--encoder", "digits-clap", *extract],
        "connect": ["connect", "--no-pipeline", *connect, "--method", "c-mcr", "--name", "c",
                    "--set", "epochs=8", "--memory", "none", *store],
        "evaluate": ["evaluate", "retrieval", *pair, "--connection", "c", *store],
    }  # fmt: skip


def kills(work: Path, count: int, chance: random.Random) -> None:
    """Kill the main process, one below it or all of them, until `count` were.

    A stage is begun again until it ends before it is killed, or was killed four times.
    """
    clean = work / "clean"
    clean.mkdir()
    took = {}
    for stage, arguments in commands(clean).items():
        started = time.monotonic()
        assert finished(run(arguments, work / "said")) == 0, (work / "said").read_text()
        took[stage] = time.monotonic() - started
    expected = content(clean)
    done: Counter[str] = Counter()
    rounds = 0
    while done.total() < count:
        rounds += 1
        folder = work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for stage, arguments in commands(folder).items():
            for _ in range(4):
                what, ended = _one_kill(arguments, took[stage], work, chance)
                done += Counter({f"{stage} {what}": 1} if what else {})
                if ended:
                    break
            else:
                assert finished(run(arguments, work / "said")) == 0, (work / "said").read_text()
        _same(_moved(content(folder), folder, clean), expected)
        print(f"kills: {done.total()} in {rounds} rounds, {dict(done)}", flush=True)


def _one_kill(
    arguments: list[str], took: float, work: Path, chance: random.Random
) -> tuple[str | None, bool]:
    """What was killed in a run of that many seconds; whether the run came to its end."""
    pid = run(arguments, work / "said")
    time.sleep(chance.uniform(0, took))
    every = below(pid)
    what: str | None = chance.choice(["main", "group", "worker"] if every else ["main"])
    try:
        os.kill(chance.choice(every) if what == "worker" else pid, signal.SIGKILL)
        if what == "group":
            os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        what = None if what == "worker" else what
    code = finished(pid)
    until = time.monotonic() + 5
    while left := [one for one in every if Path(f"/proc/{one}/exe").exists()]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.01)
    if what in ("main", "group") and code == -signal.SIGKILL:
        return what, False
    assert code == 0, (work / "said").read_text()
    return what if what == "worker" else None, True


def _moved(found: dict[str, bytes], folder: Path, clean: Path) -> dict[str, bytes]:
    """Results name no folder; what does is the same but for it."""
    return {
        name: data.replace(os.fsencode(folder), os.fsencode(clean)) for name, data in found.items()
    }


def _same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    differ = [
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    ]
    assert not differ, f"not as the undisturbed run: {differ}"


def full(work: Path, count: int) -> None:
    """Fill a small disk at `count` sizes, as many in each stage; make room and go on."""
    place = work / "full"
    place.mkdir()
    refused: Counter[str] = Counter()
    before: dict[str, bytes] = {}
    stages = commands(place)
    for number, (stage, arguments) in enumerate(stages.items()):
        _mount(place, "64m", 0)
        _write(place, before)
        assert finished(run(arguments, work / "said")) == 0, (work / "said").read_text()
        after = content(place)
        _unmount(place)
        least, most = _pages(before), _pages(after)
        for one in range(
            sizes := count * (number + 1) // len(stages) - count * number // len(stages)
        ):
            _mount(place, f"{(least + (most - least) * one // sizes) << 12}", 0)
            _write(place, before)
            code = finished(run(arguments, work / "said"))
            if code != 0:
                said = (work / "said").read_text()
                assert code == 1, said
                assert "Traceback" not in said, said
                assert "No space left on device" in said, said
                refused[stage] += 1
                _mount(place, "64m", _MS_REMOUNT)
                assert finished(run(arguments, work / "said")) == 0, (work / "said").read_text()
            _same(content(place), after)
            _unmount(place)
        print(
            f"disk full: {stage}, {sizes} sizes up to {most << 2} KiB: {dict(refused)}", flush=True
        )
        before = after


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _pages(files: dict[str, bytes]) -> int:
    """Of a tmpfs that holds them and nothing more."""
    return sum(-(-len(data) >> 12) for data in files.values()) + 1


def _mount(place: Path, size: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    given = b"none", os.fsencode(place), b"tmpfs", flags, f"size={size},mode=755".encode()
    if libc.mount(*given):
        raise OSError(ctypes.get_errno(), "mount")


def _unmount(place: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount(os.fsencode(place)):
        raise OSError(ctypes.get_errno(), "umount")


def media(work: Path, count: int, chance: random.Random) -> None:
    """Decode `count` files of each modality with bytes changed, cut off or put in."""
    for modality, suffix, whole in _examples():
        folder = work / modality
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06d}{suffix}").write_bytes(
                _mutated(whole[number % len(whole)], chance)
            )
        source = open_source(modality, str(folder))  # type: ignore[arg-type]
        items = list(source.items())
        batches = (
            Batch(
                0,
                items[start : start + 64],
                range(start, start + len(items[start : start + 64])),
                False,
            )
            for start in range(0, len(items), 64)
        )
        rows, failures = 0, Counter[str]()
        for loaded in load(batches, Bytes(), modality, 2, item_timeout=30):  # type: ignore[arg-type]
            rows += len(loaded.items)
            failures.update(failure["error"] for failure in loaded.failures)
        assert rows + failures.total() == len(items)
        told = {
            name: number
            for name, number in failures.most_common()
            if name in ("TimedOut", "WorkerKilled")
        }
        print(
            f"media: {len(items)} of {modality}: {rows} rows, {failures.total()} failures {told}",
            flush=True,
        )
        shutil.rmtree(folder)


def _examples() -> Iterator[tuple[str, str, list[bytes]]]:
    """A modality, a suffix, and files as they should be."""
    import soundfile
    from PIL import Image

    noise = np.random.default_rng(0)
    pixels = Image.fromarray(noise.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    sound = noise.normal(size=2_000) * 0.1
    points = noise.normal(size=(50, 3)).astype(np.float32)

    def picture(kind: str) -> bytes:
        file = io.BytesIO()
        pixels.save(file, kind)
        return file.getvalue()

    def audio(kind: str) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, sound, 16_000, format=kind)
        return file.getvalue()

    cloud = io.BytesIO()
    np.save(cloud, points)
    lines = [f"{x:.4f} {y:.4f} {z:.4f}" for x, y, z in points]
    mesh = "\n".join(["OFF", f"{len(lines)} 1 0", *lines, "3 0 1 2"])
    yield "image", ".png", [*map(picture, ("png", "jpeg", "gif", "webp", "tiff", "bmp"))]
    yield "audio", ".wav", [*map(audio, ("WAV", "FLAC", "OGG", "MP3"))]
    yield "pointcloud", ".npy", [cloud.getvalue()]
    yield "pointcloud", ".off", [mesh.encode()]
    yield "text", ".txt", [f"a photo of {number} things \u00e9".encode() for number in range(100)]


def _mutated(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 4, 32])):
        place = chance.randrange(len(data) or 1)
        match chance.randrange(4):
            case 0:
                del data[place:]
            case 1:
                data[place:place] = chance.randbytes(chance.choice([1, 4, 64]))
            case _:
                data[place : place + 1] = chance.randbytes(1)
    return bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--full", type=int, default=3, help="sizes of a disk that is too small")
    parser.add_argument("--media", type=int, default=200, help="mutated files a modality")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that forked processes share these pages
    work = Path(tempfile.mkdtemp(prefix="cmcr-stress-"))
    os.environ["TMPDIR"] = str(work)
    rows = [f"a photo of the number {number},{number % 10}" for number in range(TEXTS)]
    (work / "texts.csv").write_text("\n".join(["text,label", *rows]))
    chance = random.Random(given.seed)
    print(json.dumps(vars(given) | {"folder": str(work)}), flush=True)
    if given.kills:
        kills(work, given.kills, chance)
    if given.full and given.inside:
        full(work, given.full)
    elif given.full:  # with the right to mount, in a process of its own
        rest = ["--kills", "0", "--media", "0", "--full", str(given.full), "--inside"]
        subprocess.run([*_MAY_MOUNT, sys.executable, __file__, *rest], check=True)
    if given.media:
        media(work, given.media, chance)
    shutil.rmtree(work)
    print("all of it ended as it should")


if __name__ == "__main__":
    main()
