"""The contract between the stages: names, columns, manifest and file metadata.

A dataset is one folder of the store,

    STORE/space=SPACE/modality=MODALITY/dataset=DATASET/

its rows are unit vectors with an id, and its manifest says what made them.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from cmcr.errors import (
    EncoderError,
    SourceError,
    StoreError,
    UsageError,
    VersionError,
)
from cmcr.files import read_regular

REMAKE = "delete that file and run the command that made the dataset again"

SCHEMA_VERSION = 1
METADATA_KEY = b"cmcr"

# Written down with an encoder or a source, but no reason to refuse rows: library versions, the
# licence of the weights, the path by which a source was named, and the plan that it was made by.
INCIDENTAL = frozenset(["libraries", "licence", "plan", "where"])

_MODALITY = re.compile(r"[a-z][a-z0-9-]*")


def check_modality(name: str) -> str:
    """`name`, where it can be a modality's. Raises UsageError for one that cannot."""
    if not _MODALITY.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a modality",
            where=f"modality={name}",
            fix="small letters, digits and '-', with a letter in front, such as "
            f"{', '.join(MODALITIES)}, molecule",
        )
    return name


def _fits(name: str) -> str:
    try:
        return check_modality(name)
    except UsageError as error:
        raise ValueError(f"{error.what}: {error.fix}") from None


Modality: TypeAlias = Annotated[
    str,
    AfterValidator(_fits),
    WithJsonSchema({"type": "string", "pattern": f"^{_MODALITY.pattern}$"}),
]
MODALITIES: tuple[Modality, ...] = ("audio", "image", "pointcloud", "text")  # with a decoder here

Precision = Literal["float16", "float32"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, order=True)
class Key:
    """Which dataset: `SPACE/MODALITY:DATASET` on the command line, a folder in the store."""

    space: str
    modality: Modality
    dataset: str

    def __post_init__(self) -> None:
        for part, value in (("space", self.space), ("dataset", self.dataset)):
            if not _NAME.fullmatch(value):
                raise UsageError(
                    f"{value!r} cannot name a {part}",
                    fix="letters, digits, '.', '_', '+' and '-', with a letter or digit in front",
                )
        check_modality(self.modality)

    def __str__(self) -> str:
        return f"{self.space}/{self.modality}:{self.dataset}"

    @classmethod
    def parse(cls, place: str) -> "Key":
        """The key that `str` gives as `place`."""
        space, _, rest = place.partition("/")
        modality, _, dataset = rest.partition(":")
        return cls(space, modality, dataset)

    def folder(self, store: Path) -> Path:
        """Where the dataset lies in `store`."""
        return (
            store / f"space={self.space}" / f"modality={self.modality}" / f"dataset={self.dataset}"
        )


class Description(BaseModel):
    """What makes a dataset, known before its first row: rows of two descriptions never mix.

    `columns` are the source's own, text but for those in `numbers`. `encoder` and `source` are held
    as JSON gives them back, whatever Python values they came as, so that a description in memory
    equals the one that was read from a file. `written_as` are the identities that its parts were
    written under where a dataset had another name then, or is several that were merged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    space: str
    modality: Modality
    dataset: str
    dim: int = Field(gt=0)
    precision: Precision = "float16"
    part_rows: int = Field(gt=0)
    columns: tuple[str, ...] = ()
    numbers: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    encoder: dict[str, Any]
    source: dict[str, Any]
    written_as: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder_as_json(cls, value: Mapping[str, Any], others: ValidationInfo) -> Any:
        try:
            return as_json(value)
        except (TypeError, ValueError) as error:
            name = value.get("encoder", others.data["space"])
            raise EncoderError(
                f"the fingerprint of {name} cannot be written as JSON: {error}",
                where=f"{name}.fingerprint()",
                fix="let it hold strings, finite numbers, true, false, null, and lists and "
                "dictionaries of them",
            ) from error

    @field_validator("source", mode="before")
    @classmethod
    def _source_as_json(cls, value: Mapping[str, Any]) -> Any:
        try:
            return as_json(value)
        except (TypeError, ValueError) as error:
            raise SourceError(
                f"the description of a source cannot be written as JSON: {error}"
            ) from error

    @property
    def key(self) -> Key:
        """The dataset that is described."""
        return Key(self.space, self.modality, self.dataset)

    @property
    def identity(self) -> str:
        """Hex digest of everything here but what is `INCIDENTAL`."""
        fields = self.model_dump(include=set(Description.model_fields) - {"written_as"})
        return identity(
            fields | {"encoder": identity(self.encoder), "source": identity(self.source)}
        )

    def wrote(self, metadata: Mapping[str, Any] | None) -> bool:
        """Whether a part with this metadata belongs to the dataset."""
        return metadata is not None and metadata.get("description") in (
            self.identity,
            *self.written_as,
        )


class Part(BaseModel):
    """One Parquet file. `offset` is the byte at which its (rows, D) block of values starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^part-[0-9]{5,}\.parquet$")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    offset: int = Field(ge=0)


