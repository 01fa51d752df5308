"""Looking at all that a recipe needs before any of it is done.

    outlook = look(ground, "cpu")
    outlook.recipe                  # what of it can be run

Sources are opened and counted, encoders loaded with their weights and tokenizers, annotations and
the splits that tables select looked for: what would end a run hours later is told at once, with all
else that is missing. Opened sources are handed on. Encoders are held one at a time, and loaded only
where something is left to embed: a finished dataset needs neither its weights nor its media.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cmcr.cli.check.costs import seconds, size, volume
from cmcr.cli.check.outlook import Dataset, Lack, Outlook
from cmcr.cli.check.reach import within_reach
from cmcr.cli.check.sources import Shelf
from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import ExtractSection, Pipeline, SourceSection
from cmcr.embeddings import Key, Manifest, Modality
from cmcr.errors import CmcrError
from cmcr.files import sha256_file

if TYPE_CHECKING:
    from cmcr.extract import Encoder, Source

# What decodes the media of a modality; all of it comes with cmcr, no program of the system's.
_DECODERS: Mapping[Modality, Sequence[str]] = {
    "image": ("PIL",),
    "audio": ("soundfile", "av"),
    "pointcloud": ("numpy",),
    "text": (),
}


def look(ground: Ground, device: str, *, update: bool = False) -> Outlook:
    """What the recipe needs, what of it is there, and what the rest will take.

    With `update` finished datasets are to follow their sources. Nothing is written. Raises
    UsageError for an encoder that nothing offers, or a device that cannot be used.
    """
    from cmcr.devices import find_device
    from cmcr.extract import encoder_spec

    recipe = ground.recipe
    assert recipe is not None
    place = str(find_device(device))
    for section in recipe.extract:
        encoder_spec(section.encoder)
    shelf = Shelf()
    opened: dict[SourceSection, Source] = {}
    datasets = []
    for section in recipe.extract:
        found = [_begun(section, wanted, ground.store, update=update) for wanted in section.sources]
        left = {one.key.modality for one in found if not one.settled and not one.lacks}
        dim, lacking = _needs(section, place, left)
        for one in found:
            source = shelf.find(one, ground.store)
            if isinstance(source, Lack):
                one.away = True
            elif source is not None:
                opened[one.source] = source
                one.total = source.total
            if not one.settled:
                one.lacks += lacking.get(one.key.modality, [])
                one.lacks += [source] if isinstance(source, Lack) else []
            _measure(one, dim, place)
        datasets += found
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
        others=[*_decoders(datasets), *reach.lacks],
        free=free,
        opened=opened,
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


def _needs(
    section: ExtractSection, device: str, left: Collection[Modality]
) -> tuple[int | None, Mapping[Modality, list[Lack]]]:
    """The dim of the encoder, and what it lacks for each modality that is left to embed."""
    from cmcr.extract import load_encoder

    if not left:
        return None, {}
    try:
        encoder = load_encoder(section.encoder, checkpoint=section.checkpoint, device=device)
    except CmcrError as error:
        fix = error.fix or ""
        if "checkpoint" in fix:
            fix += (
                f"; `cmcr run` takes it as --checkpoint {section.space}=FILE, a recipe as "
                "`checkpoint: FILE` at the encoder"
            )
        lack = Lack(f"{section.encoder}: {error.what}", error.where or "", fix)
        return None, {modality: [lack] for modality in left}
    return encoder.dim, {modality: _unready(encoder, modality) for modality in left}


def _unready(encoder: "Encoder", modality: Modality) -> list[Lack]:
    """What the encoder lacks for this modality: that it takes it, or a tokenizer."""
    if modality not in encoder.modalities:
        able = ", ".join(sorted(encoder.modalities))
        return [Lack(f"{encoder.name} takes no {modality}", encoder.name, f"it takes {able}")]
    try:
        if ready := getattr(encoder, "ready", None):
            ready(modality)
    except CmcrError as error:
        return [Lack(error.what, error.where or "", error.fix or "")]
    return []


def _decoders(datasets: Sequence[Dataset]) -> Iterator[Lack]:
    for modality in sorted({one.key.modality for one in datasets if not one.settled}):
        for name in _DECODERS.get(modality, ()):
            try:
                import_module(name)
            except ImportError as error:
                what = f"{modality} cannot be decoded: {error}"
                yield Lack(what, name, "install cmcr again, with all that it depends on")


# the store


def _begun(section: ExtractSection, wanted: SourceSection, store: Path, *, update: bool) -> Dataset:
    """The dataset with what of it is there."""
    from cmcr.embeddings.writer import begun

    key = Key(section.space, wanted.modality, wanted.dataset)
    one = Dataset(key, section.encoder, wanted)
    folder = key.folder(store)
    try:
        there = begun(folder)
    except CmcrError as error:
        one.lacks.append(Lack(error.what, error.where or str(folder), error.fix or ""))
        return one
    one.dim = there.dim if there else None
    if isinstance(there, Manifest):
        one.finished = True
        one.done = one.total = there.rows + there.failures
        one.settled = not update and _made_by(there, section.checkpoint)
    elif there is not None:
        one.done = len(list(folder.glob("part-*.parquet"))) * there.part_rows
    return one


def _made_by(there: Manifest, checkpoint: Path | None) -> bool:
    """Whether nothing says that the dataset was made with other weights than `checkpoint`."""
    if checkpoint is None or not checkpoint.exists():
        return True
    recorded = there.encoder.get("checkpoint_sha256")
    return checkpoint.is_file() and sha256_file(checkpoint) == recorded


def _measure(one: Dataset, dim: int | None, device: str) -> None:
    """What the rest of the dataset takes."""
    dim = one.dim or dim
    left = 0 if one.finished else one.left
    if left is not None:
        one.seconds = seconds(one.encoder, one.key.modality, left, device)
        one.bytes = None if dim is None else size(left, dim, one.source.index or "Flat")


def _nearest(place: Path) -> Path:
    """`place`, or the first folder above that is there."""
    return next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())


def _extracted(recipe: Pipeline, datasets: Sequence[Dataset]) -> Iterator[ExtractSection]:
    """The sections with the sources that can be embedded, or compared with what they became."""
    remaining = iter(datasets)
    for section in recipe.extract:
        found = islice(remaining, len(section.sources))
        able = [one.source for one in found if not one.lacks and not one.away]
        if able:
            yield section.model_copy(update={"sources": able})
