"""Weights in files: what torch.save or safetensors wrote, read without running any of it.

    state = read_weights(Path("630k-fusion-best.pt"))    # name → tensor, on the CPU
    saved = read_saved(Path("630k-fusion-best.pt"))      # the training state around it too

Both formats of torch.save, the zip and the one before torch 1.6, in every pickle protocol; what a
pickle may name is in cmcr/unpickling.py. `read_weights` reads only the tensors that it gives: a
checkpoint's optimizer, twice the weights, stays on the disk.
"""

import io
import mmap
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcr.unpickling import InertUnpickler, Refused, Storage, Stored

_MAGIC, _FORMAT = 0x1950A86A20F9469CFC6C, 1001  # how the format before the zip begins


class WeightsError(ValueError):
    """A file from which no weights are taken; the message is a sentence about "the checkpoint"."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch.save file, on the CPU, by name.

    Those of a nested "state_dict" where there is one. The prefix `module.` of data-parallel
    training is cut off, and what is no tensor is left out. Raises WeightsError, or OSError for a
    file that cannot be opened.
    """
    with _explained():
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
        else:
            with _opened(path) as (pickled, storages):
                saved = InertUnpickler(pickled).load()
                state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else {}
                tensors = {
                    name: storages.tensor(value)
                    for name, value in (state.items() if isinstance(state, Mapping) else ())
                    if isinstance(name, str) and isinstance(value, Stored)
                }
    if not tensors:
        raise WeightsError("the checkpoint is none: it holds no tensors by name")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def read_saved(path: Path) -> Any:
    """Everything that torch.save wrote to `path`: tensors, arrays, containers and plain values.

    A parameter is read as a tensor, an argparse.Namespace as one. Raises as `read_weights`.
    """
    with _explained(), _opened(path) as (pickled, storages):
        return InertUnpickler(pickled, storages.tensor).load()


def is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote `path`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Storages(ABC):
    """The storages of a file, each read once and shared by its tensors."""

    def __init__(self) -> None:
        self.read: dict[str, torch.UntypedStorage] = {}

    @abstractmethod
    def content(self, storage: Storage) -> bytearray:
        """The bytes of a storage, in the order of this machine. Raises WeightsError."""

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor that `stored` stands for."""
        storage = stored.storage
        if storage.key not in self.read:
            content = self.content(storage)
            self.read[storage.key] = (
                torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
                if content
                else torch.empty(0).untyped_storage()
            )
        empty = torch.empty(0, dtype=stored.dtype)
        return empty.set_(self.read[storage.key], stored.offset, stored.size, stored.stride)


class _Zip(_Storages):
    """Each storage is a member `data/KEY`, beside the pickle."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__()
        self.archive, self.folder = archive, folder
        order = b"little"
        if f"{folder}/byteorder" in archive.namelist():
            order = self.member("byteorder", len("little"))
        self.swapped = order.decode() != sys.byteorder

    def member(self, name: str, most: int) -> bytes:
        """A member of at most so many bytes. Raises WeightsError for more or packed ones."""
        info = self.archive.getinfo(f"{self.folder}/{name}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise WeightsError(f"the checkpoint is damaged: {name} is not as large as it should be")
        return self.archive.read(info)

    def content(self, storage: Storage) -> bytearray:
        content = bytearray(self.member(f"data/{storage.key}", storage.nbytes))
        if len(content) != storage.nbytes:
            raise WeightsError(
                f"the checkpoint is damaged: data/{storage.key} has {len(content)} bytes where "
                f"{storage.nbytes} are named"
            )
        if self.swapped and content:
            swapped = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
            swapped.byteswap(storage.dtype)  # type: ignore[no-untyped-call]
        return content


class _Legacy(_Storages):
    """Storages follow the pickle, each behind its number of elements. They are little-endian."""

    def __init__(self, file: mmap.mmap, storages: Mapping[str, Storage]) -> None:
        super().__init__()
        self.file = file
        self.places: dict[str, int] = {}
        keys = InertUnpickler(file).load()
        place = file.tell()
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(file[place : place + 8], "little")
            self.places[key] = place + 8
            place += 8 + storage.nbytes
            if count != storage.numel or place > len(file):
                raise WeightsError("the checkpoint is damaged: it ends within its tensors")

    def content(self, storage: Storage) -> bytearray:
        place = self.places[storage.key]
        return bytearray(self.file[place : place + storage.nbytes])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BytesIO, _Storages]]:
    """The pickle of a torch.save file, and where its storages are."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise WeightsError("the checkpoint is a TorchScript archive, a program")
                if len(pickles) != 1:
                    raise WeightsError("the checkpoint is a zip archive, but not one of torch.save")
                folder = pickles[0].removesuffix("/data.pkl")
                storages = _Zip(archive, folder)
                yield io.BytesIO(storages.member("data.pkl", path.stat().st_size)), storages
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield _legacy(content)


def _legacy(file: mmap.mmap) -> tuple[io.BytesIO, _Storages]:
    if file[:1] != b"\x80":  # a pickle of protocol 2 or later
        raise ValueError("it is neither a zip archive nor a pickle")
    start = [InertUnpickler(file).load() for _ in range(3)]  # magic number, format, the machine
    if start[:2] != [_MAGIC, _FORMAT]:
        raise ValueError("it is a pickle that torch.save did not write")
    begin = file.tell()
    seen = InertUnpickler(file)
    seen.load()
    pickled = io.BytesIO(file[begin : file.tell()])
    return pickled, _Legacy(file, seen.storages)


@contextmanager
def _explained() -> Iterator[None]:
    """What a file makes a reader stumble over, as WeightsError."""
    try:
        yield
    except (WeightsError, OSError):
        raise
    except Refused as error:
        raise WeightsError(
            f"the checkpoint holds more than tensors and plain values, which are all that is read: "
            f"{error}"
        ) from error
    except Exception as error:  # a damaged pickle or archive can end in any of them
        lines = str(error).splitlines() or [type(error).__name__]
        raise WeightsError(f"the checkpoint is damaged or is none: {lines[0][:200]}") from error
