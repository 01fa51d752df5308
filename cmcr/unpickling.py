"""Pickles read for what they hold: tensors, arrays and plain values, and nothing that runs.

    value = InertUnpickler(file).load()      # tensors are Stored: where their numbers lie

A pickle is a program, and all it can do is name things and call them. Here a name is looked up in
`NAMES` and never imported, whatever the protocol. What stands there is a function below that checks
what it is handed; any other name is `Refused` before it is touched.

The opcodes are run by the unpickler that Python has in Python: C's reserves as much memory for its
memo as a number in the file says. Some of them would pass by the names and are closed here: BUILD
sets attributes of any object, EXT names by number, and those that fill a container would call
methods of whatever lies in its place. What is refused is told by its type and never printed: a
value that holds one value twice, and so on forty times, is a short pickle and a text without end.
"""

import math
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import IO, Any, ClassVar

import numpy as np
import torch

LARGEST_VIEW = 2**26  # elements of a view of fewer numbers, some of them more than once
LARGEST_RANK = 64  # dimensions that NumPy's arrays have at the most


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is neither a tensor nor a plain value."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a file, which several tensors can share."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: a view that does not leave its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int  # as the strides, in elements
    size: tuple[int, ...]
    stride: tuple[int, ...]


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle from `file`; `storages` are those that were named in it.

    Raises Refused, or what a damaged pickle makes Python's unpickler stumble over.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes] | mmap) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return NAMES[module, name]
        except KeyError:
            raise Refused(f"it names {module}.{name}") from None

    def persistent_load(self, named: Any) -> Storage:
        """torch's name for a storage: ("storage", type, key, device, numel[, no view])."""
        given: list[Any] = [*named] if isinstance(named, tuple) else []
        kind, dtype, key, _, numel, *view = given + [None] * 5
        if kind != "storage" or type(key) is not str or not _count(numel) or any(view):
            raise Refused(f"it refers to something else than a storage, by a {_type(named)}")
        if not isinstance(dtype, StorageType):
            raise Refused("it refers to a storage of no type")
        storage = Storage(key, dtype.dtype, numel)
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise Refused(f"it gives storage {key} two sizes")
        return storage

    def load_append(self) -> None:
        item = self.stack.pop()
        self.last_of(list).append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self.last_of(list).extend(items)

    def load_additems(self) -> None:
        items = _keys(self.pop_mark())
        self.last_of(set).update(items)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        (key,) = _keys([self.stack.pop()])
        self.last_of(dict, OrderedDict)[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        pairs = zip(_keys(items[::2]), items[1::2], strict=True)
        self.last_of(dict, OrderedDict).update(pairs)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))

    def load_frozenset(self) -> None:
        items = _keys(self.pop_mark())
        self.stack.append(frozenset(items))

    def last_of(self, *kinds: type) -> Any:
        """The container on top, of just one of `kinds`."""
        if type(self.stack[-1]) not in kinds:
            raise Refused(f"it puts items into a {_type(self.stack[-1])}")
        return self.stack[-1]

    def load_build(self) -> None:
        state = self.stack.pop()
        _set_state(self.stack[-1], state)

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(length)))  # read first: it ends where the file does

    def refuse_extension(self) -> None:
        raise Refused("it names something by a number of Python's extension registry")

    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch |= dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, refuse_extension)


def _count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _counts(numbers: Any) -> bool:
    return len(numbers) <= LARGEST_RANK and all(map(_count, numbers))


def _type(value: Any) -> str:
    return type(value).__name__


def _keys(values: Sequence[Any]) -> Sequence[Any]:
    """What is to be hashed. A tuple's hash asks for those of all its items, however often."""
    for value in values:
        if isinstance(value, tuple | frozenset) and any(
            isinstance(item, tuple | frozenset) for item in value
        ):
            raise Refused(f"it holds a {_type(value)} of others as a key or an item of a set")
    return values


# Tensors


@dataclass(frozen=True)
class StorageType:
    """Stands for torch.FloatStorage and its like."""

    dtype: torch.dtype


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Stored:
    if metadata:
        raise Refused("it holds a tensor that is conjugated or negated")
    return _view(storage, None, offset, size, stride)


def _typed_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Stored:
    if metadata or not isinstance(dtype, torch.dtype):
        raise Refused("it holds a tensor that is conjugated or negated, or of no type")
    return _view(storage, dtype, offset, size, stride)


def _view(storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any) -> Stored:
    if not isinstance(storage, Storage):
        raise Refused("it holds a tensor without a storage")
    if not all(type(numbers) in (tuple, list, torch.Size) for numbers in (size, stride)):
        raise Refused("it holds a tensor without a shape")
    if len(size) != len(stride) or not (_count(offset) and _counts(size) and _counts(stride)):
        raise Refused("it holds a tensor whose shape is none")
    dtype = dtype or storage.dtype
    there = storage.nbytes // dtype.itemsize
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if (count and end > there) or count > max(there, LARGEST_VIEW):
        raise Refused(f"it holds a tensor that leaves its storage of {there} numbers")
    return Stored(storage, dtype, offset, tuple(size), tuple(stride))


