"""Looking at all that a recipe needs before any of it is done.

    outlook = look(ground, "cpu")
    outlook.recipe                  # what of it can be run

Sources are opened and counted, encoders loaded with their weights and tokenizers, annotations and
the splits that tables select looked for: what would end a run hours later is told at once, with all
else that is missing. What is opened and loaded is handed on, and not opened again.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cmcr.cli.check.costs import seconds, size, volume
from cmcr.cli.check.outlook import Dataset, Lack, Outlook
from cmcr.cli.check.reach import within_reach
from cmcr.cli.check.sources import Shelf
from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import ExtractSection, Pipeline, SourceSection, space_of
from cmcr.embeddings import Key, Manifest, Modality
from cmcr.errors import CmcrError

if TYPE_CHECKING:
    from cmcr.extract import Encoder, Source

# What decodes the media of a modality; all of it comes with cmcr, no program of the system's.
_DECODERS: Mapping[Modality, Sequence[str]] = {
    "image": ("PIL",),
    "audio": ("soundfile", "av"),
    "pointcloud": ("numpy",),
    "text": (),
}


def look(ground: Ground, device: str) -> Outlook:
    """What the recipe needs, what of it is there, and what the rest will take.

    Nothing is written. Raises UsageError for an encoder that nothing offers, or a device that
    cannot be used.
    """
    from cmcr.devices import find_device
    from cmcr.extract import encoder_spec

    recipe = ground.recipe
    assert recipe is not None
    place = str(find_device(device))
    for section in recipe.extract:
        encoder_spec(section.encoder)
    shelf = Shelf()
    encoders: dict[tuple[str, Path | None], Encoder] = {}
    opened: dict[SourceSection, Source] = {}
    datasets = []
    for section in recipe.extract:
        encoder, lacks = _load(section, place)
        lacking = {one.modality: _unready(encoder, one.modality) for one in section.sources}
        if encoder is not None:
            encoders[section.encoder, section.checkpoint] = encoder
        for wanted in section.sources:
            one = Dataset(
                Key(space_of(section.encoder), wanted.modality, wanted.dataset),
                section.encoder,
                wanted,
                lacks=[*lacks, *lacking[wanted.modality]],
            )
            source = shelf.find(one, ground.store)
            if isinstance(source, Lack):
                one.lacks.append(source)
            elif source is not None:
                opened[wanted] = source
                one.total = source.total
            _measure(one, ground.store, encoder, place)
            datasets.append(one)
    free = shutil.disk_usage(_nearest(ground.store)).free
    reach = within_reach(ground, datasets, opened)
    outlook = Outlook(
        recipe=recipe.model_copy(
            update={
                "extract": list(_extracted(recipe, datasets)),
                "connect": reach.connect,
                "evaluate": reach.evaluate,
            }
        ),
        store=ground.store,
        device=place,
        datasets=datasets,
        skipped=reach.skipped,
        others=[*_decoders(recipe), *reach.lacks],
        free=free,
        opened=opened,
        encoders=encoders,
    )
    if outlook.bytes > free:
        outlook.others.append(
            Lack(
                f"the disk has {volume(free)} free, and about {volume(outlook.bytes)} are needed",
                str(ground.store.absolute()),
                "make room, or name another disk with --store",
            )
        )
    return outlook


# encoders


def _load(section: ExtractSection, device: str) -> tuple["Encoder | None", list[Lack]]:
    """The encoder with its weights, or what it lacks."""
    from cmcr.extract import load_encoder

    try:
        return load_encoder(section.encoder, checkpoint=section.checkpoint, device=device), []
    except CmcrError as error:
        fix = error.fix or ""
        if "checkpoint" in fix:
            fix += (
                f"; `cmcr run` takes it as --checkpoint {section.encoder}=FILE, a recipe as "
                "`checkpoint: FILE` at the encoder"
            )
        return None, [Lack(f"{section.encoder}: {error.what}", error.where or "", fix)]


def _unready(encoder: "Encoder | None", modality: Modality) -> list[Lack]:
    """What the encoder lacks for this modality: that it takes it, or a tokenizer."""
    if encoder is None:
        return []
    if modality not in encoder.modalities:
        able = ", ".join(sorted(encoder.modalities))
        return [Lack(f"{encoder.name} takes no {modality}", encoder.name, f"it takes {able}")]
    try:
        if ready := getattr(encoder, "ready", None):
            ready(modality)
    except CmcrError as error:
        return [Lack(error.what, error.where or "", error.fix or "")]
    return []


def _decoders(recipe: Pipeline) -> Iterator[Lack]:
    for modality in sorted({one.modality for section in recipe.extract for one in section.sources}):
        for name in _DECODERS[modality]:
            try:
                import_module(name)
            except ImportError as error:
                what = f"{modality} cannot be decoded: {error}"
                yield Lack(what, name, "install cmcr again, with all that it depends on")


# the store


def _measure(one: Dataset, store: Path, encoder: "Encoder | None", device: str) -> None:
    """How much of the dataset is there, and what the rest takes."""
    from cmcr.embeddings.writer import begun

    folder = one.key.folder(store)
    there = begun(folder)
    if isinstance(there, Manifest):
        one.finished, one.done = True, there.rows + there.failures
        one.total = one.done if one.total is None else one.total
    elif there is not None:
        one.done = len(list(folder.glob("part-*.parquet"))) * there.part_rows
    dim = there.dim if there else getattr(encoder, "dim", None)
    left = 0 if one.finished else one.left
    if left is not None:
        one.seconds = seconds(one.encoder, one.key.modality, left, device)
        one.bytes = None if dim is None else size(left, dim, _index(one.source))


def _index(source: SourceSection) -> str:
    return getattr(source, "index", None) or "Flat"


def _nearest(place: Path) -> Path:
    """`place`, or the first folder above that is there."""
    return next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())


def _extracted(recipe: Pipeline, datasets: Sequence[Dataset]) -> Iterator[ExtractSection]:
    """The sections with the sources that can be embedded."""
    remaining = iter(datasets)
    for section in recipe.extract:
        able = [one.source for one in islice(remaining, len(section.sources)) if not one.lacks]
        if able:
            yield section.model_copy(update={"sources": able})
