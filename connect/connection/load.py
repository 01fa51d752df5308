"""Connections read again, of either kind: from a folder, or from the Hugging Face Hub.

connection = load_connection(store / "connections" / "clip-clap")      # or "OWNER/NAME"
"""

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from cmcr.connect.connection.base import JointSpace
from cmcr.connect.connection.chain import Chain
from cmcr.connect.connection.connection import Connection, projectors_of
from cmcr.connect.connection.record import (
    CONFIG,
    MODEL,
    REMAKE,
    current,
    fetched,
    read_content,
    read_record,
)
from cmcr.errors import StoreError
from cmcr.files import sha256_file


def load_connection(path: Path | str) -> JointSpace:
    """Read the connection in the folder `path`, on the CPU, or fetch OWNER/NAME from the Hub.

    Raises StoreError when it is not there, unfinished, damaged, or of another format.
    """
    if isinstance(path, str) and not Path(path).exists() and path.count("/") == 1:
        path = fetched(path)
    path = Path(path)
    return load_chain(path) if "links" in read_content(current(path)) else load_pair(path)


def load_pair(path: Path) -> Connection:
    """Read the connection of two spaces in the folder `path`; raises as `load_connection` does."""
    path = current(path)
    record = read_record(path)
    model = path / MODEL
    if not model.is_file() or sha256_file(model) != record.model_sha256:
        raise StoreError("the weights are not the ones that were written", where=model, fix=REMAKE)
    try:
        return Connection(record, projectors_of(record, load_file(model)))
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise StoreError(
            f"the weights do not fit the record: {reason}", where=model, fix=REMAKE
        ) from None


def load_chain(path: Path) -> Chain:
    """Read the chain in the folder `path`. Raises StoreError where a link is missing or damaged."""
    path = current(path)
    links, joints = chain_content(path)
    return Chain([load_pair(path / name) for name in links], joints)


def chain_content(path: Path) -> tuple[list[str], list[str]]:
    """The links of the chain in the folder `path`, and the joint spaces between them."""
    content = read_content(path)
    links, joints = content.get("links"), content.get("joints")
    for names in (links, joints):
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise StoreError("the chain's record cannot be read", where=path / CONFIG, fix=REMAKE)
    assert links is not None
    assert joints is not None
    if len(joints) != len(links) or not all(re.fullmatch(r"link-[0-9]+", n) for n in links):
        raise StoreError(
            "the chain's record cannot be read: its links are not those of a chain",
            where=path / CONFIG,
            fix=REMAKE,
        )
    return links, joints
