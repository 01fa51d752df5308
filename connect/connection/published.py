"""Projectors that the authors published, made a connection like one of ours.

    connection = published_connection(Path("clap_clip.pt"), None)

    clap_clip.pt            Head_A, Head_B: net1, net2    A is CLAP, B is CLIP       (C-MCR)
    ulip_clip.pt            Head_A, Head_B: net           A is CLIP, B is ULIP       (C-MCR)
    ex_clap.pt, ex_ulip.pt  Head1; Head2: mlp1, mlp2      A is CLAP or ULIP, the leaf; B is CLIP,
                                                          the base, which stays     (Ex-MCR)

Such a file holds weights and nothing else, so the connection does not know for which encoders it
was made, nor on what. The authors' four files are known by their hash; of another the layout says
which space comes first. https://github.com/MCR-PEFT/C-MCR and https://github.com/MCR-PEFT/Ex-MCR
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cmcr.connect.config import HeadKind
from cmcr.connect.connection.connection import Connection, projectors_of
from cmcr.connect.connection.projectors import make_head
from cmcr.connect.connection.record import Record, SpaceRecord, library_versions
from cmcr.embeddings import MODALITIES, Modality
from cmcr.errors import SourceError, UsageError
from cmcr.weights import WeightsError, read_weights

# The heads of space A and space B, and the model's name in a table of results.
LAYOUTS: dict[tuple[HeadKind, HeadKind], str] = {
    ("mlp", "mlp"): "c-mcr-published",
    ("linear", "linear"): "c-mcr-published",
    ("leaf", "identity"): "ex-mcr-published",
}
# The spaces of the authors' files, by the id that git gives a file's content, as it stands in their
# repositories: C-MCR at 038dec1, Ex-MCR at 0f2baa5. `git hash-object FILE` prints it.
AUTHORS: dict[str, tuple[str, str]] = {
    "61099f73eabf34a1f8da2ab11ffdd87db95b20b3": ("clap", "clip"),  # clap_clip.pt
    "350a714d9eef411985e353ba0306b885196f2610": ("clip", "ulip"),  # ulip_clip.pt
    "f85c9a202324d9374c71b032fd9f42a9c818cf87": ("clap", "clip"),  # ex_clap.pt
    "50b8eff07c85a0cd1084de54537282deffe04567": ("ulip", "clip"),  # ex_ulip.pt
}
# And of any file, by its layout: which spaces there are.
ORDERS: dict[tuple[HeadKind, HeadKind], tuple[tuple[str, str], ...]] = {
    ("mlp", "mlp"): (("clap", "clip"),),
    ("linear", "linear"): (("clip", "ulip"),),
    ("leaf", "identity"): (("clap", "clip"), ("ulip", "clip")),
}
_LEAF = {"Head1.": "turn_A.", "Head2.": "Head_A."}  # Ex-MCR's names and ours
_TURN = ("turn_A.weight", "turn_A.bias")
_ENDS: dict[HeadKind, tuple[str, str]] = {  # the first matrix of a head, and the last
    "mlp": ("net1.0.weight", "net2.0.weight"),
    "linear": ("net.0.weight", "net.0.weight"),
    "leaf": ("mlp1.net1.0.weight", "mlp2.net2.0.weight"),
}

LARGEST = 1 << 30  # bytes
FIX = "give clap_clip.pt or ulip_clip.pt of C-MCR, or ex_clap.pt or ex_ulip.pt of Ex-MCR"


def published_connection(
    file: Path, spaces: Sequence[str] | None, *, via: Modality | None = None
) -> Connection:
    """The projectors in `file` as a connection.

    `spaces` are what the store calls space A and space B; the authors' own files need none, their
    spaces are clap, clip and ulip. `via` is the modality that they were connected through, where
    that is known. Ex-MCR's `Head1` is for the leaf's modalities that are no bridge: all but `via`;
    without `via` audio and point clouds, for its published leaves were connected through both
    texts and images.

    Raises UsageError for other than two spaces, or for names that say that they are swapped;
    SourceError for a file that is damaged, holds more than weights, or is of something else.
    """
    named = None if spaces is None else _two(spaces)
    content = _content(file)
    state, kinds = read_published(file, content)
    first, second = in_order(named, kinds, file, git_id(content))
    turned = tuple(
        modality
        for modality in (MODALITIES if via else ("audio", "pointcloud"))
        if kinds[0] == "leaf" and modality != via
    )
    try:
        dims, joint_dim = _dims(state, kinds)
        record = Record(
            model=LAYOUTS[kinds],
            via=via,
            config=None,
            imported={"file": file.name, "sha256": hashlib.sha256(content).hexdigest()},
            spaces=(
                SpaceRecord(name=first, dim=dims[0], bridge=via, head=kinds[0], turned=turned),
                SpaceRecord(name=second, dim=dims[1], bridge=via, head=kinds[1]),
            ),
            joint_dim=joint_dim,
            versions=dict(library_versions()),
        )
        return Connection(record, projectors_of(record, state))
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise SourceError(
            f"the shapes are not those of published projectors: {reason}", where=file, fix=FIX
        ) from None


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise UsageError("there is no such file", where=file, fix=FIX)
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise SourceError(f"{size >> 20} MiB are no projectors", where=file, fix=FIX)
        return file.read_bytes()
    except OSError as error:
        raise SourceError(str(error), where=file, fix=FIX) from error


def read_published(
    file: Path, content: bytes
) -> tuple[dict[str, Tensor], tuple[HeadKind, HeadKind]]:
    """The tensors of a checkpoint under the names that a connection has for them, and its layout.

    `content` are the bytes of `file`. Floats become float32. Raises SourceError for what holds no
    weights, or others than `LAYOUTS` has.
    """
    try:
        loaded = read_weights(file, content)
    except WeightsError as error:
        raise SourceError(str(error), where=file, fix=FIX) from error
    state = {_our_name(name): tensor for name, tensor in loaded.items()}
    kinds = layout(state, file)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor.float()
            if not state[name].isfinite().all():
                raise SourceError(f"{name} holds NaN or infinity", where=file, fix=FIX)
    return state, kinds


def layout(state: dict[str, Tensor], file: Path) -> tuple[HeadKind, HeadKind]:
    """Which of `LAYOUTS` has just the keys of `state`. Raises SourceError when none has."""
    for kinds in LAYOUTS:
        if state.keys() == _keys(kinds):
            return kinds
    there = ", ".join(list(state)[:3]) or "nothing"
    raise SourceError(
        f"the file holds no published projectors: its {len(state)} tensors begin with {there}",
        where=file,
        fix=FIX,
    )


def in_order(
    named: tuple[str, str] | None, kinds: tuple[HeadKind, HeadKind], file: Path, id: str
) -> tuple[str, str]:
    """Space A and space B of `file`, under the names in `named` if they may be right.

    `id` is what `git_id` says. A name that begins with clip, clap or ulip says what it is a space
    of. Raises UsageError where that is not what the file, or its layout, has in its place, and
    where nothing tells the spaces.
    """
    own = AUTHORS.get(id)
    orders = ORDERS[kinds] if own is None else (own,)
    right = " or ".join(f"--spaces {','.join(order)}" for order in orders)
    if named is None:
        if own is None:
            raise UsageError(
                "the file is none of the authors' four, so the names of its spaces are not known",
                where=file,
                fix=f"name them as your store does, in this order: {right}",
            )
        return own
    for order in orders:
        if all(_may_be(name, space) for name, space in zip(named, order, strict=True)):
            return named
    raise UsageError(
        f"{named[0]} is not space A of this file, or {named[1]} not its space B",
        where=file,
        fix=f"{right}, or what your store calls them, in this order",
    )


def _may_be(name: str, space: str) -> bool:
    known = [known for known in ("clip", "clap", "ulip") if name.lower().startswith(known)]
    return known in ([], [space])


def git_id(content: bytes) -> str:
    """What `git hash-object` says of a file: the SHA-1 of its length and its bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _two(spaces: Sequence[str]) -> tuple[str, str]:
    names = [space.strip() for space in spaces]
    if len(names) != 2 or len(set(names)) != 2 or "" in names:
        raise UsageError(
            f"a published checkpoint connects two spaces, and {','.join(spaces)!r} does not name "
            "two",
            fix="--spaces A,B in the order of the checkpoint, such as clap,clip for clap_clip.pt; "
            "the authors' own files need none",
        )
    return names[0], names[1]


def _our_name(name: str) -> str:
    for theirs, ours in _LEAF.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _keys(kinds: tuple[HeadKind, HeadKind]) -> set[str]:
    with torch.device("meta"):
        heads = [make_head(kind, 1, 1) for kind in kinds]
    keys = {
        f"Head_{letter}.{key}"
        for letter, head in zip("AB", heads, strict=True)
        for key in head.state_dict()
    }
    return keys.union(_TURN) if "leaf" in kinds else keys


def _dims(
    state: dict[str, Tensor], kinds: tuple[HeadKind, HeadKind]
) -> tuple[tuple[int, int], int]:
    """D of both spaces and of the joint one, as the matrices have them."""
    joint_dim = state[f"Head_A.{_ENDS[kinds[0]][1]}"].shape[0]
    first, second = (
        state[f"Head_{letter}.{_ENDS[kind][0]}"].shape[1] if kind in _ENDS else joint_dim
        for letter, kind in zip("AB", kinds, strict=True)
    )
    return (first, second), joint_dim
