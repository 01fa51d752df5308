"""clap: LAION's CLAP, HTSAT-tiny for audio and RoBERTa for text, in one space of 512 dimensions.

    cmcr extract --encoder clap --source audio=FOLDER                    # 630k-fusion-best
    cmcr extract --encoder clap:630k-audioset-best --source audio=FOLDER
    cmcr extract --encoder clap --checkpoint 630k-fusion-best.pt --source text=captions.txt

The weights are those of https://huggingface.co/lukewys/laion_clap, the audio model is laion_clap's
own class. The package `laion_clap` is never imported: its __init__ puts a folder on sys.path and
imports hook.py and training/data.py, which ask a hub for three tokenizers, and its class CLAP
fetches the weights of RoBERTa only to have them overwritten. The one file that is needed,
clap_module/htsat.py, imports its neighbours relatively, so its folder is given to Python as a
package of another name, and RoBERTa is built from its configuration.

Audio needs neither network nor tokenizer. Text needs the three files of TOKENIZER_FILES in the
Hugging Face cache; `ready("text")` says so before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn
from torch.nn import functional as F

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, UsageError
from cmcr.extract.encoder import EncoderSpec
from cmcr.extract.encoders import clap_audio as front
from cmcr.extract.encoders.weights import find_weights, load_state_dict_file, weights_cached
from cmcr.extract.items import Decoded, Waveform
from cmcr.files import sha256_file
from cmcr.typed import typed

REPOSITORY = "lukewys/laion_clap"
DEFAULT = "630k-fusion-best"
FUSION: Mapping[str, bool] = {  # variant → whether it was trained with feature fusion
    DEFAULT: True,
    "630k-best": False,
    "630k-audioset-best": False,
    "630k-audioset-fusion-best": True,
}
MODALITIES: tuple[Modality, ...] = ("audio", "text")
DIM = 512

TOKENIZER = "roberta-base"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
VOCABULARY = 50_265
CONTEXT = 77
PAD, END = 1, 2


@dataclass(frozen=True)
class Preprocess:
    """`ClapEncoder.preprocess`, apart from the weights."""

    fusion: bool

    def __call__(self, modality: Modality, item: Decoded) -> Tensor:
        """Audio to what `clap_audio` packs, text to (CONTEXT + 1,) tokens, padded.

        The one token too many shows that a text was cut. Raises SourceError for audio without
        samples, EncoderError for text when there is no tokenizer.
        """
        if modality == "audio" and isinstance(item, Waveform):
            return front.fusion_record(item) if self.fusion else front.crop_record(item)
        if modality == "text" and isinstance(item, str):
            tokens = tokenizer()(
                item, padding="max_length", truncation=True, max_length=CONTEXT + 1
            )
            return torch.tensor(tokens["input_ids"])
        raise UsageError(f"clap does not embed {modality}", cure="it embeds audio and text")


class ClapEncoder:
    """CLAP with the weights of `checkpoint`, a file in the publisher's layout, on `device`.

    Raises EncoderError for a file that holds something else.
    """

    name = "clap"
    modalities: frozenset[Modality] = frozenset(MODALITIES)
    dim = DIM

    def __init__(self, variant: str, checkpoint: Path, device: str) -> None:
        self.variant = variant
        self.preprocess = Preprocess(FUSION[variant])
        self.device = torch.device(device)
        state = published_state(variant, checkpoint)
        self.checkpoint_sha256 = sha256_file(checkpoint)
        self.model = Clap(FUSION[variant])
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise not_clap(checkpoint, " ".join(str(error).split())[:300]) from error
        self.model.eval().to(self.device)

    def fingerprint(self) -> Mapping[str, Any]:
        """Checkpoint, preprocessing with its parameters, and library versions."""
        fusion = FUSION[self.variant]
        libraries = ("laion_clap", "numpy", "soxr", "torch", "transformers")
        return {
            "encoder": f"{self.name}:{self.variant}",
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing": {
                "audio": {
                    **front.PARAMETERS,
                    "long": "shrunk and three chunks" if fusion else "crop",
                    "mel_scale": "htk" if fusion else "slaney",
                },
                "text": {"version": 1, "tokenizer": TOKENIZER, "context": CONTEXT},
            },
            "libraries": {name: version(name) for name in libraries},
        }

    def ready(self, modality: Modality) -> None:
        """Raises EncoderError when `modality` needs a file that is not there."""
        if modality == "text":
            tokenizer()

    @torch.inference_mode()
    @typed
    def encode(self, modality: Modality, batch: Tensor) -> Float[Tensor, "batch dim"]:
        """A stack of preprocessed inputs to unit float32 vectors (batch, 512)."""
        batch = batch.to(self.device)
        features = self.model.audio(batch) if modality == "audio" else self.model.text(batch)
        return F.normalize(features.float(), dim=-1)

    @typed
    def count_truncated(self, batch: Int[Tensor, "batch tokens"]) -> int:
        """How many texts of a preprocessed batch are longer than the model reads."""
        return int((batch[:, CONTEXT] != PAD).sum())


class Clap(nn.Module):
    """The part of laion_clap's CLAP that embeds, with its names."""

    def __init__(self, fusion: bool) -> None:
        super().__init__()
        self.audio_branch = front.htsat(fusion)
        self.audio_projection = projection()
        self.text_branch = roberta()
        self.text_projection = projection()

    @typed
    def audio(self, records: Int16[Tensor, "batch record"]) -> Float[Tensor, "batch dim"]:
        """What `Preprocess` makes of audio, stacked, to features."""
        pooled = front.embedding(self.audio_branch, records)  # (batch, 768)
        features: Tensor = self.audio_projection(pooled)
        return features

    @typed
    def text(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
        """Tokens as `Preprocess` makes them, stacked, to features.

        Cut to CONTEXT the tokenizer's way, which keeps the closing token, and to the longest text.
        """
        cut = tokens[:, CONTEXT] != PAD  # (batch,)
        tokens = tokens[:, :CONTEXT].clone()
        tokens[cut, -1] = END
        # A text may name the padding token; what follows the closing token is padding.
        there = (tokens != PAD).flip(1).cumsum(1).flip(1) > 0  # (batch, CONTEXT)
        longest = int(there.sum(1).max())
        pooled = self.text_branch(
            input_ids=tokens[:, :longest], attention_mask=there[:, :longest]
        ).pooler_output  # (batch, 768)
        features: Tensor = self.text_projection(pooled)
        return features


def projection() -> nn.Sequential:
    """From a branch to the shared space."""
    return nn.Sequential(nn.Linear(768, DIM), nn.ReLU(), nn.Linear(DIM, DIM))


def roberta() -> Any:
    """roberta-base without its weights."""
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(
        RobertaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    )


def missing_tokenizer() -> list[EncoderError]:
    """What embedding text still needs on this machine, without asking the network."""
    absent = [file for file in TOKENIZER_FILES if not weights_cached(TOKENIZER, file)]
    if not absent:
        return []
    cure = f"fetched at first use where there is network; else `hf download {TOKENIZER}`"
    return [EncoderError(f"for text: {TOKENIZER}'s {', '.join(absent)} not here", cure=cure)]


@cache
def tokenizer() -> Any:
    """RoBERTa's tokenizer, from the Hugging Face cache or fetched into it.

    Without its files transformers can give back one of five tokens and no error, so they are
    looked for first and the vocabulary is counted. Raises EncoderError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers import RobertaTokenizer

    missing = partial(
        EncoderError,
        where=Path(HF_HUB_CACHE, f"models--{TOKENIZER}"),
        cure=f"`hf download {TOKENIZER} {' '.join(TOKENIZER_FILES)}` puts them there; for a "
        "machine without network run it on another and copy that folder",
    )
    try:
        paths = [Path(hf_hub_download(TOKENIZER, file)) for file in TOKENIZER_FILES]
        found = RobertaTokenizer.from_pretrained(str(paths[0].parent))
    except (OSError, ValueError) as error:
        raise missing(
            f"embedding text with clap needs {TOKENIZER}'s tokenizer, the files "
            f"{', '.join(TOKENIZER_FILES)}, and they are not on this machine"
        ) from error
    if len(found) != VOCABULARY:
        raise missing(
            f"{TOKENIZER}'s tokenizer has {VOCABULARY:,} entries, this one has {len(found):,}: its "
            f"files {', '.join(TOKENIZER_FILES)} are damaged or another's"
        )
    return found


def published_state(variant: str, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of `Clap` in a file of the publisher's layout.

    What training needed (heads for the loss, temperatures) and the positions that older
    transformers kept with the weights are left out. Raises EncoderError.
    """
    # The training state beside the weights holds NumPy numbers.
    harmless: list[Any] = [
        np.float64().__reduce__()[0],  # numpy.core.multiarray.scalar
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)),
    ]
    with torch.serialization.safe_globals(harmless):
        state = load_state_dict_file(checkpoint)
    if "audio_branch.patch_embed.proj.weight" not in state:
        raise not_clap(checkpoint, f"it begins with {next(iter(state))}")
    fused = "audio_branch.patch_embed.mel_conv2d.weight" in state
    if fused != FUSION[variant]:
        fitting = " or ".join(f"clap:{name}" for name, fusion in FUSION.items() if fusion == fused)
        raise EncoderError(
            f"this checkpoint is {'with' if fused else 'without'} feature fusion, clap:{variant} "
            f"is {'without' if fused else 'with'}",
            where=checkpoint,
            cure=f"use --encoder {fitting}",
        )
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(
            ("audio_branch.", "audio_projection.", "text_branch.", "text_projection.")
        )
        and name != "text_branch.embeddings.position_ids"
    }


