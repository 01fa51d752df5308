"""Recipes: `./pipelines.yaml`, else the one that ships with the package.

    pipelines = load_pipelines()
    pipeline = pipelines.named("digits")
    for name, pipeline in pipelines.candidates(): ...     # the default one first

A pipeline says which sources go through which encoders, what is connected, and what is
evaluated; a flag on the command line beats it. One that does not fit hinders no other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from cmcr.embeddings.schema import Key, Modality, check_modality
from cmcr.errors import UsageError, near

FILE = "pipelines.yaml"
Section = TypeVar("Section", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSection(_Section):
    """One source: `modality` from `where` (as --source takes it) becomes `dataset`.

    With `regions` (as --regions takes it) its rows are regions of the pictures, with `frames`
    (seconds, or scene) pictures of films, with `window` and `hop` (seconds) pieces of sound. `up`
    is the axis of point clouds that points upwards, `index` a FAISS factory string or none,
    `max_failures` the share of the inputs that may be bad.
    """

    modality: Modality
    where: str
    dataset: str
    pattern: str | None = None
    regions: str | None = None
    frames: float | Literal["scene"] | None = None
    window: float | None = None
    hop: float | None = None
    up: Literal["y", "z"] = "y"
    index: str | None = None
    max_failures: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def spans(self) -> dict[str, Any]:
        """How films and long recordings are cut, as `open_spans` takes it; empty where not."""
        given = {"frames": self.frames, "window": self.window, "hop": self.hop}
        return {name: value for name, value in given.items() if value is not None}


def space_of(encoder: str) -> str:
    """What the space of NAME or NAME:VARIANT is called: clip:ViT-L-14/openai has one too."""
    return re.sub("[^A-Za-z0-9._+-]", "-", encoder)


class ExtractSection(_Section):
    """One encoder and what goes through it.

    `space` is called as the encoder is, unless it is named: weights of one encoder that are not
    the same make two spaces.
    """

    encoder: str
    space: str = Field(default_factory=lambda given: space_of(given["encoder"]))
    checkpoint: Path | None = None
    sources: Annotated[list[SourceSection], Field(min_length=1)]


class ConnectSection(BaseModel):
    """A name and the fields of `cmcr.connect.ConnectConfig`; more than two spaces are a chain."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    via: Modality | None = None
    spaces: Annotated[tuple[str, ...], Field(min_length=2)]

    @property
    def config(self) -> dict[str, Any]:
        """The fields for `ConnectConfig`."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


def _several(value: object) -> object:
    """One text may stand without a list around it."""
    return (value,) if isinstance(value, str) else value


_FILTER = {"type": "string", "pattern": "^[^=]+="}
Filters = Annotated[
    tuple[Annotated[str, Field(pattern=_FILTER["pattern"])], ...],
    BeforeValidator(_several),
    WithJsonSchema({"anyOf": [_FILTER, {"type": "array", "items": _FILTER}], "default": []}),
]


class Measured(_Section):
    """Two datasets, as SPACE/MODALITY:DATASET, and which of their rows count.

    `connection` is the one to measure, the recipe's first where it is not named. `query_where` and
    `gallery_where` are COLUMN=VALUE,..., as the flags of these names take it.
    """

    searched: ClassVar[str] = "gallery"  # the field that names what is searched

    connection: str | None = None
    query: str
    query_where: Filters = ()

    @property
    def places(self) -> tuple[str, str]:
        """What searches, and what is searched."""
        return self.query, getattr(self, self.searched)

    @property
    def filters(self) -> tuple[Sequence[str], Sequence[str]]:
        """Which rows of the two count."""
        return self.query_where, getattr(self, f"{self.searched}_where")

    @property
    def options(self) -> dict[str, Any]:
        """What else the task is told."""
        beside = ("query", self.searched)
        named = {"connection", *beside, *(f"{side}_where" for side in beside)}
        return {name: getattr(self, name) for name in type(self).model_fields if name not in named}

    def with_flags(self, given: Mapping[str, Any]) -> Self:
        """With `given` in it. A selection goes with the dataset that it is made of."""
        sides = zip(("query", self.searched), self.places, strict=True)
        gone = {f"{side}_where": () for side, place in sides if given.get(side, place) != place}
        return self.model_copy(update=gone | dict(given))


class RetrievalSection(Measured):
    """One pair of datasets to search in each other."""

    gallery: str
    gallery_where: Filters = ()


class ZeroShotSection(Measured):
    """Items to classify and the prompts of the classes.

    `classes` and `templates` choose among the prompts, as the flags of these names do.
    """

    gallery: str
    gallery_where: Filters = ()
    classes: str | None = None
    templates: str | None = None


class SoundsSection(Measured):
    """Sounds and the regions of pictures to find them in.

    `truth` are files that say where; without them the columns of the sounds do.
    """

    searched: ClassVar[str] = "regions"

    regions: str
    regions_where: Filters = ()
    truth: tuple[Path, ...] = ()


class EvaluateSection(_Section):
    """What is measured, task by task."""

    retrieval: list[RetrievalSection] = []
    zero_shot: list[ZeroShotSection] = []
    localization: list[SoundsSection] = []
    counterfactual: list[SoundsSection] = []


def _listed(value: object) -> object:
    """One connection may stand without a list around it."""
    return [value] if isinstance(value, Mapping) else value


class Pipeline(_Section):
    """A named recipe, from sources to numbers."""

    description: str
    store: Path
    extract: Annotated[list[ExtractSection], Field(min_length=1)]
    connect: Annotated[list[ConnectSection], BeforeValidator(_listed), Field(min_length=1)]
    evaluate: EvaluateSection = EvaluateSection()

    def connection(
        self, *, via: str | None = None, spaces: Sequence[str] | None = None
    ) -> ConnectSection | None:
        """The first connection that fits."""
        for section in self.connect:
            if via in (None, section.via) and (
                spaces is None or set(spaces) == set(section.spaces)
            ):
                return section
        return None

    def with_checkpoints(self, given: Sequence[str]) -> "Pipeline":
        """The recipe with the weights that the ENCODER=FILE or SPACE=FILE of --checkpoint name.

        Raises UsageError for what is none, an encoder that the recipe does not have or has several
        spaces of, or a file that is not there.
        """
        files = dict(_checkpoint(text, self.extract) for text in given)
        extract = [
            section.model_copy(update={"checkpoint": files.get(section.space, section.checkpoint)})
            for section in self.extract
        ]
        return self.model_copy(update={"extract": extract})

    @property
    def encoders(self) -> list[str]:
        """The encoders that something goes through."""
        return [section.encoder for section in self.extract]

    @property
    def spaces(self) -> set[str]:
        """The spaces that are connected."""
        return {space for section in self.connect for space in section.spaces}


def _checkpoint(text: str, sections: Sequence[ExtractSection]) -> tuple[str, Path]:
    """Space and file; an encoder's own name may have `=` in it, as `ulip:points=10000`."""
    names = [*(one.space for one in sections), *(one.encoder for one in sections)]
    name = next((name for name in names if text.startswith(f"{name}=")), None)
    if name is None:
        wanted, equals, _ = text.partition("=")
        raise UsageError(
            f"the recipe has no encoder {wanted!r}" if equals else f"{text!r} is not ENCODER=FILE",
            where=f"--checkpoint {text}",
            fix=near(wanted, [one.encoder for one in sections]),
        )
    spaces = sorted({one.space for one in sections if name in (one.space, one.encoder)})
    space = name if name in spaces else spaces[0]
    if space != name and len(spaces) > 1:
        raise UsageError(
            f"the recipe has {len(spaces)} spaces of {name}",
            where=f"--checkpoint {text}",
            fix=f"say which: --checkpoint SPACE=FILE, with {' or '.join(spaces)}",
        )
    path = Path(text.removeprefix(f"{name}=")).expanduser()
    if not path.exists():
        raise UsageError(
            f"there is no such file of weights for {name}",
            where=path.absolute(),
            fix="give the publisher's file, downloaded, by its path",
        )
    return space, path


