"""What blind matching found, kept in the store: the search takes minutes.

    match = kept(store, decisive, lambda: unordered.match(first, second, seed))

STORE/matches/DIGEST.json       the match, and a hash of it, looked at before it is used

The digest is of what decides the match, so every connection of the same pools has it, the closed
forms beside one in a table, and a search that was not sure. The folder can be deleted at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmcr.connect.matching.unordered import Match
from cmcr.embeddings.schema import canonical_json
from cmcr.files import locked, write_json

log = logging.getLogger(__name__)

SEARCH = 1  # counts up where the same pools would be matched otherwise


def kept(store: Path, decisive: Mapping[str, object], make: Callable[[], Match]) -> Match:
    """What `make` finds, or found before where `decisive` was the same."""
    file = store / "matches" / f"{_digest({'search': SEARCH} | dict(decisive))[:32]}.json"
    with locked(file.with_suffix(".lock"), wait=True):
        there = _read(file) if file.is_file() else None
        if there is None:
            there = make()
            content = there._asdict() | {
                "first": there.first.tolist(),
                "second": there.second.tolist(),
            }
            write_json(file, {"match": content, "sha256": _digest(content)})
    return there


def _read(file: Path) -> Match | None:
    try:
        whole = json.loads(file.read_text())
        content = whole["match"]
        if whole["sha256"] == _digest(content):
            rows = {side: np.asarray(content[side], np.int64) for side in ("first", "second")}
            return Match(**content | rows)
    except (ValueError, KeyError, TypeError):
        pass
    log.warning("%s is not as it was written, and is made again", file)
    return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
