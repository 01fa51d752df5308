"""Items as they stand on the page: a player, a picture, points that can be turned, text.

    items = show(store, key, ["a", "b"], find_media)
    items["a"].media                          # `Media`, or why there is none in `.missing`

Everything is embedded in the page, and small: 5 s of 16 kHz mono as MP3, pictures of 320 pixels,
512 points.
"""

import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmcr.embeddings import MODALITIES, Key, Modality, open_dataset
from cmcr.embeddings.search.where import SPAN
from cmcr.errors import CmcrError

RATE = 16_000  # Hz
LONGEST = 5.0  # seconds
WIDEST = 320  # pixels
POINTS = 512
_SEEN = tuple(one for one in MODALITIES if one != "text")  # of others there is their text
_PLACES = ("x0", "y0", "x1", "y1")
_LONGEST_TEXT = 300

Decodings = Mapping[str, Any]  # of each uri what it decodes to, or an exception
Find = Callable[[Modality, Iterable[str]], Decodings]


class Sound(Protocol):
    """What an audio uri decodes to: `samples` is (channels, frames), in -1..1."""

    samples: np.ndarray
    sample_rate: int


@dataclass(frozen=True)
class Media:
    """One thing to see or hear; `source` and `picture` are data URIs, `note` says what was cut."""

    kind: Modality
    source: str = ""
    picture: str = ""
    size: tuple[int, int] = (0, 0)
    text: str = ""
    note: str = ""
    film: str = ""  # URI of the file that it is a span of, from where to where


@dataclass(frozen=True)
class Shown:
    """An item of the store. Where its media cannot be had, `missing` says why."""

    key: Key
    id: str
    label: str = ""
    media: Media | None = None
    missing: str = ""

    @property
    def alt(self) -> str:
        """The item in words."""
        kinds = {"audio": "recording", "image": "picture", "pointcloud": "point cloud"}
        named = f"{kinds.get(self.key.modality, self.key.modality)} {self.id}"
        return f"{named}, labelled {self.label}" if self.label else named


def show(
    store: Path, key: Key, ids: Iterable[str], find: Find, *, whole: bool = False
) -> dict[str, Shown]:
    """The rows of a dataset that have `ids`, with their media.

    A region is cut out of its picture unless `whole` pictures are wanted. Nothing that is missing
    or damaged is an error: the item says so.
    """
    wanted = list(dict.fromkeys(ids))
    try:
        rows = _rows(store, key, wanted)
    except CmcrError as error:
        return {name: Shown(key, name, missing=error.what) for name in wanted}
    uris = [_uri(row) for row in rows.values() if row["uri"]]
    found = find(key.modality, uris) if key.modality in _SEEN else {}
    return {
        name: _shown(key, name, rows[name], found, whole)
        if name in rows
        else Shown(key, name, missing="the store no longer has it")
        for name in wanted
    }


def show_input(kind: Modality, space: str, uri: str, text: str | None, find: Find) -> Shown:
    """A query that is in no store: a text, or a file by its uri."""
    key = Key(space, kind, "query")
    row = {"uri": uri, "text": text, "label": None}
    found = find(kind, [uri]) if kind in _SEEN else {}
    return _shown(key, "" if text is not None else Path(uri).name, row, found, whole=True)


