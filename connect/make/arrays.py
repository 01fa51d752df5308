"""Arrays in, connection out: `cmcr connect` for those who have embeddings and no store.

connection = fit({"clip": {"text": t1, "image": i1}, "clap": {"text": t2, "audio": a2}}, via="text")
joint = connection.project("clap", audio, "audio")
connection.save(Path("mine"))
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.config import read_config
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.load import load_pair
from cmcr.connect.make.pair import connect
from cmcr.devices import Vectors, find_device, float32, refuse_what_has_no_direction, rows
from cmcr.embeddings import Key, check_modality, import_embeddings
from cmcr.errors import MismatchError, SourceError, UsageError

log = logging.getLogger(__name__)

BLOCK_ROWS = 65_536
DATASET = "given"  # what the record calls every array
POOL = "pool"  # but those whose pairs are unknown


def fit(
    spaces: Mapping[str, Mapping[str, Vectors]],
    via: str,
    *,
    pools: Mapping[str, Vectors] | None = None,
    device: str = "auto",
    **settings: Any,
) -> Connection:
    """Connect two spaces, given as {SPACE: {MODALITY: (n, D)}}, through the modality `via`.

    Row i of `via` in both spaces is one item; these have to be as many. All other rows are
    unpaired, and a space may have none. `pools`, {SPACE: (n, D)} of both spaces, are more rows of
    `via` of which nobody knows which is which: pairs found there help where pairs are few. With
    `blind=True` no pair is known: `spaces` has no arrays of `via`, and `pools` has them all.
    Arrays, tensors or lists of any float precision. `settings` are the other fields of
    `ConnectConfig`. The arrays pass through a store in TMPDIR, as float32, so that this is what
    `cmcr connect` does, in as little memory.

    Raises UsageError for names, settings or a device that do not fit, MismatchError for arrays of
    other shapes or pools in which blind matching is not sure of any pairs, SourceError for rows
    that are not finite or zero, CmcrError for a loss that is not finite.
    """
    blind = bool(settings.get("blind"))
    names = _two(spaces, via, blind)
    given = {name: _as_rows(name, spaces[name]) for name in names}
    counts = [len(given[name].get(via, ())) for name in names]
    if counts[0] != counts[1]:
        raise MismatchError(
            f"row i of {via} is one item in both spaces, and {names[0]} has {counts[0]:,} rows, "
            f"{names[1]} has {counts[1]:,}",
            fix="give the rows that both have, in one order; what one alone has goes under "
            "another modality, or nowhere",
        )
    memory = [
        f"{name}/{modality}:{DATASET}" for name in names for modality in given[name].keys() - {via}
    ]
    unordered = _as_pools(names, pools, given, via)
    train = [] if blind else [DATASET]
    fields = {"spaces": names, "via": via, "train": train, "memory": sorted(memory),
              "pool": [POOL] if unordered else []}  # fmt: skip
    if said := sorted(fields.keys() & settings.keys()):
        raise UsageError(f"the arrays say what {' and '.join(said)} are", fix="leave them out")
    config, place = read_config(fields | settings), str(find_device(device))
    with TemporaryDirectory(prefix="cmcr-fit-") as folder:
        store = Path(folder)
        arrays = {Key(name, modality, DATASET): array
                  for name, one in given.items() for modality, array in one.items()}  # fmt: skip
        for key, array in (arrays | unordered).items():
            file = store / "array.npy"
            _write(file, array, f"{key.space}/{key.modality}")
            import_embeddings(store, key, file, precision="float32", index=None)
        done = connect(store, config, name="fitted", device=place)
        for line in done.warnings:
            log.warning(line)
        return load_pair(done.path)


def _two(spaces: Mapping[str, Mapping[str, Vectors]], via: str, blind: bool) -> tuple[str, str]:
    """The names of the spaces, which have `via`, or not if `blind`, and names of modalities."""
    if len(spaces) != 2:
        raise UsageError(
            f"two spaces are connected, these are {len(spaces)}: {', '.join(spaces)}",
            fix="connect more of them as a chain: `cmcr import`, `cmcr connect --spaces A,B,C`",
        )
    for name, arrays in spaces.items():
        for modality in (via, *arrays):
            check_modality(modality)
        if blind and via in arrays:
            raise UsageError(
                f"blind=True knows no pairs, and {name} has {via} among those that are paired",
                fix="give all of it in pools, or leave blind out",
            )
        if via not in arrays and not blind:
            raise UsageError(
                f"{name} has no {via}, through which the spaces are to be connected",
                fix=f"it has: {', '.join(arrays) or 'nothing'}",
            )
    first, second = spaces
    return first, second


def _as_rows(name: str, arrays: Mapping[str, Vectors]) -> dict[str, np.ndarray | Tensor]:
    """The arrays of one space, all (n, D) of one D and n above 0."""
    found: dict[str, np.ndarray | Tensor] = {}
    dim = None
    for modality, given in arrays.items():
        found[modality] = array = rows(given, dim, f"{name}/{modality}")
        if not len(array):
            raise SourceError(f"there are no rows of {name}/{modality}", fix="leave it out")
        dim = array.shape[1]
    return found


def _as_pools(
    names: tuple[str, str],
    pools: Mapping[str, Vectors] | None,
    given: Mapping[str, Mapping[str, np.ndarray | Tensor]],
    via: str,
) -> dict[Key, np.ndarray | Tensor]:
    """The pools of both spaces, as wide as the spaces."""
    if not pools:
        return {}
    if set(pools) != set(names):
        raise UsageError(
            f"pools are of both spaces, {names[0]} and {names[1]}, and these are of "
            f"{', '.join(pools)}",
            fix="give pools={SPACE: (n, D), SPACE: (m, D)}",
        )
    return {
        Key(name, check_modality(via), POOL): rows(
            pools[name], _dim(given[name]), f"the pool of {name}"
        )
        for name in names
    }


def _dim(arrays: Mapping[str, np.ndarray | Tensor]) -> int | None:
    """D of the arrays of a space; None without any."""
    return next((int(array.shape[1]) for array in arrays.values()), None)


def _write(file: Path, array: np.ndarray | Tensor, of: str) -> None:
    """Write (n, D) as float32, block by block."""
    out = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        file, "w+", np.float32, tuple(array.shape)
    )
    for start in range(0, len(array), BLOCK_ROWS):
        with torch.no_grad():
            block = float32(array[start : start + BLOCK_ROWS], "cpu").detach()
        refuse_what_has_no_direction(block, of, start)
        out[start : start + len(block)] = block.numpy()
    out.flush()
