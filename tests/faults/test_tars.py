"""Tars that are cut, bloated or sparse.

pytest tests/faults/test_tars.py
"""

import bz2
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cmcr.errors import SourceError
from cmcr.extract import Encoder, extract, open_source
from cmcr.extract.engine import local, workers


def packed(path: Path, count: int, size: int = 100, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number in range(count):
            info = tarfile.TarInfo(f"{number:03d}.npy")
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    return path


def test_a_tar_cut_between_two_files_is_cut(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.tar", 40)
    os.truncate(path, 23 * 1024)
    with pytest.raises(SourceError, match="after 22 whole samples: it ends without") as caught:
        open_source("pointcloud", str(path))
    command = str(caught.value.fix).partition("keep what is whole: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    # More may have followed under the key of the 23rd.
    assert open_source("pointcloud", str(tmp_path / "WHOLE.tar")).total == 22


def test_a_name_of_many_megabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 200 << 20
    packer = bz2.BZ2Compressor()
    with (tmp_path / "x.tar.gz").open("wb") as file:
        file.write(packer.compress(info.tobuf()))
        for _ in range(200):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    program = (
        "import resource, sys\n"
        "from cmcr.errors import SourceError\n"
        "from cmcr.extract import open_source\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    open_source('audio', sys.argv[1])\n"
        "except SourceError as error:\n    print(error.what)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.tar.gz")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    what, more = done.stdout.splitlines()
    assert "not a tar that can be read" in what
    assert int(more) < 100 << 10  # KiB


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "x.tar", "a.npy"], cwd=tmp_path, check=True)
    with pytest.raises(SourceError, match=r"the tar holds a sparse file, a\.npy") as caught:
        open_source("pointcloud", str(tmp_path / "x.tar"))
    assert "without --sparse" in str(caught.value.fix)


def test_a_batch_holds_no_more_media_than_its_limit(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("image", str(packed_pictures(tmp_path)))
    sizes = []

    def recorded(batch: workers.Batch, *rest: object) -> workers.Loaded:
        sizes.append(sum(map(workers.content_bytes, batch.items)))
        return whole(batch)

    whole = workers.Decoding(encoder, "image").load
    monkeypatch.setattr(local, "LARGEST_BATCH", 30_000)
    monkeypatch.setattr(workers.Decoding, "load", lambda self, batch, *rest: recorded(batch))
    summary = extract(tmp_path / "S", encoder, source, "t", workers=0, max_failures=1)
    assert summary.rows == 20
    assert len(sizes) > 3
    assert max(sizes) < 40_000


def packed_pictures(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    with tarfile.open(folder / "p.tar.gz", "w:gz") as tar:
        for number in range(20):
            pixels = noise.integers(0, 255, (50, 50, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            info = tarfile.TarInfo(f"{number}.png")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
    return folder / "p.tar.gz"
