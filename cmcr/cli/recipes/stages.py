"""Extracting and connecting as the command line does it: flags, else a recipe, else defaults.

    extract_datasets(section, store) ─▶ connect_spaces(...) ─▶ do_jobs(...), in tasks.py

`ground.py` says which recipe counts. Nothing heavy is imported before a stage needs it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import (
    ConnectSection,
    ExtractSection,
    SourceSection,
    read_sources,
)
from cmcr.errors import UsageError, near

if TYPE_CHECKING:
    from cmcr.connect import Connected
    from cmcr.embeddings import Key
    from cmcr.embeddings.verify import Health
    from cmcr.extract import Preview, Source, Summary


def choose_sources(
    ground: Ground,
    encoder: str,
    sources: Sequence[str],
    dataset: str | None,
    pattern: str | None,
    regions: str | None,
    up: str | None,
    checkpoint: Path | None,
    spans: Mapping[str, Any] = MappingProxyType({}),
    space: str | None = None,
) -> ExtractSection:
    """What `cmcr extract` is to do; of a recipe with several spaces of the encoder, in `space`.

    Raises UsageError for an unknown encoder, or when neither flags nor a recipe say what to embed.
    """
    from cmcr.extract import encoder_spec

    takes = encoder_spec(encoder).modalities
    sections = [
        one for one in (ground.recipe.extract if ground.recipe else ()) if one.encoder == encoder
    ]
    usual = next((one for one in sections if one.space == space), sections[0] if sections else None)
    weights = checkpoint or (usual.checkpoint if usual else None)
    changed = {"checkpoint": weights} | ({"space": space} if space else {})
    if sources:
        wanted = read_sources(sources, dataset, pattern, regions, up, spans)
        for one in wanted:
            if one.modality not in takes:
                raise UsageError(
                    f"{encoder} takes no {one.modality}",
                    where=f"--source {one.modality}={one.where}",
                    fix=near(one.modality, takes),
                )
        return ExtractSection(encoder=encoder, sources=wanted).model_copy(update=changed)
    if dataset or pattern or regions or up or spans:
        raise UsageError(
            "--dataset, --pattern, --regions, --frames, --window, --hop and --up go with --source",
            fix="name a --source too",
        )
    if usual is None:
        raise UsageError(
            f"nothing says what {encoder} is to embed",
            fix="give --source MODALITY=WHERE, or a pipeline with this encoder in pipelines.yaml",
        )
    return usual.model_copy(update=changed)


def extract_datasets(
    section: ExtractSection,
    store: Path,
    device: str,
    *,
    dry_run: bool = False,
    index: str | None = None,
    max_failures: float | None = None,
    opened: "Mapping[SourceSection, Source]" = MappingProxyType({}),
    settled: "Collection[Key]" = (),
    engine: str = "local",
    actors: int = 0,
    **options: Any,
) -> Iterator["Summary | Preview"]:
    """Embed every source of `section`; `options` are those of `cmcr.extract.extract`.

    `index` is a FAISS factory string or "none", and counts before the source's own, as
    `max_failures` does. Sources in `opened` are not opened again, and finished datasets in
    `settled` are compared with their source alone: the encoder is loaded for the others. With the
    `engine` ray so many `actors` make the parts, 0 for what the cluster has. With `dry_run` each is
    looked at instead, and nothing is written.
    """
    from cmcr.devices import find_device
    from cmcr.embeddings import Key
    from cmcr.extract import (
        RayEngine,
        encoder_spec,
        extract,
        load_encoder,
        preview_extraction,
        revisit,
        workers_kept,
    )

    place = str(find_device(device))
    space = section.space
    sources = []
    for wanted in section.sources:
        if wanted in opened:
            sources.append((opened[wanted], wanted))
            continue
        folder = Key(space, wanted.modality, wanted.dataset).folder(store)
        sources.append((open_wanted(wanted, folder, place, dry_run), wanted))
    weights = section.checkpoint
    load = cache(partial(load_encoder, section.encoder, checkpoint=weights, device=place))
    default_weights = ":" not in section.encoder and weights is None
    licence = encoder_spec(section.encoder).licence if default_weights else None
    work = preview_extraction if dry_run else extract
    if engine == "ray" and not dry_run:
        there = weights and weights.expanduser().absolute()
        begin = partial(load_encoder, section.encoder, checkpoint=there, device=place)
        options["engine"] = RayEngine(begin, actors)
    with workers_kept():
        for source, wanted in sources:
            chosen: dict[str, Any] = {}
            if kind := index or wanted.index:
                chosen["index"] = None if kind == "none" else kind
            limits = [one for one in (max_failures, wanted.max_failures) if one is not None]
            if limits:
                chosen["max_failures"] = limits[0]
            name = wanted.dataset
            key = Key(space, wanted.modality, name)
            if key in settled:
                yield revisit(store, key, source, chosen.get("index", "Flat"))
                continue
            chosen |= options
            yield work(store, load(), source, name, space=space, licence=licence, **chosen)


def open_wanted(
    wanted: SourceSection, folder: Path, device: str, dry_run: bool = False
) -> "Source":
    """The source that a section names; what is found in its media is kept in `folder`.

    Raises UsageError where a dry run cannot tell how many items there are.
    """
    from cmcr.extract import open_regions, open_source

    if wanted.spans:
        return _open_spans(wanted, folder, dry_run)
    source = open_source(wanted.modality, wanted.where, wanted.pattern, wanted.up)
    if dry_run and (wanted.regions or "").startswith("torchvision"):
        raise UsageError(
            "only running a detector tells how many regions it finds",
            fix="--dry-run without --regions says what it would look at",
        )
    if wanted.regions:
        source = open_regions(source, wanted.regions, folder, device)
    return source


def _open_spans(wanted: SourceSection, folder: Path, dry_run: bool) -> "Source":
    from cmcr.extract import open_spans

    if wanted.regions or wanted.up != "y":
        raise UsageError(
            "films and recordings are cut in time alone",
            where=wanted.where,
            fix="give --frames or --window without --regions and --up",
        )
    if dry_run and wanted.frames == "scene":
        raise UsageError(
            "only looking at the films tells how many scenes they have",
            where=wanted.where,
            fix="--dry-run with --frames 1 says how long they are",
        )
    return open_spans(wanted.modality, wanted.where, wanted.pattern, folder=folder, **wanted.spans)


def given_spans(frames: str | None, window: float | None, hop: float | None) -> dict[str, Any]:
    """The flags that cut films and recordings as fields of `SourceSection`, those that are given.

    Raises UsageError for frames that are neither seconds nor scenes.
    """
    every: float | str | None = frames
    if frames is not None and frames != "scene":
        try:
            every = float(frames)
        except ValueError:
            raise UsageError(
                f"{frames!r} is no number of seconds",
                where=f"--frames {frames}",
                fix="--frames 2 for a picture every two seconds, or --frames scene",
            ) from None
    given = {"frames": every, "window": window, "hop": hop}
    return {name: value for name, value in given.items() if value is not None}


def given_flags(
    via: str | None, spaces: str | None, memory: Sequence[str] | None, **others: Any
) -> dict[str, Any]:
    """The flags of `cmcr connect` as fields of `ConnectConfig`, those that are given.

    `--memory none` is a memory of nothing. Raises UsageError for what cannot name a modality.
    """
    from cmcr.embeddings import check_modality

    if via is not None:
        check_modality(via)
    if memory and "none" in memory and len(memory) > 1:
        raise UsageError("--memory none goes with no other --memory", fix="give one of them")
    fields = others | {
        "via": via,
        "spaces": spaces and spaces.split(","),
        "memory": [] if memory == ["none"] else memory,
    }
    return {field: value for field, value in fields.items() if value is not None}


def choose_connection(
    ground: Ground,
    usual: ConnectSection | None,
    given: dict[str, Any],
    settings: Sequence[str],
    name: str | None,
) -> tuple[dict[str, Any], str]:
    """The fields of the config of `cmcr connect`, and the name of the connection.

    `usual` is the section of the recipe that flags in `given` and `settings` beat. Raises
    UsageError when they do not say what to connect.
    """
    from cmcr.connect import parse_settings
    from cmcr.embeddings import list_datasets

    section = usual.config if usual else {}
    fields = section | given | parse_settings(settings)
    if len(fields.get("spaces", ("", ""))) < 2:
        raise UsageError(
            f"{', '.join(fields['spaces'])} alone cannot be connected", fix="give --spaces A,B"
        )
    chain = len(fields.get("spaces", ())) > 2  # it finds its bridges itself
    if given.get("blind") and "train" not in given:
        fields.pop("train", None)  # the recipe's pairs are not to be looked at
    known = () if fields.get("blind") else ("train",)
    needed = ("spaces",) if chain else ("spaces", "via", *known)
    missing = [f"--{field}" for field in needed if field not in fields]
    if missing:
        there = ", ".join(map(str, list_datasets(ground.store))) or "nothing"
        raise UsageError(
            f"nothing says what to connect: no {', no '.join(missing)}",
            where=ground.store,
            fix=f"give {' and '.join(missing)}, or --pipeline for a recipe that says it; the "
            f"store has: {there}",
        )
    title = name or (usual.name if usual else "-".join(fields["spaces"]))
    if name is None and (changed := _model_name(fields)) != _model_name(section):
        title = f"{title}-{changed}"
    return fields, title


def _model_name(fields: dict[str, Any]) -> str:
    """What the connection is called in a table of results, whatever it connects."""
    from cmcr.connect import read_config

    anything = {"spaces": ("a", "b"), "via": "text", "train": ("c",), "blind": False}
    return read_config(fields | anything).model_name


def connect_spaces(
    fields: dict[str, Any],
    name: str,
    store: Path,
    out: Path | None,
    device: str,
    tensorboard: bool = False,
    replace: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> "Connected":
    """Train or solve the connection `name`, or the chain where there are more than two spaces.

    Another connection of that name is refused, unless `replace` it is. `say` is told of embeddings
    that do not tell their rows apart, and of a closed form that does clearly better.
    """
    from cmcr.connect import connect, connect_chain, read_config
    from cmcr.devices import find_device

    def opened(health: "Mapping[Key, Health]") -> None:
        for found in health.values():
            if found.problem:
                say(f"warning: {found.problem}")

    place = str(find_device(device))
    if len(fields["spaces"]) > 2:
        made = connect_chain(store, fields["spaces"], fields, name=name, out=out, device=place,
                             tensorboard=tensorboard, replace=replace, opened=opened)  # fmt: skip
    else:
        made = connect(store, read_config(fields), name=name, out=out, device=place,
                       tensorboard=tensorboard, replace=replace, opened=opened)  # fmt: skip
    for told in made.warnings:
        say(f"warning: {told}")
    return made