def _parameter(data: Any, requires_grad: Any = None, hooks: Any = None, state: Any = None) -> Any:
    if not isinstance(data, Stored | torch.Tensor):
        raise Refused("it holds a parameter without a tensor")
    return data


def _size(numbers: Any = ()) -> torch.Size:
    if not isinstance(numbers, tuple | list) or not _counts(numbers):
        raise Refused("it holds a shape that is none")
    return torch.Size(numbers)


def _device(kind: Any, index: Any = None) -> torch.device:
    if type(kind) is not str or not (index is None or _count(index)):
        raise Refused("it holds a device that is none")
    return torch.device(kind) if index is None else torch.device(kind, index)


# NumPy

_NDARRAY = "numpy.ndarray"  # stands for the class
_PLAIN = re.compile(r"([biufc])(\d{1,2})|[SU]\d{1,9}")  # no objects, no records


def _dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype:
    if type(code) is not str:
        raise Refused(f"it holds NumPy values of a type that is a {_type(code)}")
    if not _PLAIN.fullmatch(code):
        raise Refused(f"it holds NumPy values of type {code[:40]!r}")
    return np.dtype(code, False, True)  # a copy


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, np.dtype) or type(raw) is not bytes or len(raw) != dtype.itemsize:
        raise Refused("it holds a NumPy number that is none")
    return np.frombuffer(raw, dtype)[0]


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not _NDARRAY:
        raise Refused("it holds an array of a class of its own")
    return np.empty(0, np.int8)


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    _check_array(raw, dtype, shape)
    if order not in ("C", "F"):
        raise Refused("it holds a NumPy array in no order")
    return np.ndarray(shape, dtype, bytearray(raw), order=order)


def _check_array(raw: Any, dtype: Any, shape: Any) -> None:
    if not isinstance(dtype, np.dtype) or type(raw) not in (bytes, bytearray):
        raise Refused("it holds a NumPy array of something else than numbers")
    if type(shape) is not tuple or not _counts(shape):
        raise Refused("it holds a NumPy array without a shape")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise Refused("it holds a NumPy array whose shape is not that of its numbers")


# Plain values


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise Refused("it encodes text; only bytes are written so")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _ordered(pairs: Any = ()) -> OrderedDict:
    if not isinstance(pairs, tuple | list):
        raise Refused("it holds a dictionary that is none")
    if not all(type(pair) in (tuple, list) and len(pair) == 2 for pair in pairs):
        raise Refused("it holds a dictionary of something else than pairs")
    return OrderedDict(zip(_keys([key for key, _ in pairs]), (v for _, v in pairs), strict=True))


def _set(items: Any = ()) -> set:
    if type(items) is not list:
        raise Refused("it holds a set that is none")
    return set(_keys(items))


def _set_state(built: Any, state: Any) -> None:
    """What BUILD does, to the few things that have a state."""
    if type(built) is Namespace and isinstance(state, dict):
        if not all(type(name) is str for name in state):
            raise Refused("it holds flags without names")
        vars(built).update(state)
    elif isinstance(built, np.dtype) and isinstance(state, tuple) and len(state) >= 5:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Refused("it holds NumPy records")
        # All but the order of the bytes is as `built` has it, whatever the file says.
        own = (built.itemsize, built.alignment) if built.kind in "SU" else (-1, -1)
        built.__setstate__((3, state[1], None, None, None, *own, built.flags))  # type: ignore[attr-defined]
    elif type(built) is np.ndarray and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, by_columns, raw = state
        _check_array(raw, dtype, shape)
        built.__setstate__((1, shape, dtype, bool(by_columns), raw))
    elif type(built) is not OrderedDict:  # a state dict has attributes: versions of modules
        raise Refused(f"it sets the state of {_type(built)}")


NAMES: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.storage", "UntypedStorage"): StorageType(torch.uint8),
    **{
        ("torch", f"{name}Storage"): StorageType(dtype)
        for name, dtype in {
            "Double": torch.float64,
            "Float": torch.float32,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexFloat": torch.complex64,
            "ComplexDouble": torch.complex128,
        }.items()
    },
    **{("torch", name): kind for name, kind in vars(torch).items() if type(kind) is torch.dtype},
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "scalar", _scalar),
            ("multiarray", "_reconstruct", _empty_array),
            ("numeric", "_frombuffer", _array),
        )
    },
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): _encoded,
    ("argparse", "Namespace"): Namespace,
    ("collections", "OrderedDict"): _ordered,
    **{
        (module, name): function
        for module in ("builtins", "__builtin__")  # protocol 2 has the names of Python 2
        for name, function in (("bytes", _no_bytes), ("set", _set))
    },
}
