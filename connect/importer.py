"""`cmcr import-connection`: a published projector checkpoint as a connection of one's own.

import_connection(Path("clap_clip.pt"), None, store / "connections" / "published")
"""

from collections.abc import Sequence
from pathlib import Path

from cmcr.connect.connection.base import JointSpace
from cmcr.connect.connection.load import load_connection
from cmcr.connect.connection.published import published_connection
from cmcr.connect.connection.record import Record
from cmcr.connect.make.replace import NEW, differences, refuse, settle, standing, take_place
from cmcr.embeddings import Modality
from cmcr.files import locked


def import_connection(
    file: Path,
    spaces: Sequence[str] | None,
    out: Path,
    *,
    via: Modality | None = None,
    replace: bool = False,
) -> JointSpace:
    """Make the projectors in `file` a connection in the folder `out`; gives the connection.

    `spaces` and `via` are as `published_connection` takes them. Raises what it raises, and
    UsageError for an `out` that holds another connection, unless `replace` it is.
    """
    connection = published_connection(file, spaces, via=via)
    with locked(out / ".lock", wait=True):
        settle(out)
        others = differences(out, lambda there: _differences(there, connection.record))
        if not replace:
            refuse(out, others)
        if not others and standing(out):
            return load_connection(out)
        connection.save(out / NEW if others else out)
        if others:
            take_place(out)
    return connection


def _differences(there: Record, record: Record) -> list[str]:
    """What tells the connection that is `there` from the imported one of `record`."""
    if not there.imported:
        return [f"it was made here, by {there.model}"]
    names = [" and ".join(space.name for space in one.spaces) for one in (there, record)]
    pairs = {
        "checkpoint": (there.imported.get("sha256", "")[:8], record.imported["sha256"][:8]),
        "spaces": (names[0], names[1]),
        "via": (there.via, record.via),
    }
    return [f"{name}: {old} → {new}" for name, (old, new) in pairs.items() if old != new]