def _rows(store: Path, key: Key, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    dataset = open_dataset(store, key)
    columns = [name for name in _PLACES if name in dataset.manifest.columns]
    columns += [name for name in SPAN if name in dataset.manifest.numbers]
    table = dataset.table(["id", "uri", "text", "label", *columns])
    table = table.filter(pc.is_in(table["id"], pa.array(ids, pa.string())))
    return {row["id"]: row for row in table.to_pylist()}


def _shown(key: Key, name: str, row: Mapping[str, Any], found: Decodings, whole: bool) -> Shown:
    label = ", ".join(row["label"] or [])
    try:
        media = _media(key.modality, row, found, whole)
    except Exception as error:  # whatever is wrong with one medium, the page is written
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Shown(key, name, label, missing=reason)
    return Shown(key, name, label, media)


def _media(kind: Modality, row: Mapping[str, Any], found: Decodings, whole: bool) -> Media:
    if kind not in _SEEN:
        text = row["text"] or (row["uri"] if kind != "text" else None)
        if not text:
            raise ValueError("the store does not have the text")
        cut = len(text) > _LONGEST_TEXT
        return Media(kind, text=text[:_LONGEST_TEXT] + "…" * cut)
    if not row["uri"]:
        raise ValueError("the store does not say where it lies")
    decoded = found[_uri(row)]
    if isinstance(decoded, Exception):
        raise decoded
    if kind == "pointcloud":
        return points(decoded)
    if kind == "audio":
        media = audio(decoded)
    else:
        box = [float(row[name]) for name in _PLACES if row.get(name) is not None]
        media = image(decoded, box if len(box) == len(_PLACES) and not whole else None)
    span = [row[name] for name in SPAN if row.get(name) is not None]
    if not span:
        return media
    note = f"second {span[0]:g} to {span[-1]:g}"
    return replace(media, film=_link(row["uri"], _fragment(row)), note=note)


def _uri(row: Mapping[str, Any]) -> str:
    """What the media of a row are found by: a span's file with the seconds in it."""
    return f"{row['uri']}{_fragment(row)}"


def _fragment(row: Mapping[str, Any]) -> str:
    """The media fragment of a span, `#t=12.5,15`; empty for a whole file."""
    if row.get("start") is None or row.get("end") is None:
        return ""
    start, end = (f"{row[name]:.6f}".rstrip("0").rstrip(".") for name in SPAN)
    return f"#t={start},{end}"


def _link(uri: str, seconds: str) -> str:
    return (uri if "://" in uri else Path(uri).absolute().as_uri()) + seconds


def audio(sound: Sound) -> Media:
    """The first seconds, 16 kHz mono, as MP3, which every browser plays, and its spectrogram."""
    import soundfile
    import soxr

    mono = sound.samples.mean(axis=0)  # (frames,)
    mono = mono[: int(LONGEST * sound.sample_rate)]
    mono = soxr.resample(mono, sound.sample_rate, RATE)  # (frames,)
    mono = np.clip(np.nan_to_num(mono), -1, 1)
    file = io.BytesIO()
    soundfile.write(file, mono, RATE, format="MP3")
    seconds = sound.samples.shape[1] / sound.sample_rate
    note = f"{seconds:.1f} s" if seconds <= LONGEST else f"first {LONGEST:g} of {seconds:.1f} s"
    picture, size = _spectrogram(mono, min(sound.sample_rate, RATE) / 2)
    return Media("audio", _data("audio/mpeg", file.getvalue()), picture, size, note=note)


def image(picture: Any, box: Sequence[float] | None = None) -> Media:
    """The picture, or the part in `box` (fractions), as PNG or JPEG.

    Small pictures keep their pixels, which the page enlarges.
    """
    if picture.mode in ("P", "PA", "LA", "RGBA"):
        picture = _on_white(picture)
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if box is not None:
        width, height = picture.size
        x0, y0, x1, y1 = box
        left, top = int(x0 * width), int(y0 * height)
        picture = picture.crop(
            (left, top, max(round(x1 * width), left + 1), max(round(y1 * height), top + 1))
        )
    picture.thumbnail((WIDEST, WIDEST))
    small = max(picture.size) <= 64
    file = io.BytesIO()
    picture.save(file, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    kind = "image/png" if small else "image/jpeg"
    return Media("image", picture=_data(kind, file.getvalue()), size=picture.size)


def points(cloud: np.ndarray) -> Media:
    """At most 512 points, centred, as three signed bytes each."""
    if len(cloud) > POINTS:
        cloud = cloud[np.sort(np.random.default_rng(0).permutation(len(cloud))[:POINTS])]
    centred = cloud - (cloud.max(axis=0) + cloud.min(axis=0)) / 2  # (points, 3)
    scale = np.linalg.norm(centred, axis=1).max() or 1.0
    encoded = np.round(centred / scale * 127).astype(np.int8)
    return Media("pointcloud", source=b64encode(encoded.tobytes()).decode())


def _on_white(picture: Any) -> Any:
    from PIL import Image

    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _spectrogram(mono: np.ndarray, highest: float) -> tuple[str, tuple[int, int]]:
    """Loudness over time and frequency up to `highest` Hz, 70 dB from black to bright, as a PNG."""
    from matplotlib import colormaps
    from PIL import Image
    from scipy.signal import spectrogram

    padded = np.pad(mono, (0, max(0, 512 - len(mono))))
    step = max(64, len(padded) // 240)
    window = max(512, step)
    bins, _, power = spectrogram(padded, RATE, nperseg=window, noverlap=window - step)
    level = 10 * np.log10(power[bins <= highest] + 1e-12)  # (bins, frames)
    level = np.clip((level - level.max() + 70) / 70, 0, 1)[::-1]  # high frequencies on top
    colours = (255 * colormaps["magma"](level)[..., :3]).astype(np.uint8)  # (bins, frames, 3)
    picture = Image.fromarray(colours).resize((240, 96)).quantize(48)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return _data("image/png", file.getvalue()), picture.size


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
