"""A disk that is full at one file after another, in every stage: told, and gone on from.

pytest tests/faults/test_full.py
"""

import errno
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shell import cmcr, succeed

from cmcr.evaluate.figures import joint_space

IDS = [str(n) for n in range(60)]
PAIR = "--via text --spaces a,b --train t --memory m --no-pipeline"
STAGES = {
    "import": "import --space a --modality audio --dataset n --embeddings m.npy --store S",
    "extract": "extract --no-pipeline --encoder digits-clip --source text=lines.txt --store S "
    "--workers 0 --part-rows 10",
    "connect": f"connect {PAIR} --method c-mcr --set epochs=2 --set projector=linear --name new "
    "--store S",
    "evaluate": "evaluate retrieval --connection c --query a/image:m --gallery b/audio:m --store S",
    "project": "project --connection c --store S",
    "report": "report S",
}
STEP = {"extract": 3, "connect": 3, "evaluate": 3}  # those take a second


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, an array, and a store of two spaces and their connection."""
    folder = tmp_path_factory.mktemp("whole")
    normal = np.random.default_rng(0).normal
    pq.write_table(pa.table({"id": IDS, "group": IDS}), folder / "ids.parquet")
    (folder / "lines.txt").write_text("".join(f"number {n}\n" for n in range(30)))
    for space, modality in (("a", "image"), ("b", "audio")):
        for name, kind in (("t", "text"), ("m", modality)):
            np.save(folder / "m.npy", normal(size=(60, 6)).astype(np.float32))
            succeed("import", "--space", space, "--modality", kind, "--dataset", name, "--store",
                    "S", "--embeddings", "m.npy", "--metadata", "ids.parquet", "--index", "none",
                    cwd=folder)  # fmt: skip
    succeed("connect", *PAIR.split(), "--method", "cca", "--name", "c", "--store", "S", cwd=folder)
    return folder


def content(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and ".lock" not in str(path.relative_to(store))
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_at_one_file_after_another(
    stage: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes seconds, and is no matter here.
    monkeypatch.setattr(joint_space, "embed_2d", lambda vectors: vectors[:, :2])
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _, file, **__: file.write_bytes(b"picture")
    )
    folder = tmp_path / "folder"
    command = STAGES[stage].split()
    shutil.copytree(whole, folder)
    succeed(*command, cwd=folder)
    expected = content(folder / "S")
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    for fits in range(0, 100, STEP.get(stage, 1)):
        left = iter(range(fits))

        def fsync(number: int, left: object = left) -> None:
            if stat.S_ISREG(os.fstat(number).st_mode) and next(left, None) is None:  # type: ignore[call-overload]
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            done = cmcr(*command, cwd=folder)
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert "make room" in done.stderr
        assert "Traceback" not in done.stderr
    assert fits > 0
    assert content(folder / "S") == expected
