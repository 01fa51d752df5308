"""digits-clip, digits-clap and digits-ulip: the tiny encoders that ship inside the package.

    cmcr extract --encoder digits-clip --source image=FOLDER
    cmcr extract --encoder digits-clap --source audio=builtin:digits/speech-test

Retrain them with `python -m cmcr.extract.digits.pretrain`; `--checkpoint` takes what it writes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, UsageError
from cmcr.extract.digits.preprocess import PARAMETERS
from cmcr.extract.digits.towers import DIM, ENCODERS, Branch, shipped, untrained
from cmcr.extract.encoders.registry import EncoderSpec
from cmcr.extract.items import Decoded


def branch(name: str, modality: Modality) -> Branch:
    """The branch of the encoder `name` for `modality`. Raises UsageError when it has none."""
    branches = ENCODERS[name]
    if modality not in branches:
        raise UsageError(
            f"{name} does not embed {modality}", fix=f"it embeds {' and '.join(sorted(branches))}"
        )
    return branches[modality]


@dataclass(frozen=True)
class Preprocess:
    """`DigitsEncoder.preprocess`, apart from the weights so that it pickles as a name."""

    name: str

    def __call__(self, modality: Modality, item: Decoded) -> Tensor:
        """An image to (1, 8, 8), audio to (40, 101), text to (64,) bytes or (24,) words, points to
        (256, 3).

        Raises SourceError for audio that is empty, silent or not finite.
        """
        return branch(self.name, modality).preprocess(item)


class DigitsEncoder:
    """One digits encoder on `device`. `weights` is a safetensors file with keys `MODALITY.…`."""

    dim = DIM

    def __init__(self, name: str, weights: bytes, device: str) -> None:
        self.name = name
        self.modalities: frozenset[Modality] = frozenset(ENCODERS[name])
        self.preprocess = Preprocess(name)
        self.device = torch.device(device)
        self.checkpoint_sha256 = hashlib.sha256(weights).hexdigest()
        self.towers = untrained(name)
        self.towers.load_state_dict(load(weights))
        self.towers.eval().to(self.device)

    def fingerprint(self) -> Mapping[str, Any]:
        """Checkpoint, preprocessing with its parameters, and library versions."""
        functions = {
            modality: branch.preprocess.__name__ for modality, branch in ENCODERS[self.name].items()
        }
        return {
            "encoder": self.name,
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing": {
                modality: {"function": function, **PARAMETERS[function]}
                for modality, function in functions.items()
            },
            "libraries": {name: version(name) for name in ("numpy", "pillow", "soxr", "torch")},
        }

    @torch.inference_mode()
    def encode(self, modality: Modality, batch: Tensor) -> Float[Tensor, "batch dim"]:
        """A stack of preprocessed inputs to unit float32 vectors (B, 64)."""
        branch(self.name, modality)
        embeddings: Tensor = self.towers[modality](batch.to(self.device))
        return embeddings


def open_encoder(
    name: str, *, variant: str | None, checkpoint: Path | None, device: str
) -> DigitsEncoder:
    """The encoder `name` with the weights in `checkpoint`, or with those of the package.

    Raises UsageError for a variant, EncoderError for weights that cannot be loaded.
    """
    if variant is not None:
        raise UsageError(f"{name} has no variant {variant!r}", fix=f"use --encoder {name}")
    file = checkpoint or shipped(name)
    try:
        return DigitsEncoder(name, file.read_bytes(), device)
    except OSError as error:
        wrong = f"the weights of {name} cannot be read: {error.strerror}"
    except (SafetensorError, RuntimeError) as error:
        wrong = f"this is not a checkpoint of {name}: {str(error).splitlines()[0]}"
    raise EncoderError(
        wrong,
        where=file,
        fix="give a file written by `python -m cmcr.extract.digits.pretrain` to --checkpoint",
    )


def specification(name: str) -> EncoderSpec:
    """What the entry point of the encoder `name` names."""
    return EncoderSpec(
        load=partial(open_encoder, name),
        modalities=tuple(ENCODERS[name]),
        dim=DIM,
        licence="Apache-2.0",
        weights_present=lambda: shipped(name).is_file(),
    )


DIGITS_CLIP = specification("digits-clip")
DIGITS_CLAP = specification("digits-clap")
DIGITS_ULIP = specification("digits-ulip")
