"""clip: CLIP as open_clip builds it, for images and text.

    cmcr extract --encoder clip --source image=FOLDER                    # ViT-B-32/openai, 512-d
    cmcr extract --encoder clip --checkpoint open_clip_model.safetensors --source image=FOLDER
    cmcr extract --encoder clip:ViT-L-14/laion2b_s32b_b82k --source text=CAPTIONS.txt

A variant is MODEL/PRETRAINED as `open_clip.list_pretrained()` names them. The tag decides more
than the weights: the activation (OpenAI's weights want quick-GELU) and the picture's mean, standard
deviation and interpolation. So with --checkpoint name the variant that the file is of; MODEL alone
is open_clip's own configuration of it, for weights that have no tag.

Model, transform and tokenizer are open_clip's: pictures are resized in the mode in which they were
decoded (palettes by the nearest pixel), then become RGB without their alpha; 16-bit grey has been
scaled to 8 by `cmcr.extract.media.images`. `benchmarks/parity_clip.py` compares the numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, UsageError, near
from cmcr.extract.encoders.hub import explained, find_weights, weights_cached
from cmcr.extract.encoders.models.clip_weights import fill, untrained
from cmcr.extract.encoders.registry import EncoderSpec
from cmcr.extract.items import Decoded
from cmcr.files import sha256_file
from cmcr.typed import typed
from cmcr.weights import is_torchscript

DEFAULT = "ViT-B-32/openai"
DEFAULT_REPOSITORY = "timm/vit_base_patch32_clip_224.openai"
SAFETENSORS, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
SMALLEST_VOCABULARY = 10_000  # entries; transformers may give a handful where files are missing


@dataclass(frozen=True)
class Variant:
    """A model of open_clip and the tag of its weights; no tag: weights that open_clip knows not."""

    model: str
    tag: str | None

    def __str__(self) -> str:
        return self.model if self.tag is None else f"{self.model}/{self.tag}"

    @property
    def config(self) -> Mapping[str, Any]:
        """What open_clip knows of the tag: where it lies, mean, std, interpolation, quick-GELU."""
        from open_clip import get_pretrained_cfg

        return dict(get_pretrained_cfg(self.model, self.tag)) if self.tag else {}


def parse_variant(text: str, *, untagged: bool) -> Variant:
    """MODEL/PRETRAINED, or MODEL alone where `untagged`. Raises UsageError with near matches."""
    import open_clip

    model, _, tag = text.partition("/")
    models = open_clip.list_models()
    if model not in models:
        raise UsageError(
            f"open_clip has no model {model!r}",
            where=f"--encoder clip:{text}",
            fix=f"write clip:MODEL/PRETRAINED; {near(model, models)}",
        )
    if not tag and untagged:
        return Variant(model, None)
    if not open_clip.is_pretrained_cfg(model, tag):
        known = [f"clip:{model}/{tag}" for tag in open_clip.list_pretrained_tags_by_model(model)]
        raise UsageError(
            f"open_clip has no weights {tag!r} for {model}" if tag else f"{model} needs a tag",
            where=f"--encoder clip:{text}",
            fix=near(f"clip:{model}/{tag}", known)
            if known
            else f"give weights to --checkpoint and write clip:{model}",
        )
    return Variant(model, tag.lower().replace("-", "_"))  # as open_clip looks it up


def published(variant: Variant) -> tuple[str, tuple[str, ...]]:
    """The hub repository of a variant's weights and the names they may have there, best first."""
    repo, _, filename = variant.config["hf_hub"].rpartition("/")
    if not filename:
        return repo, (SAFETENSORS, PICKLED)
    return repo, (f"{Path(filename).stem}.safetensors", filename)


