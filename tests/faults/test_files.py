"""Files that are whole or not there, whoever else writes them and whatever was killed before.

pytest tests/faults/test_files.py
"""

import fcntl
import hashlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmcr.embeddings import Dataset, Key, build_index, import_embeddings
from cmcr.embeddings.writer import begun, finish, reopen
from cmcr.errors import SourceError
from cmcr.extract import Encoder, extract, open_source
from cmcr.files import locked, replacing, write_text


def test_two_writers_of_one_file_with_one_process_id_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as one, replacing(tmp_path / "x") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "x").read_text() == "one"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_lock_that_was_waited_for_is_that_of_the_file_that_is_there(
    tmp_path: Path, moved: bool
) -> None:
    folder = tmp_path / "a"
    entered, leave = threading.Event(), threading.Event()

    def take() -> None:
        with locked(folder / ".lock", wait=True):
            entered.set()
            leave.wait(10)

    with locked(folder / ".lock") as first:
        assert first
        waiting = threading.Thread(target=take)
        waiting.start()
        time.sleep(0.1)
        if moved:
            folder.rename(tmp_path / "b")
        else:
            shutil.rmtree(folder)
    try:
        assert entered.wait(10)
        with locked(folder / ".lock") as other:
            assert not other
    finally:
        leave.set()
        waiting.join()


def test_a_link_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".x.{os.getpid()}").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "x").read_text() == "new"


def test_what_a_killed_process_left_is_taken_away_and_what_lives_is_not(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from cmcr.files import replacing
        with replacing(Path({str(tmp_path / "x")!r})) as unfinished:
            unfinished.write_text("half")
            os._exit(9)
    """)
    subprocess.run([sys.executable, "-c", program], check=False)
    (tmp_path / ".x.12345").touch()  # as they were named before
    (tmp_path / ".x.json.12345").touch()  # another file's
    assert len(os.listdir(tmp_path)) == 3
    with replacing(tmp_path / "x") as alive:
        alive.write_text("alive")
        write_text(tmp_path / "x", "second")
        assert alive.exists()
    assert sorted(os.listdir(tmp_path)) == [".x.json.12345", "x"]


def test_what_another_host_left_is_taken_away_after_a_day(tmp_path: Path) -> None:
    digest = hashlib.sha256(socket.gethostname().encode()).hexdigest()
    with replacing(tmp_path / "x") as unfinished:
        host, pid, digits = unfinished.name.removeprefix(".x.").rsplit("-", 2)
        assert (host, pid) == (digest[:8], str(os.getpid()))
        unfinished.touch()
    folder = tmp_path / "shared"
    folder.mkdir()
    young, old = (folder / f".x.other-{host}-{number}-{digits}" for number in (1, 2))
    for path in (young, old):
        path.touch()
    os.utime(old, (0, time.time() - 100_000))
    write_text(folder / "x", "new")
    assert set(folder.iterdir()) == {folder / "x", young}


def test_a_long_name_has_room_for_what_an_unfinished_one_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host-of-a-large-cluster-" * 2)
    monkeypatch.setattr(os, "getpid", lambda: 4_194_304)  # the largest on Linux
    write_text(tmp_path / ("x" * 215), "new")
    assert os.listdir(tmp_path) == ["x" * 215]


def test_a_full_disk_is_told_in_the_systems_words_whatever_the_library_says(
    tmp_path: Path,
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large") as error,
            replacing(tmp_path / "x.pt") as unfinished,
        ):
            torch.save(torch.zeros(100_000), unfinished)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_a_new_name_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(number: int) -> None:
        folder = stat.S_ISDIR(os.fstat(number).st_mode)
        synced.append(("folder" if folder else "file", (tmp_path / "x").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "x", "new")
    assert synced == [("file", False), ("folder", True)]


@pytest.mark.parametrize("what", ["finish", "build_index"])
def test_one_process_at_a_time_writes_files_that_belong_together(
    what: str, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset = make_dataset("a/text:t", np.ones((4, 3), np.float32))
    if what == "finish":
        reopen(dataset.folder)
    description = begun(dataset.folder)
    assert description is not None
    work = {
        "finish": lambda: finish(dataset.folder, description, 1),
        "build_index": lambda: build_index(dataset),
    }[what]
    written = {"finish": "manifest.json", "build_index": "index.json"}[what]
    (dataset.folder / "index.json").unlink(missing_ok=True)
    thread = threading.Thread(target=work)
    with locked(dataset.folder / ".lock", wait=True):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not (dataset.folder / written).exists()
    thread.join()
    assert (dataset.folder / written).exists()


def test_a_pipe_among_the_leftovers_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".x.12345")
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_file_that_was_taken_for_a_leftover_before_it_was_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = fcntl.flock, []

    def flock(held: int, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        lock(held, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_text(tmp_path / "x", "new")
    assert len(swept) == 1
    assert (tmp_path / "x").read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, seen = os.scandir, []

    def scandir(folder: Path) -> Any:
        seen.append(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    for name in "abc":
        write_text(tmp_path / name, name)
    assert seen == [tmp_path]


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_source_that_changed_while_it_was_read_is_told_apart(
    tmp_path: Path, encoder: Encoder
) -> None:
    np.save(tmp_path / "0.npy", np.zeros((4, 3), np.float32))
    for name in range(12):
        points = np.arange(12, dtype=np.float32).reshape(4, 3) + name
        np.save(tmp_path / f"{name}.npy", points)

    def refused(store: str) -> str:
        with pytest.raises(SourceError, match="changed while it was being embedded") as error:
            extract(tmp_path / "S" / store, encoder, source, "t", workers=0, part_rows=4)
        return error.value.what

    source = open_source("pointcloud", str(tmp_path))
    (tmp_path / "3.npy").rename(tmp_path / "gone")
    assert "12 items when it was opened, 11 now" in refused("vanished")
    (tmp_path / "gone").rename(tmp_path / "30.npy")
    assert "12 items when it was opened, 12 now" in refused("renamed")
    (tmp_path / "30.npy").rename(tmp_path / "3.npy")
    np.save(tmp_path / "10a.npy", points)
    assert "13 now, 1 not embedded (first: 9.npy)" in refused("appeared")


@pytest.mark.parametrize("scale", [1e25, 1e-30])
def test_vectors_of_any_length_are_imported(scale: float, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 4))
    key = Key("s", "text", "t")
    for name, given in (("plain", array), ("scaled", (array * scale).astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", given)
    stored = [
        import_embeddings(tmp_path / f"S-{name}", key, tmp_path / f"{name}.npy").embeddings()
        for name in ("plain", "scaled")
    ]
    assert np.abs(stored[0].astype(np.float32) - stored[1].astype(np.float32)).max() < 1e-3


def test_a_vector_without_direction_is_refused_by_its_row(tmp_path: Path) -> None:
    array = np.ones((4, 3), np.float32)
    array[2] = 0
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(SourceError, match="the first is row 2"):
        import_embeddings(tmp_path / "S", Key("s", "text", "t"), tmp_path / "a.npy")
