"""How long embedding takes and how large it becomes, before it is done.

    seconds("clip", "image", 1_281_167, device)     # None where no rate was measured
    size(1_281_167, 512, "Flat")                    # bytes of Parquet parts and index

A rate is a measurement, at the encoder's real size, and docs/performance.md says how it was made
and on what machine. Another encoder, variant or device has none here, a GPU among them; `cmcr
extract --dry-run` measures where it is to run.
"""

from collections.abc import Mapping

from cmcr.embeddings.schema import Modality

RATES: Mapping[tuple[str, Modality], float] = {  # inputs a second on two cores
    ("clip", "image"): 14.5,
    ("clip", "text"): 82.6,
    ("clap", "audio"): 7.6,
    ("clap", "text"): 11.8,
    ("ulip", "pointcloud"): 2.5,
    ("ulip", "image"): 4.4,
}
MEASURED_ON = "2 cores of an AMD EPYC"
_ROW = 300  # bytes of a row beside its embedding: ids, places, hashes; more with long texts
_STORED, _INDEXED = 2, 4  # bytes of a number in a part, and in a flat index


def seconds(encoder: str, modality: Modality, items: int, device: str) -> float | None:
    """What so many inputs take; None where that was not measured."""
    rate = RATES.get((encoder, modality)) if device == "cpu" else None
    return None if rate is None else items / rate


def size(items: int, dim: int, index: str) -> int:
    """Bytes of so many rows in the store. An index other than flat is counted as none."""
    return items * (dim * (_STORED + _INDEXED * (index == "Flat")) + _ROW)


def duration(seconds: float) -> str:
    """Such as `41 h`, `3 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def volume(bytes: float) -> str:
    """Such as `11.4 GB`."""
    return f"{bytes / 1e9:,.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:,.1f} MB"
