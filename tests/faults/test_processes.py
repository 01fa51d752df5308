"""Inputs that hang or crash their decoder, processes that are killed: what is left and told.

pytest tests/faults/test_processes.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.parts import read_failures
from cmcr.errors import SourceError
from cmcr.extract import extract, open_source, workers_kept
from cmcr.extract.engine import processes, workers
from cmcr.extract.engine.workers import Batch
from cmcr.extract.items import Item

sys.path.append(str(Path(__file__).parent))  # for the workers too

from faulty import Dying, Faulty, OnDeadDisk
from shell import below, succeed

SCRIPT = Path(__file__).with_name("faulty.py")


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str) -> str:
        path = tmp_path / "lines.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The script as a process of its own, with a folder of its own for temporary files.

    Its name is longer than that of a socket may be.
    """
    running = []
    temporary = tmp_path / "tmp" / ("long" * 30)

    def start(lines: str, *before: str, **options: Any) -> subprocess.Popen[str]:
        temporary.mkdir(parents=True, exist_ok=True)
        command = [
            *before, sys.executable, str(SCRIPT), str(tmp_path / "S"), lines, json.dumps(options)
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def gone(pids: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.01)
    return False


def until(condition: Callable[[], Any]) -> Any:
    for _ in range(6000):
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("nothing happened for a minute")


def at_work(process: subprocess.Popen[str], count: int) -> list[int]:
    """All processes of a run, once there are `count`; its workers have begun something by then."""
    found = until(lambda: pids if len(pids := below(process.pid)) == count else None)
    time.sleep(0.5)
    return [process.pid, *found]


def test_what_is_killed_takes_its_workers_along(
    tmp_path: Path, texts: Callable[..., str], started: Callable[..., Any]
) -> None:
    lines = ["stuck"] * 8 + ["slow"] * 2000  # one of the workers is in C with Python's lock held
    process = started(texts(*lines), workers=2, batch_size=8)
    pids = at_work(process, 3)
    process.kill()
    process.wait()
    assert gone(pids[1:])
    assert not [path for path in (tmp_path / "tmp").rglob("*") if not path.is_dir()]


SLOW = """
import time
print("importing", flush=True)
time.sleep(1000)
"""


def test_a_server_that_is_still_importing_is_told_of_and_goes_too(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text(SLOW)
    program = f"""
        import sys
        sys.path.append({str(tmp_path)!r})
        from cmcr.extract.engine import processes
        processes._TOLD_AFTER = 0.2
        processes.start(["slow_to_import"])
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        assert "import ('slow_to_import',)" in process.stderr.readline()
        server = below(process.pid)
        process.kill()
    assert len(server) == 1
    assert gone(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_says_how_to_go_on_and_leaves_nothing(
    number: int, tmp_path: Path, texts: Callable[..., str]
) -> None:
    lines = texts(*[f"number {n}" for n in range(5000)])
    (tmp_path / "tmp").mkdir()
    command = [
        sys.executable, "-m", "cmcr", "extract", "--encoder", "digits-clip", "--source",
        f"text={lines}", "--store", str(tmp_path / "S"), "--batch-size", "1", "--workers", "2",
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = at_work(process, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; the same command goes on where it stopped"
    assert "Traceback" not in said
    assert gone(pids, 0.1)
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "S").rglob("*.parquet.*"))


ROWS = [f"number {n}" for n in range(40)]


def expected(tmp_path: Path, lines: list[str]) -> tuple[bytes, list[str]]:
    """Rows and ids of `lines` where those that hang or crash are refused by their decoder."""
    path = tmp_path / "refused.txt"
    fine = [line if line.split()[0] in ("number", "once") else "refused" for line in lines]
    path.write_text("".join(f"{line}\n" for line in fine))
    source = open_source("text", str(path))
    extract(
        tmp_path / "R", Faulty(), source, "t", workers=0, batch_size=10, max_failures=1
    )  # fmt: skip
    data = open_dataset(tmp_path / "R", Key("faulty", "text", "t"))
    return data.embeddings().tobytes(), data.ids()


@pytest.mark.parametrize("count", [1, 2])
def test_an_input_that_hangs_or_crashes_is_one_failure(
    count: int, tmp_path: Path, texts: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    lines = ROWS.copy()
    lines[3], lines[17], lines[25] = "hang", "crash", f"once {tmp_path / 'mark'}"
    (tmp_path / "mark").touch()
    rows = expected(tmp_path, lines)
    (tmp_path / "mark").unlink()
    summary = extract(
        tmp_path / "S", Faulty(), open_source("text", texts(*lines)), "t",
        workers=count, item_timeout=3, batch_size=10, max_failures=1,
    )  # fmt: skip
    data = open_dataset(tmp_path / "S", Key("faulty", "text", "t"))
    assert (data.embeddings().tobytes(), data.ids()) == rows
    failures = read_failures(data.folder)
    assert [(one["id"], one["error"], one["message"]) for one in failures] == [
        ("3", "TimedOut", "not decoded within 3 s (--item-timeout)"),
        ("17", "WorkerKilled", "it ends the process that decodes it (SIGSEGV)"),
    ]
    assert summary.failures == 2
    assert "3: TimedOut" in caplog.text
    assert "17: WorkerKilled" in caplog.text


def test_an_input_that_cannot_even_be_looked_at_is_one_failure() -> None:
    encoder, pid = Faulty(), str(os.getpid())
    items = [Item(str(n), "list", content="number") for n in range(5)]
    items[3] = OnDeadDisk("3", "list", content="number", group=pid)
    batches = iter([Batch(0, items, range(5), last=True)])
    (loaded,) = workers.load(batches, encoder, "text", workers=1, item_timeout=2)
    assert [item.id for item in loaded.items] == ["0", "1", "2", "4"]
    assert [(one["id"], one["error"]) for one in loaded.failures] == [("3", "TimedOut")]


def test_texts_of_one_picture_are_not_one_input() -> None:
    lines = ["number", "hang", "number", "crash"]
    items = [Item("picture", "list", content=line) for line in lines]
    batches = iter([Batch(0, items, range(4), last=True)])
    (loaded,) = workers.load(batches, Faulty(), "text", workers=1, item_timeout=2)
    assert list(loaded.places) == [0, 2]
    assert [one["error"] for one in loaded.failures] == ["TimedOut", "WorkerKilled"]


def test_a_process_that_died_idle_costs_no_input_a_strike() -> None:
    crew = workers.Crew(Faulty(), workers.Decoding(Faulty(), "text"), 1, 60)
    items = [Item(str(n), "list", content="number") for n in range(5)]

    def batches() -> Iterator[Batch]:
        yield Batch(0, items[:2], range(2), last=False)
        (hand,) = crew.hands
        until(lambda: hand.worker.place() == (1, 2))
        time.sleep(0.2)  # for its answer to be sent; without it the batch is decoded again
        os.kill(hand.worker.pid, signal.SIGKILL)
        yield Batch(0, items[2:], range(2, 5), last=True)

    assert [len(loaded.items) for loaded in crew.load(batches(), None)] == [2, 3]
    assert list(map(type, crew.strikes)) == [int]
    crew.dismiss()


def test_where_every_input_crashes_the_inputs_are_not_blamed(
    tmp_path: Path, texts: Callable[..., str]
) -> None:
    source = open_source("text", texts(*[f"crash {n}" for n in range(40)]))
    with pytest.raises(SourceError, match="was killed: SIGSEGV"):
        extract(tmp_path / "S", Faulty(), source, "t", workers=2, batch_size=20)


@pytest.mark.parametrize(("free", "guilty"), [(1 << 20, False), (1 << 40, True), (None, True)])
def test_a_machine_short_of_memory_is_told_from_a_file_that_takes_it_all(
    free: int | None,
    guilty: bool,
    tmp_path: Path,
    texts: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "free_memory", lambda: free)
    lines = ROWS.copy()
    lines[5] = "killed"
    source = open_source("text", texts(*lines))
    options: dict[str, Any] = {"workers": 1, "batch_size": 10, "max_failures": 1}
    if guilty:
        assert extract(tmp_path / "S", Faulty(), source, "t", **options).failures == 1
    else:
        with pytest.raises(SourceError, match="was killed: SIGKILL") as error:
            extract(tmp_path / "S", Faulty(), source, "t", **options)
        assert "fewer --workers" in (error.value.fix or "")


def test_workers_and_their_server_can_be_killed(tmp_path: Path, texts: Callable[..., str]) -> None:
    lines = [f"slow {n}" for n in range(200)]
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"{line}\n" for line in lines))
    extract(tmp_path / "R", Faulty(), open_source("text", str(rows)), "t", workers=0, batch_size=5)
    encoder = Faulty()
    kills = 0

    def encode(modality: Any, batch: torch.Tensor) -> torch.Tensor:
        nonlocal kills
        kills += 1
        server = [pid for pid in below(os.getpid()) if below(pid)]
        if kills in (3, 6):
            os.kill(below(server[0])[0], signal.SIGKILL)
        if kills == 9:
            os.kill(server[0], signal.SIGKILL)
        return Faulty.encode(encoder, modality, batch)

    encoder.encode = encode  # type: ignore[method-assign]
    source = open_source("text", texts(*lines))
    extract(tmp_path / "S", encoder, source, "t", workers=2, batch_size=5)
    folder = Key("faulty", "text", "t").folder
    names = ["part-00000.parquet"]
    assert kills >= 9
    for name in names:
        assert (folder(tmp_path / "S") / name).stat().st_size > 0
    one, other = (open_dataset(tmp_path / store, Key("faulty", "text", "t")) for store in "RS")
    assert one.embeddings().tobytes() == other.embeddings().tobytes()
    assert read_failures(other.folder) == []


@pytest.mark.parametrize("times", [2, 3])
def test_a_worker_killed_before_it_begins_is_replaced_twice(
    tmp_path: Path, texts: Callable[..., str], times: int
) -> None:
    encoder = Faulty()
    encoder.preprocess = Dying(tmp_path / "count", times)
    source = open_source("text", texts(*ROWS))
    if times == 2:
        assert extract(tmp_path / "S", encoder, source, "t", workers=1).failures == 0
        return
    with pytest.raises(SourceError, match="was killed: SIGKILL"):
        extract(tmp_path / "S", encoder, source, "t", workers=1)


def test_an_encoder_that_never_returns_is_told_of(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, texts: Callable[..., str]
) -> None:
    encoder = Faulty()

    def encode(modality: Any, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        return Faulty.encode(encoder, modality, batch)

    encoder.encode = encode  # type: ignore[method-assign]
    source = open_source("text", texts(*ROWS))
    extract(tmp_path / "S", encoder, source, "t", workers=0, item_timeout=0.1)
    assert "the encoder faulty has been at one batch of 40 text inputs" in caplog.text


def test_kept_workers_serve_one_source_after_another(
    tmp_path: Path, texts: Callable[..., str]
) -> None:
    source = open_source("text", texts(*ROWS))
    others = below(os.getpid())
    with workers_kept():
        seen = []
        for store in "AB":
            extract(tmp_path / store, Faulty(), source, "t", workers=1, batch_size=10)
            here = set(below(os.getpid())) - set(others)
            seen.append(sorted(pid for pid in here if not below(pid)))
    assert seen[0] == seen[1]
    assert gone(seen[0], 10)
    one, other = (open_dataset(tmp_path / store, Key("faulty", "text", "t")) for store in "AB")
    assert one.embeddings().tobytes() == other.embeddings().tobytes()


SMALL = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*SMALL, "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount (unshare --user --mount)",
)
def test_shared_memory_of_64_kilobytes_is_enough(
    tmp_path: Path, texts: Callable[..., str], started: Callable[..., Any]
) -> None:
    mounted = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    # 3,000 rows of 8 float32 values are 96 KB, and their texts are more than a socket holds.
    lines = texts(*[f"number {n} {'x' * 100}" for n in range(9000)])
    process = started(lines, *SMALL, "sh", "-c", mounted, "sh", workers=2, batch_size=3000)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "9,000 rows" in said


def test_doctor_tells_how_much_shared_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    little = SimpleNamespace(f_bavail=16, f_frsize=1 << 20)
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    told = json.loads(succeed("doctor", "--json").stdout)["findings"]
    (line,) = [one for one in told if one["what"] == "shared memory"]
    assert line["state"] == "16 MiB free in /dev/shm; decoding processes need none of it"
    assert "--shm-size" in line["fix"]


@pytest.mark.parametrize("rows", [0, 3, 100_000])
def test_a_tensor_travels_without_memory_files_too(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.arange(rows * 2, dtype=torch.bfloat16).reshape(rows, 2)
    for there in (True, False):
        if not there:
            monkeypatch.delattr(os, "memfd_create")
        ours, theirs = Pipe()
        sent = os.fork()
        if sent == 0:
            processes._send(theirs, "done", "answer", tensor)
            os._exit(0)
        worker = processes.Worker(None, sent, ours)  # type: ignore[arg-type]
        kind, answer, received = worker.receive()
        os.waitpid(sent, 0)
        assert (kind, answer) == ("done", "answer")
        assert received is not None
        assert torch.equal(received, tensor)
        ours.close()
        theirs.close()
