"""Projectors that the authors published, made a connection like one of ours.

    import_connection(Path("clap_clip.pt"), ("clap", "clip"), store / "connections" / "published")

    clap_clip.pt            Head_A, Head_B: net1, net2    A is CLAP, B is CLIP       (C-MCR)
    ulip_clip.pt            Head_A, Head_B: net           A is CLIP, B is ULIP       (C-MCR)
    ex_clap.pt, ex_ulip.pt  Head1; Head2: mlp1, mlp2      A is CLAP or ULIP, the leaf; B is CLIP,
                                                          the base, which stays     (Ex-MCR)

Such a file holds weights and nothing else, so the connection does not know for which encoders it
was made, nor on what. https://github.com/MCR-PEFT/C-MCR and https://github.com/MCR-PEFT/Ex-MCR
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cmcr.connect.connection import Connection, load_connection, sides_of
from cmcr.connect.heads import Kind, Side, make_head
from cmcr.connect.record import Record, SpaceRecord, library_versions
from cmcr.connect.replace import imported_differences, refuse, standing
from cmcr.connect.swap import NEW, settle, take_place
from cmcr.embeddings import MODALITIES, Modality
from cmcr.errors import SourceError, UsageError
from cmcr.files import locked, sha256_file

# The heads of space A and space B, and the model's name in a table of results.
LAYOUTS: dict[tuple[Kind, Kind], str] = {
    ("mlp", "mlp"): "c-mcr-published",
    ("linear", "linear"): "c-mcr-published",
    ("leaf", "identity"): "ex-mcr-published",
}
_LEAF = {"Head1.": "turn_A.", "Head2.": "Head_A."}  # Ex-MCR's names and ours
_TURN = ("turn_A.weight", "turn_A.bias")
_ENDS: dict[Kind, tuple[str, str]] = {  # the first matrix of a head, and the last
    "mlp": ("net1.0.weight", "net2.0.weight"),
    "linear": ("net.0.weight", "net.0.weight"),
    "leaf": ("mlp1.net1.0.weight", "mlp2.net2.0.weight"),
}

CURE = (
    "give clap_clip.pt or ulip_clip.pt of C-MCR, or ex_clap.pt or ex_ulip.pt of Ex-MCR: a state "
    "dict that torch.save wrote"
)


def import_connection(
    file: Path,
    spaces: Sequence[str],
    out: Path,
    *,
    via: Modality | None = None,
    replace: bool = False,
) -> Connection:
    """Make the projectors in `file` a connection in the folder `out`; gives the connection.

    `spaces` are what the store calls space A and space B. `via` is the modality that they were
    connected through, where that is known. Ex-MCR's `Head1` is for the leaf's modalities that are
    no bridge: all but `via`; without `via` audio and point clouds, for its published leaves were
    connected through both texts and images.

    Raises UsageError for other than two spaces or an `out` that holds another connection, unless
    `replace` it is, SourceError for a file that is damaged, pickled, or of something else.
    """
    first, second = _two(spaces)
    state = read_published(file)
    kinds = layout(state, file)
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
            imported={"file": file.name, "sha256": sha256_file(file)},
            spaces=(
                SpaceRecord(name=first, dim=dims[0], bridge=via, head=kinds[0], turned=turned),
                SpaceRecord(name=second, dim=dims[1], bridge=via, head=kinds[1]),
            ),
            joint_dim=joint_dim,
            versions=dict(library_versions()),
        )
        connection = Connection(record, sides_of(record, state))
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise SourceError(
            f"the shapes are not those of published projectors: {reason}", where=file, cure=CURE
        ) from None
    with locked(out / ".lock", wait=True):
        settle(out)
        others = imported_differences(out, record)
        if not replace:
            refuse(out, others)
        if not others and standing(out):
            return load_connection(out)
        connection.save(out / NEW if others else out)
        if others:
            take_place(out)
    return connection


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names that a connection has for them.

    Floats become float32, and the `module.` of data-parallel training is cut off. Raises
    UsageError where there is no such file, SourceError for one that is not a state dict.
    """
    if not file.is_file():
        raise UsageError("there is no such file", where=file, cure=CURE)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever it stumbles over
        raise SourceError(
            "the checkpoint is damaged or holds more than weights; pickled objects are never "
            "loaded",
            where=file,
            cure=CURE,
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise SourceError("the checkpoint is not a state dict", where=file, cure=CURE)
    state = {_our_name(str(name)): tensor for name, tensor in loaded.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor.float()
            if not tensor.isfinite().all():
                raise SourceError(f"{name} holds NaN or infinity", where=file, cure=CURE)
    return state


def layout(state: dict[str, Tensor], file: Path) -> tuple[Kind, Kind]:
    """Which of `LAYOUTS` has just the keys of `state`. Raises SourceError when none has."""
    for kinds in LAYOUTS:
        if state.keys() == _keys(kinds):
            return kinds
    there = ", ".join(list(state)[:3]) or "nothing"
    raise SourceError(
        f"the file holds no published projectors: its {len(state)} tensors begin with {there}",
        where=file,
        cure=CURE,
    )


def without_data(record: Record) -> dict[str, Connection]:
    """What can stand beside a connection in a table without the data that it was made from.

    That is `identity`, where all spaces have the same D; a closed form has to be fitted.
    """
    dim = record.spaces[0].dim
    if any(space.dim != dim for space in record.spaces):
        return {}
    plain = {"head": "identity", "centred": (), "turned": ()}
    bare = Record(
        model="identity",
        via=record.via,
        config=None,
        spaces=tuple(space.model_copy(update=plain) for space in record.spaces),
        joint_dim=dim,
    )
    return {"identity": Connection(bare, tuple(Side(nn.Identity()) for _ in record.spaces))}


def _two(spaces: Sequence[str]) -> tuple[str, str]:
    names = [space.strip() for space in spaces]
    if len(names) != 2 or len(set(names)) != 2 or "" in names:
        raise UsageError(
            f"a published checkpoint connects two spaces, and {','.join(spaces)!r} does not name "
            "two",
            cure="--spaces A,B in the order of the checkpoint, such as clap,clip for clap_clip.pt",
        )
    return names[0], names[1]


def _our_name(name: str) -> str:
    name = name.removeprefix("module.")
    for theirs, ours in _LEAF.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _keys(kinds: tuple[Kind, Kind]) -> set[str]:
    with torch.device("meta"):
        heads = [make_head(kind, 1, 1) for kind in kinds]
    keys = {
        f"Head_{letter}.{key}"
        for letter, head in zip("AB", heads, strict=True)
        for key in head.state_dict()
    }
    return keys.union(_TURN) if "leaf" in kinds else keys


def _dims(state: dict[str, Tensor], kinds: tuple[Kind, Kind]) -> tuple[tuple[int, int], int]:
    """D of both spaces and of the joint one, as the matrices have them."""
    joint_dim = state[f"Head_A.{_ENDS[kinds[0]][1]}"].shape[0]
    first, second = (
        state[f"Head_{letter}.{_ENDS[kind][0]}"].shape[1] if kind in _ENDS else joint_dim
        for letter, kind in zip("AB", kinds, strict=True)
    )
    return (first, second), joint_dim