def find_checkpoint(variant: Variant) -> Path:
    """The weights of `variant`, fetched if need be. Raises EncoderError when there are none."""
    repo, names = published(variant)
    missing: EncoderError | None = None
    for name in sorted(names, key=lambda name: not weights_cached(repo, name)):
        try:
            return find_weights(repo, name)
        except EncoderError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def load_model(variant: Variant, checkpoint: Path) -> Any:
    """open_clip's model with the weights in `checkpoint`, on the CPU, in evaluation mode.

    Raises EncoderError for a file that is not there or holds other than its weights.
    """
    if not checkpoint.is_file():
        raise EncoderError(
            "there is no such checkpoint", where=checkpoint, fix="give --checkpoint a file"
        )
    if is_torchscript(checkpoint):
        raise EncoderError(
            "this is OpenAI's own archive: a TorchScript program, not only weights",
            where=checkpoint,
            fix=f"take the same weights as {SAFETENSORS} from https://huggingface.co/"
            f"{published(variant)[0] if variant.tag else DEFAULT_REPOSITORY}, or convert it once: "
            f"python -c \"import torch; s = torch.jit.load('{checkpoint.name}', 'cpu')"
            ".state_dict(); [s.pop(k, 0) for k in ('input_resolution', 'context_length', "
            "'vocab_size')]; torch.save(s, 'clip.pt')\" and give clip.pt to --checkpoint",
        )
    with explained(checkpoint):
        model = untrained(
            variant.model,
            force_quick_gelu=variant.config.get("quick_gelu", False),
            force_preprocess_cfg=variant.config,
        )
        fill(model, checkpoint)
    return model.eval()


@lru_cache
def tokenizer_of(model: str) -> Any:
    """open_clip's tokenizer of a model, made once in each process.

    Raises EncoderError when it comes from a hub and is not on this machine.
    """
    import open_clip

    name = open_clip.get_model_config(model)["text_cfg"].get("hf_tokenizer_name")
    if name is None:
        return open_clip.get_tokenizer(model)
    try:
        tokenizer = open_clip.get_tokenizer(model)
        entries = len(tokenizer.tokenizer)
        reason = f"it has {entries} entries"
    except Exception as error:  # transformers' and the hub's errors share no other class
        entries, reason = 0, type(error).__name__
    if entries < SMALLEST_VOCABULARY:
        raise EncoderError(
            f"the tokenizer of {model} is not on this machine and could not be fetched ({reason})",
            where=f"published as https://huggingface.co/{name}",
            fix=f"run once with network, or bring that repository into the cache: hf download "
            f"{name}",
        )
    return tokenizer


@dataclass(frozen=True)
class Preprocess:
    """`ClipEncoder.preprocess`, apart from the weights. `transform` is open_clip's for images."""

    model: str
    transform: Any

    def __call__(self, modality: Modality, item: Decoded) -> Tensor:
        """An image to (3, height, width), text to (context length + 1,): see `tokenise`."""
        if modality == "image":
            pixels: Tensor = self.transform(item)  # (3, height, width)
            return pixels
        if modality == "text":
            assert isinstance(item, str)
            return tokenise(tokenizer_of(self.model), item)
        raise _unknown(modality)


@typed
def tokenise(tokenizer: Any, text: str) -> Int64[Tensor, "ids_and_flag"]:
    """The ids that open_clip makes of `text`, then 1 if it had to cut the text, else 0.

    One call with room for one more id is enough for a text that ends in padding there.
    """
    length = tokenizer.context_length
    roomy = tokenizer([text], length + 1)[0]  # (length + 1,)
    if roomy[-1] == roomy[-2]:
        return torch.cat([roomy[:-1], roomy.new_zeros(1)])  # (length + 1,)
    ids = tokenizer([text], length)[0]  # (length,)
    cut = not torch.equal(ids, roomy[:-1])
    return torch.cat([ids, ids.new_full((1,), cut)])  # (length + 1,)


def _unknown(modality: str) -> UsageError:
    return UsageError(f"clip does not embed {modality}", fix="it embeds image and text")


