"""hf: any dual encoder of transformers, from the hub or a folder, with its own processor.

    cmcr extract --encoder hf:google/siglip2-base-patch16-224 --source image=FOLDER
    cmcr extract --encoder hf:laion/larger_clap_general --source audio=FOLDER
    cmcr extract --encoder hf:./my-model --source text=CAPTIONS.txt
    cmcr extract --encoder hf:OWNER/NAME --checkpoint ./copy --source image=FOLDER

A dual encoder is a model class with `get_text_features` and `get_image_features` or
`get_audio_features` that gives one vector an input: CLIP, SigLIP, SigLIP 2, CLAP, AltCLIP,
Chinese-CLIP and their like. Weights are read from safetensors and computed in float32; pickles and
the code of a repository are never run.

The numbers are those of calling transformers with the processor, but for what it leaves to chance:

- texts are padded and cut to what the model reads; padding is left out of the computation where
  the model shows that it does not count, and SigLIP's, which counts, is always there;
- CLAP's extractor crops long clips at random: the seed is a hash of the samples, as in `clap`;
- CLAP's extractor calls one clip of a batch long, at random, if none is: here none is.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Num
from torch import Tensor
from torch.nn import functional as F

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, UsageError
from cmcr.extract.encoders.hf.files import (
    config_sha256,
    find_folder,
    first_line,
    quiet,
    read_json,
    tokenizer_sha256,
    weight_files,
    weights_sha256,
)
from cmcr.extract.encoders.hf.inputs import (
    EXAMPLES,
    MEDIA,
    Preprocess,
    context_of,
    fixed_parts,
    media_of,
    parameters,
    processor_of,
    tools_of,
    unpacked,
    vocabulary_of,
)
from cmcr.extract.encoders.registry import EncoderSpec
from cmcr.typed import typed

SAMENESS = 1e-4  # of a value of two unit vectors that ought to be one
LIBRARIES = ("numpy", "pillow", "soxr", "tokenizers", "torch", "torchvision", "transformers")


class HfEncoder:
    """The dual encoder in `folder`, on `device`. `place` says where the folder came from.

    Raises EncoderError for a model that is none, and for files that are missing or do not fit.
    """

    name = "hf"
    trims_padding = False  # until it has been tried

    def __init__(self, place: str, folder: Path, device: str) -> None:
        config = read_config(folder)
        model_class = dual_encoder_class(config, folder)
        weight_files(folder)
        processor = processor_of(str(folder))
        self.place, self.folder = place, folder
        self.modalities: frozenset[Modality] = frozenset(
            [*media_of(model_class, processor, folder), "text"]
        )
        vocabulary = vocabulary_of(processor.tokenizer, config, folder)
        self.device = torch.device(device)
        self.model = load_model(model_class, config, folder).to(self.device)
        context = context_of(processor, config, self.model)
        bare = Preprocess(str(folder), context, vocabulary)
        parts = {modality: fixed_parts(bare, modality) for modality in sorted(self.modalities)}
        self.preprocess = Preprocess(str(folder), context, vocabulary, tuple(parts.items()))
        tools = (processor, *tools_of(processor).values())
        self.worker_imports = tuple(dict.fromkeys(type(tool).__module__ for tool in tools))
        self.checkpoint_sha256 = weights_sha256(folder)
        self.dim = dimensions(self)
        self.trims_padding = padding_is_idle(self)

    def fingerprint(self) -> Mapping[str, Any]:
        """Model class, configuration, checkpoint, preprocessing with its parameters, libraries.

        Nothing but `where`, which is not compared, depends on whether the model came from a hub.
        """
        processor = processor_of(self.preprocess.folder)
        tools = tools_of(processor)
        tokenizer = tools.pop("tokenizer")
        return {
            "encoder": f"{self.name}:{type(self.model).__name__}",
            "where": self.place,
            "checkpoint_sha256": self.checkpoint_sha256,
            "config_sha256": config_sha256(self.folder),
            "preprocessing": {
                "version": 1,
                "processor": type(processor).__name__,
                "shapes": {
                    modality: {part.name: list(part.shape) for part in parts}
                    for modality, parts in self.preprocess.parts
                },
                **{name: parameters(tool) for name, tool in tools.items()},
                "tokenizer": {
                    "class": type(tokenizer).__name__,
                    "sha256": tokenizer_sha256(self.folder, tokenizer.vocab_files_names),
                    "context": self.preprocess.context,
                    "pad": tokenizer.pad_token_id,
                    "padding_side": tokenizer.padding_side,
                },
            },
            "libraries": {library: version(library) for library in LIBRARIES},
        }

    @torch.inference_mode()
    @typed
    def encode(self, modality: Modality, batch: Tensor) -> Float32[Tensor, "batch dim"]:
        """A stack of preprocessed inputs to unit vectors (batch, dim)."""
        return F.normalize(self.features(modality, batch).float(), dim=-1)

    @torch.inference_mode()
    def features(self, modality: Modality, batch: Tensor) -> Tensor:
        """What the model's own method gives for rows of `Preprocess`: (batch, dim)."""
        rows = batch.to(self.device, non_blocking=True)
        inputs = unpacked(rows, dict(self.preprocess.parts)[modality])
        if modality == "text" and self.trims_padding:
            longest = int(inputs["attention_mask"].any(dim=0).nonzero().max()) + 1
            inputs = {name: value[:, :longest] for name, value in inputs.items()}
        output = getattr(self.model, f"get_{modality}_features")(**inputs)
        features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return features

    @typed
    def count_truncated(self, batch: Num[Tensor, "batch row"]) -> int:
        """How many texts of a preprocessed batch are longer than the model reads."""
        return int(batch[:, -1].sum())


