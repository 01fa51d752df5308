"""Pickled lists, dicts and arrays, read for what they hold by cmcr/unpickling.py's closed list.

    points, labels = read_pickled(file)       # ULIP's modelnet40_test_8192pts_fps.dat
    cloud = read_object_array(file)           # np.save of a dict: the dict, such as {"xyz": (n, 3)}

Nothing in the file is run: any name that is neither NumPy's array nor a plain value is refused.
"""

from typing import IO, Any, BinaryIO

import numpy as np

from cmcr.unpickling import InertUnpickler, Refused

_OBJECTS = object()  # stands for NumPy's type of Python objects
_LARGEST_HEADER = 1 << 12  # bytes; of an array of objects it takes some 70


def read_pickled(file: IO[bytes]) -> Any:
    """The list, dict, array or plain value that was pickled; an array of objects is a list.

    Raises pickle.UnpicklingError (Refused) for whatever else it names, or what a damaged pickle
    makes Python's unpickler stumble over.
    """
    return _ObjectUnpickler(file).load()


def is_object_array(file: BinaryIO) -> bool:
    """Whether a .npy file holds pickled objects instead of numbers; the file is left at its start.

    Raises ValueError for a file that is no .npy.
    """
    try:
        _, _, dtype = _header(file)
        return bool(dtype.hasobject)
    finally:
        file.seek(0)


def read_object_array(file: BinaryIO) -> Any:
    """What np.save made an array of objects of: the object itself where it was only one.

    Raises as `read_pickled`, ValueError for a file that is no .npy.
    """
    shape, _, _ = _header(file)
    objects = read_pickled(file)
    if not isinstance(objects, list):
        raise Refused("it holds no array of objects")
    return objects[0] if shape == () and len(objects) == 1 else objects


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    npy: Any = np.lib.format  # whose types lack half of it
    first = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    header: tuple[tuple[int, ...], bool, np.dtype] = read(file, max_header_size=_LARGEST_HEADER)
    return header


def _is_of_objects(state: Any) -> bool:
    """Whether the state of an array says so: (version, shape, type, by columns, objects)."""
    return type(state) is tuple and len(state) == 5 and state[2] is _OBJECTS


class _ObjectUnpickler(InertUnpickler):
    """Reads NumPy's arrays of objects besides, as the lists that they are pickled as."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            plain = super().find_class(module, name)
            return lambda code, *rest: _OBJECTS if code in ("O", "O8") else plain(code, *rest)
        return super().find_class(module, name)

    def load_build(self) -> None:
        built, state = self.stack[-2:]
        if built is _OBJECTS:
            self.stack.pop()
        elif type(built) is np.ndarray and _is_of_objects(state):
            self.stack.pop()
            if type(state[4]) is not list:
                raise Refused("it holds an array of objects without them")
            self.stack[-1] = state[4]
        else:
            super().load_build()

    dispatch = InertUnpickler.dispatch | {ord("b"): load_build}