def not_clap(checkpoint: Path, why: str) -> EncoderError:
    """What to raise for a file that holds other weights."""
    return EncoderError(
        f"this is not a checkpoint of CLAP with HTSAT-tiny: {why}",
        where=checkpoint,
        cure=f"give one of https://huggingface.co/{REPOSITORY} to --checkpoint: "
        f"{', '.join(f'{variant}.pt' for variant in FUSION)}",
    )


def open_encoder(*, variant: str | None, checkpoint: Path | None, device: str) -> ClapEncoder:
    """CLAP with the weights in `checkpoint`, or with the published ones of `variant`.

    Raises UsageError for a variant that there is not, EncoderError for weights that cannot be had.
    """
    variant = variant or DEFAULT
    if variant not in FUSION:
        raise UsageError(
            f"clap has no variant {variant!r}",
            cure=f"one of: {', '.join(f'clap:{name}' for name in FUSION)}",
        )
    return ClapEncoder(variant, checkpoint or find_weights(REPOSITORY, f"{variant}.pt"), device)


CLAP = EncoderSpec(
    load=open_encoder,
    modalities=MODALITIES,
    dim=DIM,
    licence="CC0-1.0",
    weights_present=lambda: weights_cached(REPOSITORY, f"{DEFAULT}.pt"),
    lacks=missing_tokenizer,
)
