"""The reader of weight files: what torch.save writes comes back, and nothing else is touched.

pytest tests/floor/test_weights.py
"""

import io
import os
import pickle
import struct
import subprocess
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from cmcr.unpickling import InertUnpickler, Refused
from cmcr.weights import WeightsError, is_torchscript, read_weights

FORMATS = [(protocol, zipped) for protocol in (2, 3, 4, 5) for zipped in (True, False)]


def save(content: Any, path: Path, protocol: int = 2, zipped: bool = True) -> Path:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return path


def unpickled(content: bytes) -> Any:
    return InertUnpickler(io.BytesIO(content)).load()


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are of one kind and equal, tensors to the stride."""
    if isinstance(theirs, Tensor):  # a parameter is read as a tensor
        form = (theirs.dtype, theirs.shape, theirs.stride())
        return (
            type(ours) is Tensor
            and (ours.dtype, ours.shape, ours.stride()) == form
            and torch.equal(ours, theirs)
        )
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(theirs, Namespace):
        return same(vars(ours), vars(theirs))
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def clap_file() -> dict[str, Any]:
    """What LAION's CLAP files hold, on small tensors."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 45,
        "name": "2022-11-10",
        "state_dict": OrderedDict((f"module.{n}", t) for n, t in model.state_dict().items()),
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "best": {"recall": np.float64(0.5), "step": np.int64(3), "rank": np.float32(2)},
    }


def ulip_file() -> dict[str, Any]:
    """What ULIP-2's files hold."""
    flags = Namespace(model="ULIP_PointBERT", betas=(0.9, 0.98), gpu=None, nested=Namespace(a=[1]))
    return {**clap_file(), "best_acc1": np.float64(75.6), "args": flags}


