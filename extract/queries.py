"""What somebody searches for: a text or a file told from a word, and embedded as the store is.

    asked = read_queries(["a dog in the snow", "rain.wav", "photos/"])
    encoder = open_encoder(dataset.manifest.encoder)        # the very one, or a MismatchError
    vectors, failed = embed_items(encoder, "audio", [one.item for one in asked])

A word that is a file or a folder means what lies there; any other is a text, unless it looks like
a file that is not there. The modality follows from the suffix.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcr.embeddings import Modality, identity
from cmcr.embeddings.parts import Failure
from cmcr.embeddings.schema import as_json
from cmcr.errors import EncoderError, MismatchError, SourceError, UsageError, near
from cmcr.extract.encoders.registry import Encoder, load_encoder
from cmcr.extract.engine.encode import encode_batches, usual_batch
from cmcr.extract.engine.workers import Batch, failure, load
from cmcr.extract.items import Item, file_uri
from cmcr.extract.media.readers import SUFFIXES, brought, files_of, is_textual
from cmcr.extract.sources.folders import is_of
from cmcr.extract.sources.open import open_source

LONGEST = 10_000  # letters of a text
_MEDIA: tuple[Modality, ...] = ("image", "audio", "pointcloud")


@dataclass(frozen=True)
class Asked:
    """One input of a search. `alone` is False for one of many that a folder holds."""

    modality: Modality
    item: Item
    alone: bool = True

    @property
    def name(self) -> str:
        """What was asked: the text, or where the file lies."""
        content = self.item.content
        return content if isinstance(content, str) else self.item.uri


def read_queries(words: Sequence[str], modality: Modality | None = None) -> list[Asked]:
    """The inputs that `words` name, in their order; all of `modality` where that is named.

    Raises UsageError for a file that is not there or of no known kind, a folder of several
    modalities, and a text that is empty or too long; SourceError for a folder without media.
    """
    return [asked for word in words for asked in _read(word, modality)]


def _read(word: str, modality: Modality | None) -> Iterator[Asked]:
    path = _path(word, modality)
    if path is None:
        textual = modality if modality and is_textual(modality) else "text"
        yield Asked(textual, Item(word, word, _text(word)))
    elif path.is_dir():
        yield from _folder(path, modality)
    elif is_textual(kind := modality or _modality(path)):
        for item in open_source(kind, str(path)).items():
            if isinstance(item.content, str):
                _text(item.content)
            yield Asked(kind, item, alone=False)
    else:
        yield Asked(kind, Item(path.name, file_uri(path.absolute())))


def _path(word: str, modality: Modality | None) -> Path | None:
    """The file or folder that a word means; None for a text. Raises where it is not there."""
    if len(word) > LONGEST or "\n" in word or "\0" in word:
        return None
    path = Path(word).expanduser()
    try:
        if path.exists():
            return path if word.strip() else None
    except OSError:  # longer than a name may be
        return None
    media = path.suffix and path.suffix.lower() in _suffixes()
    if not word.strip() or (modality and is_textual(modality)):
        return None
    if modality is None and not (media or word.endswith("/")):
        return None
    beside = path.parent
    names = sorted(one.name for one in beside.iterdir()) if beside.is_dir() else []
    raise UsageError(
        "there is no such file", where=word, fix=near(path.name, names) if names else
        f"there is no folder {beside} either: see that it is spelt right",
    )  # fmt: skip


def _suffixes() -> set[str]:
    """Of all files that something reads."""
    return set().union(*SUFFIXES.values(), *(reader.suffixes for reader in brought().values()))


def _text(word: str) -> str:
    if not word.strip():
        raise UsageError("the text is empty", where=repr(word), fix="say what to search for")
    if len(word) > LONGEST:
        raise UsageError(
            f"a text of {len(word):,} letters is no query: {LONGEST:,} are the most",
            where=f"{word[:40]}…",
            fix="ask for it in a sentence; encoders read some 75 words at most",
        )
    return word


def _modality(path: Path) -> Modality:
    kinds = (*_MEDIA, "text", *brought())  # a .txt of points is no text
    for kind in kinds:
        if is_of(kind, path):
            return kind
    raise UsageError(
        f"nothing reads a file of {path.suffix or 'no suffix'}",
        where=path,
        fix="; ".join(f"{kind}: {' '.join(sorted(files_of(kind).suffixes))}" for kind in kinds)
        + "; or say which it is with --modality",
    )


def _folder(path: Path, modality: Modality | None) -> Iterator[Asked]:
    """The files of a folder, which must be of one modality where none is named."""
    sources = []
    others = [kind for kind, reader in brought().items() if reader.read]
    for kind in (modality,) if modality else (*_MEDIA, *others):
        try:
            sources.append(open_source(kind, str(path)))
        except SourceError:
            if modality:
                raise
    if not sources:
        raise SourceError(
            "the folder holds nothing to search for",
            where=path,
            fix=f"files are read by their suffix: {' '.join(sorted(_suffixes()))}",
        )
    if len(sources) > 1:
        kinds = " and ".join(f"{source.total:,} {source.modality}" for source in sources)
        raise UsageError(
            f"the folder holds files of several modalities: {kinds}",
            where=path,
            fix=f"say which to search for: --modality {sources[0].modality}",
        )
    for item in sources[0].items():
        yield Asked(sources[0].modality, item, alone=False)


def encoder_name(description: Mapping[str, Any], space: str) -> str:
    """The encoder that a manifest describes, as `load_encoder` takes it.

    Raises UsageError for embeddings that were imported.
    """
    if description.get("imported"):
        raise UsageError(
            f"the embeddings of {space} were imported: no encoder is known that makes more",
            where=space,
            fix="search with vectors, from Python: connection.search(store, embeddings, ...)",
        )
    name = str(description.get("encoder", space))
    if name.startswith("hf:"):
        return f"hf:{description['where']}"
    return name


def open_encoder(
    description: Mapping[str, Any], space: str, checkpoint: Path | None = None, device: str = "cpu"
) -> Encoder:
    """The encoder that a manifest describes, with the weights that it names.

    They come from `checkpoint` or from where the encoder has them. Raises UsageError for imported
    embeddings, EncoderError for weights that are not there, MismatchError for another encoder,
    checkpoint or preprocessing than made the embeddings.
    """
    name = encoder_name(description, space)
    try:
        encoder = load_encoder(name, checkpoint=checkpoint, device=device)
    except (EncoderError, UsageError) as error:
        if checkpoint is not None:
            raise
        given = f"give the weights that the store was made with: --checkpoint {space}=FILE"
        fetched = f"; or {error.fix}" if isinstance(error, EncoderError) and error.fix else ""
        raise type(error)(
            f"the encoder of {space} cannot be loaded: {error.what}",
            where=error.where if fetched else name,
            fix=given + fetched,
        ) from error
    # Which precision a GPU computed in makes rows of two spaces; a query is near enough to either.
    theirs, ours = (
        {key: value for key, value in ({"encoder": name} | one).items() if key != "autocast"}
        for one in (dict(description), as_json(encoder.fingerprint()))
    )
    if identity(theirs) != identity(ours):
        differing = [key for key in theirs if theirs[key] != ours.get(key)]
        what = "checkpoint" if "checkpoint_sha256" in differing else " and ".join(differing)
        raise MismatchError(
            f"{name} is not what embedded {space}: another {what}",
            where=checkpoint or name,
            fix=f"give the weights that the store was made with: --checkpoint {space}=FILE",
        )
    return encoder


def embed_items(
    encoder: Encoder, modality: Modality, items: Sequence[Item], workers: int = 0
) -> tuple[np.ndarray, list[Failure]]:
    """The vectors of items, (n, D) float32 with NaN for those that failed, and how they failed.

    With `workers` as many processes decode ahead of the encoder. Raises UsageError for a modality
    that the encoder does not take, EncoderError where it lacks what it needs.
    """
    if modality not in encoder.modalities:
        raise UsageError(
            f"the encoder {encoder.name} takes no {modality}",
            where=items[0].uri,
            fix=f"it takes {', '.join(sorted(encoder.modalities))}",
        )
    if ready := getattr(encoder, "ready", None):
        ready(modality)
    size = usual_batch(modality)
    starts = range(0, len(items), size)
    batches = (
        Batch(0, items[start : start + size], range(start, min(start + size, len(items))), False)
        for start in starts
    )
    found = np.full((len(items), encoder.dim), np.nan, np.float32)
    failures: list[Failure] = []
    with torch.inference_mode():
        loaded = load(batches, encoder, modality, workers)
        for batch, vectors in encode_batches(encoder, modality, loaded, None):
            failures += batch.failures
            for item in itertools.compress(batch.items, ~np.isfinite(vectors).all(axis=1)):
                failures.append(failure(item, ValueError("its embedding holds NaN or infinity")))
            found[list(batch.places)] = vectors
    return found, failures


def refuse_failures(asked: Sequence[Asked], failures: Sequence[Failure]) -> None:
    """Raise SourceError for an input that failed by itself, or where all of a folder did."""
    failed = {one["uri"]: one for one in failures}
    alone = [one for one in asked if one.alone and one.item.uri in failed]
    if not alone and len(failures) < len(asked):
        return
    first = failed[alone[0].item.uri] if alone else failures[0]
    raise SourceError(
        f"what is searched for cannot be read: {first['message']}",
        where=first["uri"],
        fix="see that the file is whole, or search for another",
    )
