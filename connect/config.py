"""How to connect: one flat model, which is also the `connect` section of pipelines.yaml.

    connect:
      via: text
      spaces: [clip, clap]
      train: [captions]
      memory: [imagenet, audioset]
      noise_variance: 0.004

    config = read_config(section, where="pipelines.yaml")
    config = with_overrides(config, ["noise_variance=0", "epochs=100"])

The defaults of c-mcr are the paper's for CLIP-CLAP (arXiv 2305.14381, section 4.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cmcr.embeddings import Modality
from cmcr.errors import UsageError

ProjectorPreset = Literal["mlp", "linear", "residual"]
HeadKind = Literal[
    "mlp", "linear", "residual", "leaf", "gelu", "matrix", "kernel", "identity"
]  # fmt: skip

Method = Literal[
    "auto", "cca", "ex-cca", "c-mcr", "ex-mcr", "linear", "textme", "procrustes", "ridge", "kernel",
    "identity",
]  # fmt: skip
TRAINED: tuple[Method, ...] = ("c-mcr", "ex-mcr", "linear", "textme")
AGGREGATES: tuple[Method, ...] = ("c-mcr", "ex-mcr", "linear")  # trained with pseudo partners
# Settings that a method has in the place of the defaults below, wherever they are left open. Those
# of textme are those of its code (arXiv 2602.03098, SoyeonHH/TextME: scripts/train.sh, which names
# table 11, and configs/default.yaml): text alone, without noise; five of fifty epochs of warm-up,
# and a cosine. Its train.py anneals ten times over, with warm restarts, instead.
USUAL: Mapping[str, Mapping[str, Any]] = {
    "ex-mcr": {"centric": ("bridge", "first", "second")},
    "textme": {
        "negatives": (0.1, 0.9),
        "bridge_temperature": 0.07,
        "noise_variance": 0.0,
        "learning_rate": 5e-4,
        "warm_up": 0.1,
        "batch_size": 512,
        "epochs": 50,
    },
}
Distance = Literal["plain", "squared"]
Centric = Literal["bridge", "first", "second"]


class ConnectConfig(BaseModel):
    """What to connect, how, and every hyper-parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    spaces: tuple[str, str] = Field(
        description="space 1 and space 2; all methods but cca and c-mcr take 1 into 2, which stays"
    )
    via: Modality = Field(description="b, the modality that both spaces have")
    train: tuple[str, ...] = Field(
        default=(),
        description="datasets of the bridge modality, embedded in both spaces; none where `blind`",
    )
    memory: tuple[str, ...] = Field(
        default=(),
        description="datasets of the other modalities of each space: DATASET, or "
        "SPACE/MODALITY:DATASET where the name alone fits two modalities of a space; of a space's "
        "several modalities the one named first gives the pseudo partners",
    )
    pool: tuple[str, ...] = Field(
        default=(),
        description="datasets of the bridge modality of which nobody knows which item is which in "
        "the other space, of both spaces: SPACE/MODALITY:DATASET, or DATASET where both have it; "
        "pairs found there are fitted too, where held-out pairs show that to be better",
    )
    blind: bool = Field(
        default=False,
        description="no pair is known, and all are found in the pools, or nothing is connected",
    )
    method: Method = "auto"
    centre: bool = Field(
        default=False,
        description="subtract the mean of each modality first; cca and residual always do, and "
        "textme in space 1",
    )
    ridge_strength: float | None = Field(
        default=None,
        gt=0,
        description="ridge: weight of ‖W‖²; by held-out pairs where it is not set",
    )
    seed: int = Field(default=0, ge=0, description="initial weights, order of items, noise")
    validation: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="share of the bridge pairs that training holds back, at least 32 and at most "
        "2048; closed forms hold back each pair once, up to 4096; 0: nothing",
    )

    projector: ProjectorPreset = Field(
        default="mlp",
        description="mlp: as published for CLIP-CLAP (ex-mcr: as for Ex-MCR); linear: for "
        "CLIP-ULIP; residual: cca and beside it an MLP that begins at zero",
    )
    joint_dim: int = Field(
        default=512, ge=1, description="dimensions of c-mcr's joint space, with mlp or linear"
    )
    centric: tuple[Centric, ...] = Field(
        default=("bridge",),
        min_length=1,
        description="what training rows are aggregated from, pooled: the bridge items, the memory "
        "of the first space, that of the second; all three for ex-mcr, else bridge",
    )
    memory_temperature: float = Field(default=0.01, gt=0, description="τ1, of the aggregation")
    bridge_temperature: float = Field(default=0.01, gt=0, description="τ2, of bridge pairs")
    pseudo_temperature: float = Field(default=0.01, gt=0, description="τ3, of pseudo pairs")
    noise_variance: float = Field(
        default=0.004, ge=0, description="σ², variance of the noise in each dimension"
    )
    intra_weight: float = Field(default=0.1, ge=0, description="λ, weight of L_intra")
    pseudo_weight: float = Field(default=1.0, ge=0, description="weight of the pseudo-pair InfoNCE")
    cross_weight: float | None = Field(
        default=None,
        ge=0,
        description="weight of InfoNCE between ã and b², and b¹ and c̃; 1 for ex-mcr, else 0",
    )
    distance: Distance = Field(default="plain", description="of L_intra: ‖x - y‖ or ‖x - y‖²")
    negatives: tuple[float, float] | None = Field(
        default=None,
        description="which negatives of a bridge pair count: those whose cosine is between these "
        "shares of the pair's own; 0.1 and 0.9 for textme, else all",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW; falls to 0 as a cosine")
    warm_up: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the steps in which the learning rate rises first; 0.1 for textme",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW")
    epochs: int | None = Field(
        default=None,
        ge=1,
        description="passes over the bridge pairs; 36, more with fewer than 35,000 pairs",
    )
    batch_size: int | None = Field(
        default=None,
        ge=4,
        description="at most, for an epoch is cut into equal batches; 10,240 with 2.33 M pairs, "
        "fewer with fewer",
    )
    patience: int = Field(
        default=10,
        ge=1,
        description="validations after the one that is kept before training stops: clearly worse "
        "ones, of a residual none that is better; one an epoch, 36 a run at most",
    )

    @field_validator("spaces")
    @classmethod
    def _two_spaces(cls, spaces: tuple[str, str]) -> tuple[str, str]:
        if spaces[0] == spaces[1]:
            raise ValueError(f"both spaces are {spaces[0]!r}; name two different ones")
        return spaces

    @field_validator("train", "memory", "pool", "centric")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("something is named twice")
        return names

    @field_validator("negatives")
    @classmethod
    def _low_before_high(cls, shares: tuple[float, float] | None) -> tuple[float, float] | None:
        if shares is not None and shares[0] >= shares[1]:
            raise ValueError(f"{shares[0]} is not below {shares[1]}")
        return shares

    @model_validator(mode="before")
    @classmethod
    def _as_usual(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {**USUAL.get(str(given.get("method")), {}), **given}

    @model_validator(mode="after")
    def _pairs_come_from_somewhere(self) -> "ConnectConfig":
        if self.blind and (self.train or not self.pool):
            raise ValueError("`blind` goes with `pool`, a pool of each space, and without `train`")
        if not self.blind and not self.train:
            raise ValueError("`train` names the datasets whose pairs are known; without any: blind")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where pairs are known it is written as it was before there was `blind`."""
        content: dict[str, Any] = fields(self)
        return content if self.blind else {k: v for k, v in content.items() if k != "blind"}

    @model_validator(mode="after")
    def _centring_has_a_meaning(self) -> "ConnectConfig":
        if self.centre and self.method == "auto":
            raise ValueError("`auto` tries each method with and without centring")
        return self

    @property
    def trained(self) -> bool:
        """Whether the method has a training loop."""
        return self.method in TRAINED

    @property
    def cross(self) -> float:
        """The weight of the crossed pairs."""
        return float(self.method == "ex-mcr") if self.cross_weight is None else self.cross_weight

    @property
    def whitened(self) -> bool:
        """Whether each modality goes through its own covariance first: in cca and a residual."""
        return self.method in ("cca", "ex-cca", "kernel") or "residual" in self.heads

    @property
    def centred(self) -> tuple[bool, bool]:
        """Whether the means of the modalities of either space are subtracted, and no more."""
        return self.centre or self.method == "textme", self.centre

    @property
    def heads(self) -> tuple[HeadKind, HeadKind]:
        """The heads of space 1 and space 2."""
        if self.method == "cca":
            return "matrix", "matrix"
        if self.method == "c-mcr":
            return self.projector, self.projector
        if self.method == "ex-mcr":
            return "leaf" if self.projector == "mlp" else self.projector, "identity"
        if self.method == "textme":
            return "gelu", "identity"
        if self.method in ("kernel", "identity"):
            return self.method, "identity"
        return "matrix", "identity"

    @property
    def model_name(self) -> str:
        """The method as it stands in a table of results: `c-mcr`, `procrustes-centred`, ..."""
        residual = "residual" in self.heads
        centred = self.centre and not self.whitened
        return self.method + "-residual" * residual + "-centred" * centred


def read_config(section: Mapping[str, Any], *, where: object = None) -> ConnectConfig:
    """A checked config. Raises UsageError that names the key, its value and what it could be.

    So too for `centric` of a method that aggregates nothing; records of before may hold that.
    """
    try:
        config = ConnectConfig.model_validate(dict(section))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"connect has no setting {key!r}",
                where=where,
                fix=f"one of: {', '.join(ConnectConfig.model_fields)}",
            ) from None
        what = first["msg"].removeprefix("Value error, ")  # as pydantic calls ours
        meaning = describe_setting(str(first["loc"][0])) if first["loc"] else ""
        raise UsageError(
            f"connect cannot use {key or 'these settings'}: {what}",
            where=where,
            fix=f"{first['loc'][0]}: {meaning}" if meaning else None,
        ) from None
    if config.centric != ("bridge",) and config.method not in ("auto", *AGGREGATES):
        raise UsageError(
            f"centric: {', '.join(config.centric)}, and {config.method} aggregates nothing",
            where=where or "the settings of the connection",
            fix=f"leave centric out, or take a method that does: {', '.join(AGGREGATES)}",
        )
    return config


def describe_setting(key: str) -> str:
    """What the setting `key` means; empty for one that is its own description."""
    field = ConnectConfig.model_fields.get(key)
    return (field.description or "") if field else ""


def with_overrides(config: ConnectConfig, overrides: Sequence[str]) -> ConnectConfig:
    """`config` with KEY=VALUE strings applied in order; a value is read as YAML.

    Another method brings its usual settings: of the old one only what is not usual for it stays.
    Raises UsageError for a string without "=", an unknown key or a value that does not fit.
    """
    fields, settings = config.model_dump(), parse_settings(overrides)
    if "method" in settings:
        fields = {"method": config.method} | unusual(config)
    return read_config(fields | settings, where=", ".join(overrides))


def unusual(config: ConnectConfig) -> dict[str, Any]:
    """The settings of `config` that are not what its method has where they are left open."""
    defaults = {name: field.default for name, field in ConnectConfig.model_fields.items()}
    usual = {**defaults, **USUAL.get(config.method, {})}
    return {name: one for name, one in config.model_dump().items()
            if name != "method" and one != usual[name]}  # fmt: skip


def parse_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE strings as fields; a value is read as YAML, and the last of a key counts.

    Raises UsageError for a string without "=" or a value that is not YAML.
    """
    settings = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} sets nothing", fix="write KEY=VALUE")
        try:
            settings[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"the value of {override!r} cannot be read") from None
    return settings