def tensors() -> dict[str, Any]:
    """Tensors of every kind that weights come in."""
    base = torch.randn(4, 6)
    return {
        "transposed": base.t(),
        "part": base[1:, ::2],
        "shared": base,
        "expanded": torch.randn(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "int64": torch.arange(5),
        "uint16": torch.arange(4).to(torch.uint16),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "number": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }


def values() -> dict[str, Any]:
    """Arrays and plain values."""
    return {
        "arrays": [np.arange(6.0).reshape(2, 3).T, np.empty((0, 3)), np.array(["ab", "c"])],
        "numbers": [np.bool_(True), np.str_("hé"), np.float16(0.1), np.complex64(1j)],
        "dtypes": [np.dtype("f4"), np.dtype(">i2"), torch.bfloat16],
        "places": [torch.Size([2, 3]), torch.device("cuda:1")],
        "plain": [None, True, 2**80, 1.5, "ä", b"a\xff", b"", {1, 2}, (1, [2])],
    }


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read(protocol: int) -> None:
    content = {**values(), "args": ulip_file()["args"], "best": clap_file()["best"]}
    assert same(unpickled(pickle.dumps(content, protocol)), content)


@pytest.mark.parametrize(("protocol", "zipped"), FORMATS)
def test_tensors_are_read_as_they_were_saved(protocol: int, zipped: bool, tmp_path: Path) -> None:
    content = tensors()
    path = save(content, tmp_path / "saved.pt", protocol, zipped)
    assert same(read_weights(path), content)
    assert same(read_weights(Path("read.pt"), path.read_bytes()), content)


@pytest.mark.parametrize(("protocol", "zipped"), FORMATS)
@pytest.mark.parametrize("make", [clap_file, ulip_file])
def test_weights_are_the_nested_state_dict(
    make: Callable[[], dict[str, Any]], protocol: int, zipped: bool, tmp_path: Path
) -> None:
    content = make()
    state = read_weights(save(content, tmp_path / "saved.pt", protocol, zipped))
    assert list(state) == [name.removeprefix("module.") for name in content["state_dict"]]
    assert all(same(state[name[7:]], tensor) for name, tensor in content["state_dict"].items())


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_one_storage_share_it(zipped: bool, tmp_path: Path) -> None:
    state = read_weights(save(tensors(), tmp_path / "saved.pt", zipped=zipped))
    state["shared"][0, 0] = 7
    assert state["transposed"][0, 0] == 7


def test_arrays_in_the_other_byte_order() -> None:
    content = [np.arange(3, dtype=">f4"), np.array(["ab"], dtype=">U2"), np.array(5, ">i8")[()]]
    for protocol in (2, 5):
        read = unpickled(pickle.dumps(content, protocol))
        assert [value.tolist() for value in read] == [value.tolist() for value in content]


def test_a_file_from_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    content = {"single": torch.randn(3), "half": torch.randn(4).half(), "long": torch.arange(3)}
    path = save(content, tmp_path / "little.pt")
    with zipfile.ZipFile(path) as little, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for name in little.namelist():
            member = little.read(name)
            if "/data/" in name:
                width = len(member) // len([*content.values()][int(name[-1])])
                member = np.frombuffer(member, f"V{width}").view(f"<u{width}").byteswap().tobytes()
            big.writestr(name, b"big" if name.endswith("byteorder") else member)
    assert same(read_weights(tmp_path / "big.pt"), content)


def test_only_the_weights_are_read(tmp_path: Path) -> None:
    """What is damaged is not noticed where it is none of the weights."""
    for damaged in ("optimizer", "state_dict"):
        saved = {"state_dict": {"a": torch.full((3,), 2.0)}, "optimizer": torch.ones(5)}
        path = save(saved, tmp_path / "a.pt")
        tensor = saved["optimizer"] if damaged == "optimizer" else saved["state_dict"]["a"]
        there = tensor.numpy().tobytes()
        path.write_bytes(path.read_bytes().replace(there, b"\xff" * len(there)))
        if damaged == "optimizer":
            assert torch.equal(read_weights(path)["a"], torch.full((3,), 2.0))
        else:
            with pytest.raises(WeightsError, match="CRC"):
                read_weights(path)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file({"module.a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    for content in (None, path.read_bytes()):
        assert torch.equal(read_weights(path, content)["a"], torch.arange(3.0))


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES


@st.composite
def any_tensor(draw: st.DrawFn) -> Tensor:
    """Tensors of 0 to 3 dimensions, transposed and cut at will."""
    size = draw(st.lists(st.integers(0, 4), max_size=3))
    made = (torch.randn(size) * 9).to(draw(st.sampled_from(KINDS)))
    if size:
        made = made.transpose(0, draw(st.integers(0, len(size) - 1)))
        made = made[draw(st.integers(0, 2)) :: draw(st.integers(1, 3))]
    return made


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.dictionaries(NAMES, any_tensor() | PLAIN, max_size=5),
    form=st.sampled_from(FORMATS),
)
def test_any_state_dict_is_read_as_torch_reads_it(
    content: dict[str, Any], form: tuple[int, bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = save(content, tmp_path_factory.getbasetemp() / "any.pt", *form)
    theirs = torch.load(path, weights_only=False)
    tensors = {n.removeprefix("module."): t for n, t in theirs.items() if isinstance(t, Tensor)}
    if tensors and "state_dict" not in theirs:
        assert same(read_weights(path), tensors)


@settings(deadline=None, max_examples=60)
@given(
    content=st.recursive(
        PLAIN,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(NAMES, inner, max_size=3)
            | st.tuples(inner, inner)
            | st.sets(st.tuples(NAMES, st.integers()), max_size=3)
        ),
        max_leaves=6,
    ),
    protocol=st.integers(2, 5),
)
def test_any_plain_value_is_read(content: Any, protocol: int) -> None:
    assert same(unpickled(pickle.dumps(content, protocol)), content)


# What is not read


class Call:
    """Pickles as a call of `function`, which a reader that runs pickles would make."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, *([] if state is None else [state]))

    def __reduce__(self) -> Any:
        return self.reduced


def reached(*arguments: Any, **more: Any) -> None:
    raise AssertionError("the file was run")


class Dangerous(dict):
    def __setstate__(self, state: Any) -> None:
        reached()


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "a shell": (lambda: Call(os.system, "touch reached"), "names posix.system"),
    "a program": (
        lambda: Call(subprocess.Popen, ["touch", "reached"]),
        r"names (subprocess|commands)\.Popen",
    ),
    "eval": (lambda: Call(eval, "reached()"), r"names (__builtin__|builtins).eval"),
    "torch.load": (lambda: Call(torch.load, "other.pt"), "names torch.serialization.load"),
    "getattr": (lambda: Call(getattr, str, "join"), r"names (__builtin__|builtins).getattr"),
    "a function of ours": (lambda: Call(reached), r"names .*reached"),
    "a fraction": (lambda: Fraction(1, 2), "names fractions.Fraction"),
    "a module": (lambda: torch.nn.Linear(2, 2), "names torch.nn.modules.linear.Linear"),
    "an object array": (lambda: np.array([{}, None]), "NumPy values of type 'O8'"),
    "records": (lambda: np.zeros(2, "i4,f4"), "NumPy values of type 'V8'"),
    "a sparse tensor": (lambda: torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "a conjugate": (lambda: torch.randn(2, dtype=torch.complex64).conj(), "conjugated"),
    "a state of its own": (lambda: Dangerous(a=torch.ones(2)), r"names .*Dangerous"),
}


@pytest.mark.parametrize(("protocol", "zipped"), FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_else_is_refused_by_name(
    kind: str, protocol: int, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = HOSTILE[kind]
    content = {"state_dict": {"a": torch.ones(2)}, "rest": make()}
    path = save(content, tmp_path / "hostile.pt", protocol, zipped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"more than tensors and plain values.*{message}"):
        read_weights(path)
    assert not (tmp_path / "reached").exists()


def written(path: Path, pickled: bytes, **members: bytes) -> Path:
    """A zip archive like torch.save's with such a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


OPCODES: dict[str, tuple[bytes, str]] = {
    "GLOBAL": (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"names os\.system"),
    "STACK_GLOBAL": (
        b"\x8c\x02os\x8c\x06system\x93X\x04\x00\x00\x00true\x85R.",
        r"names os\.system",
    ),
    "INST": (b"(X\x04\x00\x00\x00trueios\nsystem\n.", r"names os\.system"),
    "dotted": (b"\x8c\x05torch\x8c\x09os.system\x93.", r"names torch\.os\.system"),
    "EXT": (b"\x82\x01.", "extension registry"),
    "a class's state": (
        b"cargparse\nNamespace\nN}\x8c\x01aK\x01s\x86b.",
        "sets the state of type",
    ),
    "a function's state": (b"ctorch\nSize\n}\x8c\x01aK\x01sb.", "sets the state of function"),
    "a type's state": (b"ctorch\nfloat32\n}\x8c\x01aK\x01sb.", "sets the state of dtype"),
    "flags without names": (b"cargparse\nNamespace\n)\x81}K\x01K\x01sb.", "flags without names"),
    "another encoding": (
        b"c_codecs\nencode\n\x8c\x01a\x8c\x05rot13\x86R.",
        "it encodes text",
    ),
    "bytes of any length": (b"cbuiltins\nbytes\n\x8aE\x00\x00\x00\x01\x85R.", "damaged"),
    "a long of nowhere": (b"]q\x00r\xff\xff\xff\xffj\xff\xff\xff\xff.", "no tensors by name"),
    "a huge bytearray": (b"\x96" + struct.pack("<Q", 2**62) + b"ab.", "damaged"),
    "no end": (b"}", "damaged"),
    "a persistent name": (b"\x8c\x04evilQ.", "refers to something else"),
    "a module": (b"(\x8c\x06module\x8c\x01a\x8c\x01b\x8c\x01ctQ.", "something else than a storage"),
}


@pytest.mark.parametrize("kind", OPCODES)
def test_no_opcode_passes_by_the_names(kind: str, tmp_path: Path) -> None:
    pickled, message = OPCODES[kind]
    with pytest.raises(WeightsError, match=message):
        read_weights(written(tmp_path / "hostile.pt", b"\x80\x05" + pickled))


# A value that holds a value twice, forty times over: its text and its hash would take for ever.
DEEP = b"\x8c\x01a" + b"2\x86" * 60  # DUP, TUPLE2
FILLED: dict[str, tuple[bytes, str]] = {
    "append": (b"ctorch\nSize\nK\x01a.", "items into a function"),
    "appends": (b"cnumpy\ndtype\n(K\x01e.", "items into a function"),
    "a tensor": (b"ctorch\nSize\n)R(K\x01e.", "items into a Size"),
    "a dictionary": (b"}(K\x01e.", "items into a dict"),
    "additems": (b"ctorch\nfloat32\n(K\x01\x90.", "items into a dtype"),
    "setitem": (b"]K\x00K\x01s.", "items into a list"),
    "setitems": (b"cargparse\nNamespace\n)\x81(\x8c\x01aK\x01u.", "items into a Namespace"),
    "deep: a name": (DEEP + b"Q.", "something else than a storage, by a tuple"),
    "deep: a type": (b"cnumpy\ndtype\n" + DEEP + b"\x85R.", "type that is a tuple"),
    "deep: a key": (b"}" + DEEP + b"K\x01s.", "tuple of others as a key"),
    "deep: keys": (b"}(" + DEEP + b"K\x01u.", "tuple of others as a key"),
    "deep: DICT": (b"(" + DEEP + b"K\x01d.", "tuple of others as a key"),
    "deep: a set": (b"\x8f(" + DEEP + b"\x90.", "tuple of others"),
    "deep: frozenset": (b"(" + DEEP + b"\x91.", "tuple of others"),
    "deep: old set": (b"cbuiltins\nset\n](" + DEEP + b"e\x85R.", "tuple of others"),
    "deep: ordered": (
        b"ccollections\nOrderedDict\n](" + DEEP + b"K\x01\x86e\x85R.",
        "tuple of others",
    ),
}


@pytest.mark.parametrize("kind", FILLED)
def test_containers_alone_are_filled_and_nothing_deep_is_looked_through(kind: str) -> None:
    content, message = FILLED[kind]
    with pytest.raises(Refused, match=message):
        unpickled(b"\x80\x05" + content)


# Tensors and arrays that are not what they say


class Named:
    """Pickles as a persistent name, as storages do."""

    def __init__(self, *name: Any) -> None:
        self.name = name


class Writer(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.name if isinstance(value, Named) else None


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return stream.getvalue()


def view(*shape: Any, numel: Any = 4, key: Any = "0") -> Call:
    """A float32 tensor: offset, size and stride in a storage of which `numel` is said."""
    storage = Named("storage", torch.FloatStorage, key, "cpu", numel)
    return Call(torch._utils._rebuild_tensor_v2, storage, *shape, False, OrderedDict())


VIEWS: dict[str, tuple[Any, str]] = {
    "beyond the end": (view(0, (5,), (1,)), "leaves its storage of 4"),
    "an offset beyond": (view(1, (4,), (1,)), "leaves its storage"),
    "a stride beyond": (view(0, (2, 2), (3, 1)), "leaves its storage"),
    "negative": (view(-1, (1,), (1,)), "shape is none"),
    "backwards": (view(3, (2,), (-1,)), "shape is none"),
    "no numbers": (view(0, ("2",), (1,)), "shape is none"),
    "half a shape": (view(0, (2,), ()), "shape is none"),
    "no shape": (view(0, 2, 1), "without a shape"),
    "repeated for ever": (view(0, (2**40,), (0,)), "leaves its storage"),
    "repeated too often": (view(0, (2**26 + 1,), (0,)), "leaves its storage"),
    "of too many dimensions": (view(0, (1,) * 65, (1,) * 65), "shape is none"),
    "of a number too large": (view(0, (2**63,), (0,)), "shape is none"),
    "larger than its member": (view(0, (8,), (1,), numel=8), "has 16 bytes where 32 are named"),
    "smaller than its member": (view(0, (2,), (1,), numel=2), "damaged: data/0 is not as large"),
    "larger than the file": (
        view(0, (2**40,), (1,), numel=2**40),
        "its tensors are of 4398046511104 bytes, the file of",
    ),
    "of two sizes": ([view(0, (4,), (1,)), view(0, (8,), (1,), numel=8)], "two sizes"),
    "of no size": (view(0, (1,), (1,), numel="4"), "something else than a storage"),
    "of no file": (view(0, (4,), (1,), key="../0"), "damaged"),
    "without a storage": (Call(torch._utils._rebuild_tensor_v2, 0, 0, (1,), (1,), 0, 0), "without"),
    "of no type": (
        Call(
            torch._utils._rebuild_tensor_v2, Named("storage", 1, "0", "cpu", 4), 0, (1,), (1,), 0, 0
        ),
        "of no type",
    ),
    "a parameter of nothing": (
        Call(torch._utils._rebuild_parameter, {}, False, OrderedDict()),
        "parameter without a tensor",
    ),
    "a shape of text": (Call(torch.Size, ["a"]), "a shape that is none"),
    "half a number": (Call(np.float64(1).__reduce__()[0], np.dtype("f8"), b"1234"), "NumPy number"),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_tensor_is_no_larger_than_its_numbers(kind: str, tmp_path: Path) -> None:
    value, message = VIEWS[kind]
    path = written(tmp_path / "hostile.pt", pickled({"a": value}), **{"0": bytes(16)})
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


def array(state: Any) -> Call:
    function, arguments, _ = np.ones(3).__reduce__()
    return Call(function, *arguments, state=state)


@pytest.mark.parametrize(
    "state",
    [
        (1, (2**40,), np.dtype("f8"), False, b"12345678"),
        (1, (-1,), np.dtype("f8"), False, b""),
        (1, (1,), "f8", False, b"12345678"),
        (1, (1,), np.dtype("f8"), False, [{}]),
        {"a": 1},
    ],
)
def test_an_array_is_no_larger_than_its_numbers(state: Any) -> None:
    with pytest.raises(Refused, match=r"NumPy array|state of ndarray"):
        unpickled(pickled(array(state)))


def test_a_dtype_keeps_its_flags() -> None:
    """NumPy takes the flag for objects from the file, and reads numbers as addresses then."""
    state = (3, "<", None, None, None, -1, -1, 63)
    read = unpickled(pickled(Call(np.dtype, "f8", False, True, state=state)))
    assert read.flags == np.dtype("f8").flags == 0


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small archive could ask for much memory with them."""
    content = {key: view(0, (1000,), (1,), numel=1000, key=key) for key in ("0", "1")}
    path = written(tmp_path / "bomb.pt", pickled(content), **{"0": bytes(4000), "1": bytes(4000)})
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"archive/data/{key}").header_offset for key in "01")
    packed = path.read_bytes()
    entry = packed.rindex(b"archive/data/1") - 4  # of the directory at the end: where it lies
    assert struct.unpack("<I", packed[entry : entry + 4]) == (second,)
    path.write_bytes(packed[:entry] + struct.pack("<I", first) + packed[entry + 4 :])
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)


def test_members_within_each_other_are_refused(tmp_path: Path) -> None:
    """The bytes of a member can be another member, header and all: each is whole by itself."""
    entries: list[tuple[bytes, bytes, int]] = []  # name, header, bytes from its start to the end
    content: dict[str, Any] = {}
    inner = bytes(1000)
    for key in map(str, range(20)):
        storage = Named("storage", torch.ByteStorage, key, "cpu", len(inner))
        content[key] = Call(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, {})
        inner = member(f"archive/data/{key}", inner, entries)
    packed = member("archive/data.pkl", pickled(content), entries)
    packed = inner + packed
    starts = [len(inner) - size for _, _, size in entries[:-1]] + [len(inner)]
    listed = b"".join(
        b"PK\1\2\x14\0" + header + struct.pack("<3HLL", 0, 0, 0, 0, start) + name
        for (name, header, _), start in zip(entries, starts, strict=True)
    )
    count = len(entries)
    ending = struct.pack("<4H2LH", 0, 0, count, count, len(listed), len(packed), 0)
    path = tmp_path / "bomb.pt"
    path.write_bytes(b"".join([packed, listed, b"PK\5\6", ending]))
    with pytest.raises(WeightsError, match=r"its tensors are of \d+ bytes, the file of"):
        read_weights(path)


def member(name: str, content: bytes, entries: list[tuple[bytes, bytes, int]]) -> bytes:
    """A member of a zip archive, stored as it is."""
    size, check = len(content), zlib.crc32(content)
    header = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, check, size, size, len(name), 0)
    whole = b"PK\3\4" + header + name.encode() + content
    entries.append((name.encode(), header, len(whole)))
    return whole


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled([0] * 10**6))
    with pytest.raises(WeightsError, match=r"damaged: data\.pkl"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_named_as_one(zipped: bool, tmp_path: Path) -> None:
    path = save(clap_file(), tmp_path / "a.pt", zipped=zipped)
    content = path.read_bytes()
    for end in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError, match="the checkpoint is damaged"):
            read_weights(path)


@pytest.mark.parametrize("content", [b"text", pickle.dumps({"a": 1}), pickle.dumps(1, 0)])
def test_other_files_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or is none"):
        read_weights(tmp_path / "a.pt")


def test_files_without_weights(tmp_path: Path) -> None:
    for content in ([1], {"a": 1}, {"state_dict": None}, torch.ones(1)):
        with pytest.raises(WeightsError, match="no tensors by name"):
            read_weights(save(content, tmp_path / "a.pt"))
    with pytest.raises(OSError, match="No such file"):
        read_weights(tmp_path / "none.pt")


def test_a_torchscript_archive_is_a_program(tmp_path: Path) -> None:
    path = written(tmp_path / "script.pt", pickle.dumps({}))
    assert not is_torchscript(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert is_torchscript(path)
    with pytest.raises(WeightsError, match="TorchScript"):
        read_weights(path)