class Manifest(Description):
    """What a dataset holds and what made it. Written last: a dataset without one is unfinished."""

    rows: int
    failures: int
    parts: list[Part]

    @model_validator(mode="after")
    def _totals(self) -> Self:
        counted = sum(part.rows for part in self.parts)
        if counted != self.rows:
            raise ValueError(f"it counts {self.rows:,} rows, its parts have {counted:,}")
        return self


def identity(description: Mapping[str, Any]) -> str:
    """Hex digest of what decides the numbers: `description` without what is `INCIDENTAL`."""
    decisive = {name: value for name, value in description.items() if name not in INCIDENTAL}
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()


def as_json(value: Mapping[str, Any]) -> Any:
    """`value` as JSON gives it back: a tuple is a list, a key is a string.

    Raises TypeError or ValueError for what JSON has no word for, NaN among it.
    """
    return json.loads(json.dumps(value, allow_nan=False))


def canonical_json(value: object) -> str:
    """`value` as JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def arrow_schema(
    dim: int, precision: Precision, columns: Sequence[str] = (), numbers: Collection[str] = ()
) -> pa.Schema:
    """The columns of a part: id, embedding, uri, text, label, group, then the source's own.

    Those are strings, and float64 where they are among `numbers`.
    """
    value = pa.field("element", pa.type_for_alias(precision), nullable=False)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(value, dim), nullable=False),
            pa.field("uri", pa.string()),
            pa.field("text", pa.string()),
            pa.field("label", pa.list_(pa.string())),
            pa.field("group", pa.string()),
            *(
                pa.field(column, pa.float64() if column in numbers else pa.string())
                for column in columns
            ),
        ]
    )


FAILURE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def all_finite(embeddings: np.ndarray) -> bool:
    """Whether no value of a (rows, D) array is NaN or infinite."""
    if embeddings.dtype == np.float16:
        # numpy widens float16 to test it; the exponent bits answer eight times as fast.
        return not np.any((embeddings.view(np.uint16) & 0x7C00) == 0x7C00)
    return bool(np.isfinite(embeddings).all())


Described = TypeVar("Described", bound=Description)

MANIFEST = "manifest.json"
FAILURES = "failures.parquet"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in `folder`. Raises StoreError when there is none to read."""
    return read_manifest_bytes(folder)[0]


def read_manifest_bytes(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest, and the bytes that it is read from. Raises as `read_manifest` does."""
    path = folder / MANIFEST
    try:
        content = read_regular(path)
        return parse_description(Manifest, content, path), content
    except FileNotFoundError:
        raise StoreError(
            "the dataset is unfinished: it has no manifest",
            where=folder,
            fix="run the command that was making it again; it goes on where it stopped",
        ) from None
    except OSError as error:
        raise unreadable(error.strerror or str(error), path) from None


def parse_description(kind: type[Described], content: bytes, path: Path) -> Described:
    """A description in a file, its version before its fields: a newer one may have others.

    Raises StoreError for a file that holds none, VersionError for one of another version.
    """
    try:
        fields = json.loads(content)
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise VersionError(version, SCHEMA_VERSION, where=path)
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise unreadable(f"{key} {first['msg']}".strip(), path) from None
    except (ValueError, RecursionError) as error:
        raise unreadable((str(error).splitlines() or [type(error).__name__])[0], path) from None


def unreadable(reason: str, path: Path) -> StoreError:
    """The error for a manifest, or a description, that cannot be read."""
    return StoreError(f"the manifest cannot be read: {reason}", where=path, fix=REMAKE)