class PipelinesFile(_Section):
    """What pipelines.yaml holds; `default` names the recipe that a stage without flags takes."""

    default: str
    pipelines: dict[str, Pipeline]


@dataclass(frozen=True)
class Pipelines:
    """All recipes of a file, and the error of each that does not fit, raised when it is used."""

    default: str
    pipelines: dict[str, Pipeline]
    problems: dict[str, UsageError]

    def named(self, name: str | None = None) -> Pipeline:
        """The pipeline `name`, or the default one. Raises UsageError when there is none."""
        wanted = self.default if name is None else name
        if wanted in self.problems:
            raise self.problems[wanted]
        if wanted not in self.pipelines:
            raise UsageError(
                f"there is no pipeline named {wanted!r}",
                fix=near(wanted, [*self.pipelines, *self.problems]),
            )
        return self.pipelines[wanted]

    def candidates(self) -> Iterator[tuple[str, Pipeline]]:
        """Name and recipe of each that can be used, the default one first."""
        for name in sorted(self.pipelines, key=lambda name: name != self.default):
            yield name, self.pipelines[name]


def load_pipelines() -> Pipelines:
    """Read `./pipelines.yaml`, else the packaged one.

    Raises UsageError for a file that is not one of recipes; a recipe that does not fit is kept as
    a problem.
    """
    import yaml

    local = Path(FILE)
    place = local if local.exists() else Path(str(files("cmcr") / FILE))
    try:
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the file of recipes cannot be read: {getattr(error, 'strerror', None) or error}",
            where=place,
            fix="mend it, or work in another folder",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(
            f"the file is not YAML: {what}",
            where=f"{place}, line {mark.line + 1}" if mark else place,
            fix="mend it; --no-pipeline goes on without recipes where flags say it all",
        ) from error
    recipes = content.get("pipelines") if isinstance(content, dict) else None
    if not isinstance(recipes, dict):
        checked(PipelinesFile, content, place)  # raises what says so
        raise AssertionError
    sound: dict[str, Pipeline] = {}
    problems: dict[str, UsageError] = {}
    for name, recipe in recipes.items():
        try:
            sound[str(name)] = checked(Pipeline, recipe, f"{place}, pipelines.{name}")
        except UsageError as problem:
            problems[str(name)] = problem
    file = checked(PipelinesFile, content | {"pipelines": sound}, place)
    return Pipelines(file.default, file.pipelines, problems)


