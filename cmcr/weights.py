"""Weights in files: what torch.save or safetensors wrote, read without running any of it.

    state = read_weights(Path("630k-fusion-best.pt"))    # name → tensor, on the CPU

Both formats of torch.save, the zip and the one before torch 1.6, in every pickle protocol; what a
pickle may name is in cmcr/unpickling.py. `read_weights` reads only the tensors that it gives: a
checkpoint's optimizer, twice the weights, stays on the disk.
"""

import io
import mmap
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from cmcr.unpickling import InertUnpickler, Refused, Storage, Stored

_Bytes: TypeAlias = io.BytesIO | mmap.mmap
_MAGIC, _FORMAT = 0x1950A86A20F9469CFC6C, 1001  # how the format before the zip begins


class WeightsError(ValueError):
    """A file from which no weights are taken; the message is a sentence about "the checkpoint".

    Whoever reads one knows what it is of, and tells it as an EncoderError or a SourceError.
    """


def read_weights(path: Path, content: bytes | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch.save file, on the CPU, by name.

    Those of a nested "state_dict" where there is one. The prefix `module.` of data-parallel
    training is cut off, and what is no tensor is left out. `content` are the file's bytes, where
    they have been read already. Raises WeightsError, or OSError for a file that cannot be opened.
    """
    with _explained():
        if path.suffix == ".safetensors":
            from safetensors.torch import load, load_file

            tensors: dict[str, Tensor] = load_file(path) if content is None else load(content)
        else:
            with _opened(path, content) as (pickled, storages):
                unpickler = InertUnpickler(pickled)
                saved = unpickler.load()
                storages.check(unpickler.storages.values())
                state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else {}
                tensors = {
                    name: storages.tensor(value)
                    for name, value in (state.items() if isinstance(state, Mapping) else ())
                    if isinstance(name, str) and isinstance(value, Stored)
                }
    if not tensors:
        raise WeightsError("the checkpoint is none: it holds no tensors by name")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote `path`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Storages(ABC):
    """The storages of a file of `size` bytes, each read once and shared by its tensors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: dict[str, torch.UntypedStorage] = {}

    def check(self, storages: Iterable[Storage]) -> None:
        """Raise WeightsError where they have more bytes than the file: some lie in others."""
        named = sum(storage.nbytes for storage in storages)
        if named > self.size:
            raise WeightsError(
                f"the checkpoint is damaged: its tensors are of {named} bytes, the file of "
                f"{self.size}"
            )

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

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        super().__init__(size)
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

    def __init__(self, file: _Bytes, storages: Mapping[str, Storage], size: int) -> None:
        super().__init__(size)
        self.file = file
        self.places: dict[str, int] = {}
        keys = InertUnpickler(file).load()
        place = file.tell()
        for key in keys:
            storage = storages[key]
            file.seek(place)
            count = int.from_bytes(file.read(8), "little")
            self.places[key] = place + 8
            place += 8 + storage.nbytes
            if count != storage.numel or place > size:
                raise WeightsError("the checkpoint is damaged: it ends within its tensors")

    def content(self, storage: Storage) -> bytearray:
        self.file.seek(self.places[storage.key])
        return bytearray(self.file.read(storage.nbytes))


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[tuple[io.BytesIO, _Storages]]:
    """The pickle of a torch.save file, and where its storages are."""
    with path.open("rb") if content is None else io.BytesIO(content) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise WeightsError("the checkpoint is a TorchScript archive, a program")
                if len(pickles) != 1:
                    raise WeightsError("the checkpoint is a zip archive, but not one of torch.save")
                folder = pickles[0].removesuffix("/data.pkl")
                storages = _Zip(archive, folder, size)
                yield io.BytesIO(storages.member("data.pkl", size)), storages
        elif isinstance(file, io.BytesIO):
            file.seek(0)
            yield _legacy(file, size)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield _legacy(mapped, size)


def _legacy(file: _Bytes, size: int) -> tuple[io.BytesIO, _Storages]:
    if file.read(1) != b"\x80":  # a pickle of protocol 2 or later
        raise ValueError("it is neither a zip archive nor a pickle")
    file.seek(0)
    start = [InertUnpickler(file).load() for _ in range(3)]  # magic number, format, the machine
    if start[:2] != [_MAGIC, _FORMAT]:
        raise ValueError("it is a pickle that torch.save did not write")
    begin = file.tell()
    seen = InertUnpickler(file)
    seen.load()
    end = file.tell()
    file.seek(begin)
    return io.BytesIO(file.read(end - begin)), _Legacy(file, seen.storages, size)


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