class ClipEncoder:
    """A CLIP of open_clip on `device`, with the weights in `checkpoint`."""

    name = "clip"
    modalities: frozenset[Modality] = frozenset(["image", "text"])
    worker_imports = ("open_clip",)

    def __init__(self, variant: Variant, checkpoint: Path, device: str) -> None:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model = load_model(variant, checkpoint)
        self.variant = variant
        self.checkpoint_sha256 = sha256_file(checkpoint)
        self.dim: int = open_clip.get_model_config(variant.model)["embed_dim"]
        self.context_length: int = tokenizer_of(variant.model).context_length
        self.pictures: Mapping[str, Any] = model.visual.preprocess_cfg
        self.quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.modules())
        transform = image_transform_v2(PreprocessCfg(**self.pictures), is_train=False)
        self.preprocess = Preprocess(variant.model, transform)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        # A causal text tower sees nothing behind the end of the text.
        self.causal = (
            isinstance(model, open_clip.CLIP)
            and model.attn_mask is not None
            and model.text_pool_type == "argmax"
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """Variant, checkpoint, preprocessing with its parameters, and library versions."""
        libraries = ("ftfy", "open_clip_torch", "pillow", "torch", "torchvision")
        return {
            "encoder": f"{self.name}:{self.variant}",
            "checkpoint_sha256": self.checkpoint_sha256,
            "quick_gelu": self.quick_gelu,
            "preprocessing": {
                "version": 1,
                "image": dict(self.pictures),
                "text": {"tokenizer": self.variant.model, "context_length": self.context_length},
            },
            "libraries": {library: version(library) for library in libraries},
        }

    def count_truncated(self, batch: Int64[Tensor, "batch ids_and_flag"]) -> int:
        """How many texts of a preprocessed batch were longer than the context."""
        return int(batch[:, -1].sum())

    @torch.inference_mode()
    def encode(self, modality: Modality, batch: Tensor) -> Float[Tensor, "batch dim"]:
        """Preprocessed pictures or texts to unit float32 vectors (B, dim)."""
        batch = batch.to(self.device, non_blocking=True)
        if modality == "image":
            features = self.model.encode_image(batch)  # (B, dim)
        elif modality == "text":
            features = self.text_features(batch[:, :-1])  # (B, dim)
        else:
            raise _unknown(modality)
        return unit(features)

    @typed
    def text_features(self, ids: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """open_clip's text features, computed as far as the longest text of the batch reaches."""
        if not self.causal:
            features: Tensor = self.model.encode_text(ids)  # (B, dim)
            return features
        longest = int(ids.argmax(dim=-1).max()) + 1  # the end token has the highest id
        short = {
            "positional_embedding": self.model.positional_embedding[:longest],
            "attn_mask": self.model.attn_mask[:longest, :longest],
        }
        texts = {"text": ids[:, :longest]}
        outputs = torch.func.functional_call(self.model, short, kwargs=texts)
        unit_features: Tensor = outputs[1]  # (B, dim); outputs[0] is for images
        return unit_features


@typed
def unit(features: Float[Tensor, "batch dim"]) -> Float32[Tensor, "batch dim"]:
    """Rows of length one, in float32 whatever the features were computed in."""
    return F.normalize(features.float(), dim=-1)


def load_clip(*, variant: str | None, checkpoint: Path | None, device: str) -> ClipEncoder:
    """The CLIP that `variant` names, by default ViT-B-32/openai, with its weights on `device`.

    Raises UsageError for an unknown variant, EncoderError when weights or tokenizer are missing.
    """
    chosen = parse_variant(variant or DEFAULT, untagged=checkpoint is not None)
    tokenizer_of(chosen.model)
    return ClipEncoder(chosen, checkpoint or find_checkpoint(chosen), device)


CLIP = EncoderSpec(
    load=load_clip,
    modalities=("image", "text"),
    dim=512,
    licence="MIT",
    weights_present=lambda: any(
        weights_cached(DEFAULT_REPOSITORY, name) for name in (SAFETENSORS, PICKLED)
    ),
    tokenizer="CLIP's, comes with open_clip; some variants have one of the hub's",
)
