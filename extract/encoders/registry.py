"""What an encoder is, and how one is found by its name.

An encoder is a frozen pretrained MCR. The registry is the entry-point group `cmcr.encoders`:
cmcr's own encoders are registered there like anybody else's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.embeddings.schema import Modality
from cmcr.errors import CmcrError, UsageError, near
from cmcr.extract.items import Decoded
from cmcr.extract.media.readers import GROUP, Reader


@runtime_checkable
class Encoder(Protocol):
    """A frozen MCR: modalities in, unit vectors of one space out.

    `cmcr.extract.contract` tries what is promised here on any of them.

    Three more things are used where an encoder has them: `ready(modality)` raises EncoderError
    before anything is written when something that the modality needs is not there,
    `count_truncated(batch)` says how many texts of a preprocessed batch were cut, and
    `worker_imports` names modules that take long to import and that `preprocess` needs.
    """

    name: str
    modalities: frozenset[Modality]
    dim: int
    device: torch.device

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the numbers, as JSON can hold it: at least `checkpoint_sha256` and
        `preprocessing`.
        """
        ...

    def preprocess(self, modality: Modality, item: Decoded) -> Tensor:
        """One decoded input to one tensor. Deterministic.

        It is pickled and sent to worker processes: keep weights out of what it refers to.
        """
        ...

    def encode(self, modality: Modality, batch: Tensor) -> Float[Tensor, "batch dim"]:
        """A stack of preprocessed inputs, on any device, to unit vectors on the encoder's."""
        ...


class Loader(Protocol):
    """Loads an encoder. `variant` is what follows the colon in NAME:VARIANT."""

    def __call__(self, *, variant: str | None, checkpoint: Path | None, device: str) -> Encoder: ...


@dataclass(frozen=True)
class EncoderSpec:
    """What an entry point of the group names: an encoder before its weights are loaded."""

    load: Loader
    modalities: tuple[Modality, ...]
    dim: int | None  # None where it depends on the variant
    licence: str  # of the weights
    weights_present: Callable[[], bool] | None  # None where the name alone is no model
    lacks: Callable[[], Sequence[CmcrError]] = tuple  # what else is not here, and the fix
    tokenizer: str | None = None  # what makes tokens of texts, and where it comes from
    readers: Mapping[Modality, Reader] = field(default_factory=dict)  # of what only it knows


def registered() -> dict[str, EntryPoint]:
    """Every encoder that an installed package offers, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def encoder_spec(spec: str) -> EncoderSpec:
    """The encoder that NAME or NAME:VARIANT names, before its weights are loaded.

    Raises UsageError when there is none, or it cannot be imported.
    """
    name = spec.partition(":")[0]
    found = registered()
    if name not in found:
        raise UsageError(
            f"there is no encoder named {name!r}",
            fix=f"{near(name, found)}; `cmcr encoders` describes them",
        )
    try:
        encoder = found[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the encoder {name!r} is registered but cannot be imported: {error}",
            where=found[name].value,
            fix="install the package that offers it again",
        ) from error
    if not isinstance(encoder, EncoderSpec):
        raise UsageError(
            f"the encoder {name!r} is a {type(encoder).__name__}, not an EncoderSpec",
            where=found[name].value,
            fix=f"its entry point in the group {GROUP} must name an EncoderSpec",
        )
    return encoder


def load_encoder(spec: str, *, checkpoint: Path | None = None, device: str = "cpu") -> Encoder:
    """The encoder that NAME or NAME:VARIANT names, with its weights on `device`.

    Raises UsageError for an unknown name, EncoderError when the weights cannot be loaded.
    """
    variant = spec.partition(":")[2] or None
    return encoder_spec(spec).load(variant=variant, checkpoint=checkpoint, device=device)