def checked(section: type[Section], content: object, where: object) -> Section:
    """`content` as a `section`. Raises UsageError that names each field that does not fit."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise UsageError(
            f"it does not fit: {problems}",
            where=where,
            fix="mend these fields; in an empty folder `cmcr init` writes a file that fits",
        ) from error


def parse_place(text: str) -> tuple[str, Modality, str | None]:
    """`SPACE/MODALITY[:DATASET]` as its three parts. Raises UsageError for anything else."""
    place, _, dataset = text.partition(":")
    space, slash, modality = place.partition("/")
    if not slash:
        raise UsageError(f"{text!r} is not SPACE/MODALITY:DATASET", fix="such as clap/audio:esc10")
    key = Key(space, modality, dataset or "any")
    return key.space, key.modality, dataset or None


def read_sources(
    sources: Sequence[str],
    dataset: str | None = None,
    pattern: str | None = None,
    regions: str | None = None,
    up: str | None = None,
    spans: Mapping[str, Any] = MappingProxyType({}),
) -> list[SourceSection]:
    """What the `MODALITY=WHERE` of --source name. Raises UsageError for one that is none."""
    wanted = [_source(source, dataset, pattern, regions, up, spans) for source in sources]
    if len({(source.modality, source.dataset) for source in wanted}) < len(wanted):
        raise UsageError(
            "two sources of one modality would become one dataset",
            fix="extract them one by one, each with its own --dataset",
        )
    return wanted


def _source(
    text: str,
    dataset: str | None,
    pattern: str | None,
    regions: str | None,
    up: str | None,
    spans: Mapping[str, Any],
) -> SourceSection:
    modality, equals, where = text.partition("=")
    if not equals or not where:
        raise UsageError(
            f"{text!r} is not MODALITY=WHERE", fix="such as --source audio=recordings/"
        )
    check_modality(modality)
    place = Path(where.rpartition(":")[2]).expanduser().resolve()
    stem = place.name if place.is_dir() else place.stem.removesuffix(".plan")
    kind = "regions" if regions else {"image": "frames", "audio": "windows"}.get(modality)
    section = {
        **spans,
        "modality": modality,
        "where": where,
        "dataset": dataset or (f"{stem}-{kind}" if regions or spans else stem),
        "pattern": pattern,
        "regions": regions,
        "up": up or "y",
    }
    return checked(SourceSection, section, text)
