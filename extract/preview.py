"""What an extraction would do, before it is done: `cmcr extract --dry-run`.

    preview = preview_extraction(store, encoder, source, dataset="photos")

Nothing is embedded. Time is measured: the first items of the source are decoded and encoded here,
once to get going and once by the clock.
"""

import itertools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcr.devices import cores
from cmcr.embeddings.schema import Precision
from cmcr.extract.embed import compare, describe, rows_a_part
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.encode import Amp, Autocast, encode_batches
from cmcr.extract.engine.summary import Kinds
from cmcr.extract.engine.workers import Batch, Decoding, Loaded
from cmcr.extract.items import Item
from cmcr.extract.sources.folders import told
from cmcr.extract.sources.source import Source

MEASURED = 16  # items
_SHOWN = 12  # labels


@dataclass(frozen=True)
class Preview:
    """What would become of a source; `seconds` for all of it, `bytes` of embeddings and index."""

    key: str
    items: int
    parts: int
    skipped: Mapping[str, int]
    pattern: str | None
    labels: Mapping[str, int]  # "" for items without one
    first: list[dict[str, Any]]
    state: str
    bytes: int
    seconds: float
    measured: int
    workers: int
    kinds: Kinds

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        told = vars(self) | {"failed": [asdict(kind) for kind in self.kinds.most_first()]}
        return {name: value for name, value in told.items() if name != "kinds"}

    def __str__(self) -> str:
        labels = sorted(self.labels.items(), key=lambda entry: (-entry[1], entry[0]))
        shown = [f"{label or '(none)'}: {count:,}" for label, count in labels[:_SHOWN]]
        more = [f"and {len(labels) - _SHOWN:,} more labels"] if len(labels) > _SHOWN else []
        lines = [f"{self.key}  {self.items:,} items in {self.parts:,} parts  ({self.state})"]
        if self.skipped:
            lines.append(f"skipped: {told(self.skipped)}")
        if self.pattern:
            lines.append(self.pattern)
        lines.append(f"labels: {', '.join(shown + more)}")
        for item in self.first:
            lines.append("first: " + "  ".join(f"{name}={it}" for name, it in item.items() if it))
        if self.kinds:
            lines.append(f"of the first {self.measured} fail: {self.kinds}")
        lines.append(
            f"about {_duration(self.seconds)} for all of it, from {self.measured} items decoded "
            f"and encoded here, with {self.workers} workers"
        )
        lines.append(f"about {self.bytes / 1e6:,.1f} MB of embeddings and index")
        return "\n  ".join(lines)


def preview_extraction(
    store: Path,
    encoder: Encoder,
    source: Source,
    dataset: str,
    *,
    space: str | None = None,
    amp: Amp = "auto",
    part_rows: int | None = None,
    workers: int | None = None,
    precision: Precision = "float16",
    index: str | None = "Flat",
    licence: str | None = None,
    **_: object,
) -> Preview:
    """What `extract` would do with these options, of which the rest make no difference here.

    Raises what it would raise for a modality that the encoder does not take, weights that are not
    there, and rows of another encoder.
    """
    part_rows = rows_a_part(source, part_rows)
    description, autocast = describe(
        encoder, source, dataset, space, precision, part_rows, amp, licence
    )
    processes = cores() if workers is None else workers
    decoding, encoding, measured, kinds = _measure(encoder, source, autocast)
    width = encoder.dim * (np.dtype(precision).itemsize + (4 if index == "Flat" else 0))
    return Preview(
        key=str(description.key),
        items=source.total,
        parts=-(-source.total // part_rows),
        skipped=source.skipped,
        pattern=source.pattern,
        labels=dict(Counter(label for item in source.items() for label in item.label or ("",))),
        first=[_shown(item) for item in itertools.islice(source.items(), 3)],
        state=_state(store, description, source),
        bytes=source.total * width,
        seconds=source.total * (decoding / max(processes, 1) + encoding),
        measured=measured,
        workers=processes,
        kinds=kinds,
    )


def _state(store: Path, description: Any, source: Source) -> str:
    found = compare(store, description, source)
    if found is None:
        return "nothing is there yet"
    changes = found[1]
    if changes:
        return f"the source changed: {changes}; --update follows it"
    return "up to date" if changes.finished else "unfinished: it would be gone on with"


def _measure(
    encoder: Encoder, source: Source, autocast: Autocast | None
) -> tuple[float, float, int, Kinds]:
    """Seconds to decode and to encode an item, how many were tried, and what failed of them."""
    items = list(itertools.islice(source.items(), MEASURED))
    batch = Batch(0, items, range(len(items)), last=True)
    worker = Decoding(encoder, source.modality)
    for _ in range(2):
        started = time.perf_counter()
        loaded = worker.load(batch)
        decoded = time.perf_counter()
        _encode(encoder, source, loaded, autocast)
        encoded = time.perf_counter()
    kinds = Kinds()
    kinds.count(loaded.failures)
    return (decoded - started) / len(items), (encoded - decoded) / len(items), len(items), kinds


def _encode(encoder: Encoder, source: Source, loaded: Loaded, autocast: Autocast | None) -> None:
    with torch.inference_mode():
        list(encode_batches(encoder, source.modality, [loaded], autocast))


def _shown(item: Item) -> dict[str, Any]:
    text = item.content[:80] if isinstance(item.content, str) else None
    return {
        "id": item.id,
        "text": text,
        "label": ", ".join(item.label),
        "group": item.group,
        **item.extra,
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
