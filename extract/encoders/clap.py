"""clap: LAION's CLAP, HTSAT for audio and RoBERTa for text, in one space of 512 dimensions.

    cmcr extract --encoder clap --source audio=FOLDER                    # 630k-fusion-best
    cmcr extract --encoder clap:music_audioset_epoch_15_esc_90.14 --source audio=FOLDER
    cmcr extract --encoder clap --checkpoint 630k-fusion-best.pt --source text=captions.txt

A variant is one of the publisher's files. HTSAT is tiny or base, with or without feature fusion:
what a file holds is read off its tensors, and refused under the name of another.

The weights are those of https://huggingface.co/lukewys/laion_clap. laion_clap's class CLAP fetches
the weights of RoBERTa only to have them overwritten; here RoBERTa is built from its configuration,
and the audio model is laion_clap's own class (htsat.py).

Audio needs neither network nor tokenizer. Text needs the three files of TOKENIZER_FILES in the
Hugging Face cache; `ready("text")` says so before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn
from torch.nn import functional as F

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, UsageError
from cmcr.extract.encoders.hub import find_weights, load_state_dict_file, weights_cached
from cmcr.extract.encoders.models import clap_audio as front
from cmcr.extract.encoders.models import htsat
from cmcr.extract.encoders.registry import EncoderSpec
from cmcr.extract.items import Decoded, Waveform
from cmcr.files import sha256_file
from cmcr.typed import typed

REPOSITORY = "lukewys/laion_clap"
DEFAULT = "630k-fusion-best"
VARIANTS: Mapping[str, htsat.Architecture] = {
    DEFAULT: htsat.Architecture("tiny", fusion=True),
    "630k-best": htsat.Architecture("tiny", fusion=False),
    "630k-audioset-best": htsat.Architecture("tiny", fusion=False),
    "630k-audioset-fusion-best": htsat.Architecture("tiny", fusion=True),
    "music_audioset_epoch_15_esc_90.14": htsat.Architecture("base", fusion=False),
    "music_speech_epoch_15_esc_89.25": htsat.Architecture("base", fusion=False),
    "music_speech_audioset_epoch_15_esc_89.98": htsat.Architecture("base", fusion=False),
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
        raise UsageError(f"clap does not embed {modality}", fix="it embeds audio and text")


class ClapEncoder:
    """CLAP with the weights of `checkpoint`, a file in the publisher's layout, on `device`.

    Raises EncoderError for a file that holds something else.
    """

    name = "clap"
    modalities: frozenset[Modality] = frozenset(MODALITIES)
    dim = DIM

    def __init__(self, variant: str, checkpoint: Path, device: str) -> None:
        self.variant = variant
        self.preprocess = Preprocess(VARIANTS[variant].fusion)
        self.device = torch.device(device)
        state = published_state(variant, checkpoint)
        self.checkpoint_sha256 = sha256_file(checkpoint)
        self.model = Clap(VARIANTS[variant])
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise not_clap(checkpoint, " ".join(str(error).split())[:300]) from error
        self.model.eval().to(self.device)

    def fingerprint(self) -> Mapping[str, Any]:
        """Checkpoint, preprocessing with its parameters, and library versions."""
        long = front.SHRUNK if VARIANTS[self.variant].fusion else front.CROPPED
        libraries = ("laion_clap", "numpy", "soxr", "torch", "transformers")
        return {
            "encoder": f"{self.name}:{self.variant}",
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing": {
                "audio": {
                    **front.PARAMETERS,
                    **long,
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

    def __init__(self, architecture: htsat.Architecture) -> None:
        super().__init__()
        self.audio_branch = htsat.untrained(architecture)
        self.audio_projection = projection(self.audio_branch.num_features)
        self.text_branch = roberta()
        self.text_projection = projection(768)

    @typed
    def audio(self, records: Int16[Tensor, "batch record"]) -> Float[Tensor, "batch dim"]:
        """What `Preprocess` makes of audio, stacked, to features."""
        pooled = front.embedding(self.audio_branch, records)  # (batch, width)
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


def projection(width: int) -> nn.Sequential:
    """From a branch of that width to the shared space."""
    return nn.Sequential(nn.Linear(width, DIM), nn.ReLU(), nn.Linear(DIM, DIM))


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
    fix = f"fetched at first use where there is network; else `hf download {TOKENIZER}`"
    return [EncoderError(f"for text: {TOKENIZER}'s {', '.join(absent)} not here", fix=fix)]


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
        fix=f"`hf download {TOKENIZER} {' '.join(TOKENIZER_FILES)}` puts them there; for a "
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
    state = load_state_dict_file(checkpoint)
    found = htsat.architecture_of(state)
    if found is None:
        raise not_clap(checkpoint, f"it begins with {next(iter(state))}")
    if found != VARIANTS[variant]:
        fitting = [name for name, architecture in VARIANTS.items() if architecture == found]
        named = [name for name in fitting if name == checkpoint.stem] or fitting
        fix = f"write --encoder {' or '.join(f'clap:{name}' for name in named)}"
        raise EncoderError(
            f"this checkpoint is {found}, and clap:{variant} is {VARIANTS[variant]}",
            where=checkpoint,
            fix=fix if named else "there is no variant of it: give another checkpoint",
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
        f"this is not a checkpoint of CLAP with HTSAT: {why}",
        where=checkpoint,
        fix=f"give one of https://huggingface.co/{REPOSITORY} to --checkpoint: "
        f"{', '.join(f'{variant}.pt' for variant in VARIANTS)}",
    )


def open_encoder(*, variant: str | None, checkpoint: Path | None, device: str) -> ClapEncoder:
    """CLAP with the weights in `checkpoint`, or with the published ones of `variant`.

    Raises UsageError for a variant that there is not, EncoderError for weights that cannot be had.
    """
    variant = variant or DEFAULT
    if variant not in VARIANTS:
        raise UsageError(
            f"clap has no variant {variant!r}",
            fix=f"one of: {', '.join(f'clap:{name}' for name in VARIANTS)}",
        )
    return ClapEncoder(variant, checkpoint or find_weights(REPOSITORY, f"{variant}.pt"), device)


CLAP = EncoderSpec(
    load=open_encoder,
    modalities=MODALITIES,
    dim=DIM,
    licence="CC0-1.0",
    weights_present=lambda: weights_cached(REPOSITORY, f"{DEFAULT}.pt"),
    lacks=missing_tokenizer,
    tokenizer=f"{TOKENIZER} of the hub: {', '.join(TOKENIZER_FILES)}",
)