def dimensions(encoder: HfEncoder) -> int:
    """How many dimensions the space has, found by embedding an example of each modality.

    Raises EncoderError when the model cannot take what the processor makes, or gives anything but
    one vector of one length.
    """
    shapes = {}
    for modality in sorted(encoder.modalities):
        example = encoder.preprocess(modality, EXAMPLES[modality]()[0])[None]  # (1, row)
        try:
            shapes[modality] = tuple(encoder.features(modality, example).shape)
        except Exception as error:  # whatever the model stumbles over
            raise EncoderError(
                f"the model cannot take the {modality} that its processor makes: "
                f"{first_line(error)}",
                where=encoder.folder,
                fix="bring the processor of this very model, as its publisher saved it",
            ) from error
    dims = {shape[1] for shape in shapes.values() if len(shape) == 2}
    if len(dims) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise EncoderError(
            f"this is no dual encoder: one input of each modality becomes {shapes}, not one vector "
            "of one length",
            where=encoder.folder,
            fix="take a model such as CLIP, SigLIP or CLAP",
        )
    return dims.pop()


def padding_is_idle(encoder: HfEncoder) -> bool:
    """Whether a text has the same embedding without its padding, found by trying.

    SigLIP was trained on padded texts and reads what stands last; others mask their padding.
    """
    if "attention_mask" not in {part.name for part in dict(encoder.preprocess.parts)["text"]}:
        return False
    example = encoder.preprocess("text", "a")[None]  # (1, row)
    padded = encoder.encode("text", example)
    encoder.trims_padding = True
    trimmed = encoder.encode("text", example)
    return bool((trimmed - padded).abs().max() < SAMENESS)


def read_config(folder: Path) -> Any:
    """The configuration in `folder`. Raises EncoderError for what transformers does not know."""
    from transformers import AutoConfig

    kind = read_json(folder / "config.json").get("model_type")
    try:
        with quiet():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever transformers stumbles over
        raise EncoderError(
            f"transformers {version('transformers')} does not know the model type {kind!r}, and "
            "the code of a repository is never run",
            where=folder / "config.json",
            fix="take a model that transformers itself has: CLIP, SigLIP, CLAP, AltCLIP, ...",
        ) from error


def dual_encoder_class(config: Any, folder: Path) -> Any:
    """The class of the model. Raises EncoderError for one that is no dual encoder."""
    from transformers import MODEL_MAPPING

    known = MODEL_MAPPING.get(type(config), None)
    classes = known if isinstance(known, list | tuple) else [known]
    for found in classes:
        media = [one for one in MEDIA if hasattr(found, f"get_{one}_features")]
        if media and hasattr(found, "get_text_features"):
            return found
    named = getattr(classes[0], "__name__", config.model_type)
    raise EncoderError(
        f"{named} is no dual encoder: it lacks get_text_features beside get_image_features or "
        "get_audio_features",
        where=folder,
        fix="take a model such as CLIP, SigLIP or CLAP; embeddings made elsewhere come in by "
        "`cmcr import`",
    )


def load_model(model_class: Any, config: Any, folder: Path) -> Any:
    """The model in float32, on the CPU. Raises EncoderError for weights that do not fit."""
    try:
        with quiet():
            model, said = model_class.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers stumbles over
        raise _wrong_weights(first_line(error), folder) from error
    for fault, how in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        if names := sorted(map(str, said[fault])):
            raise _wrong_weights(f"{len(names)} tensors are {how}, such as {names[0]}", folder)
    return model.float().eval()


def _wrong_weights(why: str, folder: Path) -> EncoderError:
    return EncoderError(
        f"the weights do not fit the model: {why}",
        where=", ".join(str(file) for file in weight_files(folder)[:2]),
        fix="bring config.json and the safetensors of one model, whole",
    )


def load_hf(*, variant: str | None, checkpoint: Path | None, device: str) -> HfEncoder:
    """The dual encoder that `variant` names; `checkpoint` is a folder to read it from instead.

    Raises UsageError for what names no model, EncoderError for files that cannot be had or used.
    """
    if variant is None:
        raise UsageError(
            "hf needs the name of a model",
            where="--encoder hf",
            fix="write hf:OWNER/NAME or hf:./FOLDER",
        )
    if checkpoint is not None and not checkpoint.is_dir():
        raise UsageError(
            "hf takes a folder as --checkpoint: configuration, processor and safetensors",
            where=checkpoint,
            fix=f"give a folder that save_pretrained wrote, or --encoder hf:{variant} alone",
        )
    folder = checkpoint or find_folder(variant)
    local = checkpoint is not None or Path(variant).expanduser().is_dir()
    return HfEncoder(str(folder.absolute()) if local else variant, folder, device)


HF = EncoderSpec(
    load=load_hf,
    modalities=("image", "audio", "text"),
    dim=None,
    licence="the model's",
    weights_present=None,
)
