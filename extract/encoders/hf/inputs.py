"""What the processor of a model of transformers makes of an input, as one row a worker can send.

    processor_of(folder)                          # tokenizer with image processor or extractor
    Preprocess(folder, context, vocabulary, parts)("text", "a dog")     # (row,)
    unpacked(rows, parts)                         # name → (batch, ...), as the model takes them

A processor makes several tensors of an input (ids and mask, patches and their number, a spectrogram
and whether the clip was longer), and a batch is a stack of equal tensors: they lie one behind the
other in the row, and where is found out once by trying it on examples.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract.encoders.hf.files import first_line, quiet
from cmcr.extract.encoders.models import clap_audio
from cmcr.extract.items import Decoded, Waveform

MEDIA: tuple[Modality, ...] = ("audio", "image")
SMALLEST_SHARE = 0.9  # of the model's vocabulary that its tokenizer must have
_PATHS = frozenset(["name_or_path", "_name_or_path", "processor_class", "_processor_class"])


class Part(NamedTuple):
    """One tensor among what the processor makes of an input, without the batch's axis."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Preprocess:
    """`HfEncoder.preprocess`, apart from the weights: each process reads the processor itself."""

    folder: str
    context: int  # tokens of a text
    vocabulary: int
    parts: tuple[tuple[Modality, Parts], ...] = ()

    def __call__(self, modality: Modality, item: Decoded) -> Tensor:
        """What the processor makes of one input, its parts one behind the other: (row,).

        A text has one more number, 1 where it was cut. Raises SourceError for an input that does
        not fit the model, UsageError for another modality.
        """
        made, parts = self.inputs(modality, item), dict(self.parts).get(modality, ())
        if parts_of(made) != parts:
            raise SourceError(f"the processor makes another shape of it: {_shapes(parts_of(made))}")
        floating = any(part.dtype.is_floating_point for part in parts)
        numbers = [made[part.name].flatten() for part in parts]
        if modality == "text":
            numbers.append(torch.tensor([self.is_cut(item, made)]))
        return torch.cat([one.to(torch.float32 if floating else torch.int64) for one in numbers])

    def inputs(self, modality: Modality, item: Decoded) -> dict[str, Tensor]:
        """What the model's method for `modality` takes, name → (1, ...)."""
        processor = processor_of(self.folder)
        if modality == "text" and isinstance(item, str):
            made = processor(
                text=[item],
                padding="max_length",
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
            if (highest := int(made["input_ids"].max())) >= self.vocabulary:
                raise SourceError(
                    f"the text has the token {highest:,}, the model knows {self.vocabulary:,}"
                )
        elif modality == "audio" and isinstance(item, Waveform):
            made = _audio_inputs(processor.feature_extractor, item)
        elif modality == "image" and not isinstance(item, str | Waveform | np.ndarray):
            made = processor(images=item.convert("RGB"), return_tensors="pt")
        else:
            raise UsageError(f"this model does not embed {modality}", fix="see `cmcr encoders`")
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def is_cut(self, text: Any, made: Mapping[str, Tensor]) -> bool:
        """Whether `text`, of which `made` was made, is longer than the model reads."""
        tokenizer = processor_of(self.folder).tokenizer
        mask = made.get("attention_mask", made["input_ids"] != tokenizer.pad_token_id)
        if int(mask.sum()) < self.context - 1:  # the closing token may be the padding one
            return False
        return len(tokenizer(text, verbose=False)["input_ids"]) > self.context


def _audio_inputs(extractor: Any, waveform: Waveform) -> dict[str, Any]:
    rate = extractor.sampling_rate
    samples = clap_audio.resampled(waveform, rate)  # (frames,)
    with _random_from(waveform):
        made = dict(extractor(samples, sampling_rate=rate, return_tensors="pt"))
    if "is_longer" in made:
        frames, most = len(samples) // extractor.hop_length, extractor.nb_max_samples
        made["is_longer"] = torch.tensor([[frames > most // extractor.hop_length]])
    return made


@contextmanager
def _random_from(waveform: Waveform) -> Iterator[None]:
    """NumPy's own random numbers, which extractors draw from, decided by the samples."""
    before = np.random.get_state()
    np.random.set_state(clap_audio.generator(waveform).get_state())
    try:
        yield
    finally:
        np.random.set_state(before)


def parts_of(made: Mapping[str, Tensor]) -> Parts:
    """Names, shapes and kinds of what the processor made of one input, by name."""
    return tuple(Part(name, tuple(made[name].shape[1:]), made[name].dtype) for name in sorted(made))


def _shapes(parts: Parts) -> str:
    return ", ".join(f"{part.name} {'x'.join(map(str, part.shape)) or '1'}" for part in parts)


def unpacked(rows: Tensor, parts: Parts) -> dict[str, Tensor]:
    """Rows of `Preprocess` (batch, row) as the model takes them: name → (batch, ...)."""
    sizes = [math.prod(part.shape) for part in parts]
    columns = torch.split(rows[:, : sum(sizes)], sizes, dim=1)
    return {
        part.name: column.reshape(-1, *part.shape).to(part.dtype)
        for part, column in zip(parts, columns, strict=True)
    }


@lru_cache(maxsize=2)
def processor_of(folder: str) -> Any:
    """The processor in `folder`, made once in each process. Raises EncoderError."""
    from transformers import AutoProcessor

    loader: Any = AutoProcessor  # without types
    try:
        with quiet():
            return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise EncoderError(
            f"the model's processor needs a package that is not installed: {first_line(error)}",
            where=folder,
            fix="pip install that package beside cmcr",
        ) from error
    except Exception as error:  # whatever transformers stumbles over
        raise EncoderError(
            f"the model's processor (tokenizer, image processor or feature extractor) cannot be "
            f"made: {first_line(error)}",
            where=folder,
            fix="bring preprocessor_config.json and the tokenizer's files beside the weights: "
            "processor.save_pretrained(FOLDER), or `hf download OWNER/NAME`",
        ) from error


def tools_of(processor: Any) -> dict[str, Any]:
    """Tokenizer, image processor and feature extractor of a processor, those that it has."""
    names = ("feature_extractor", "image_processor", "tokenizer")
    return {name: part for name in names if (part := getattr(processor, name, None)) is not None}


def media_of(model_class: Any, processor: Any, folder: Path) -> list[Modality]:
    """The modalities beside text. Raises EncoderError where the processor lacks a part."""
    needs = {"audio": "feature_extractor", "image": "image_processor"}
    media = [one for one in MEDIA if hasattr(model_class, f"get_{one}_features")]
    lacking = {needs[one] for one in media} | {"tokenizer"}
    lacking -= tools_of(processor).keys()
    if lacking:
        raise EncoderError(
            f"the model's processor lacks its {' and its '.join(sorted(lacking))}".replace(
                "_", " "
            ),
            where=folder,
            fix="bring preprocessor_config.json and the tokenizer's files beside the weights: "
            "processor.save_pretrained(FOLDER), or `hf download OWNER/NAME`",
        )
    return media


def vocabulary_of(tokenizer: Any, config: Any, folder: Path) -> int:
    """How many tokens the model knows.

    Without its files transformers can give a tokenizer of a handful of tokens and no error. Raises
    EncoderError for that and for any that is too small for the model.
    """
    known = int(text_config(config).vocab_size)
    if len(tokenizer) < SMALLEST_SHARE * known:
        raise EncoderError(
            f"the model knows {known:,} tokens, its tokenizer has {len(tokenizer):,}: the files of "
            "the tokenizer are missing, damaged or another's",
            where=folder,
            fix="bring tokenizer.json, or the vocabulary that tokenizer_config.json names, beside "
            "the weights: tokenizer.save_pretrained(FOLDER), or `hf download OWNER/NAME`",
        )
    return known


def context_of(processor: Any, config: Any, model: nn.Module) -> int:
    """The most tokens of a text: the least of the processor's, the tokenizer's and the model's.

    RoBERTa and its kin begin to count positions behind that of the padding token.
    """
    most = int(processor.tokenizer.model_max_length)
    for set_to in (
        (getattr(processor, "text_kwargs", None) or {}).get("max_length"),
        getattr(text_config(config), "max_position_embeddings", None),
    ):
        most = min(most, set_to or most)
    for name, module in model.named_modules():
        first = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and "text" in name and first is not None:
            most = min(most, module.num_embeddings - first - 1)
    return most


def text_config(config: Any) -> Any:
    """What a configuration says about texts."""
    return getattr(config, "text_config", None) or config


def fixed_parts(preprocess: Preprocess, modality: Modality) -> Parts:
    """What the processor makes of any input. Raises EncoderError where it cannot, or it varies."""
    try:
        made = {parts_of(preprocess.inputs(modality, one)) for one in EXAMPLES[modality]()}
    except Exception as error:  # whatever the processor stumbles over
        raise EncoderError(
            f"the processor cannot take {modality}: {first_line(error)}",
            where=preprocess.folder,
            fix="bring the processor of this very model, as its publisher saved it",
        ) from error
    if len(made) > 1:
        raise EncoderError(
            f"the processor makes {modality} of different shapes of different inputs: "
            f"{'; '.join(sorted(map(_shapes, made)))}",
            where=preprocess.folder,
            fix="set its preprocessor_config.json to one size (resize and crop, or pad)",
        )
    return made.pop()


def _examples_of_audio() -> list[Decoded]:
    return [Waveform(np.full((1, frames), 0.1, np.float32), 16_000) for frames in (8_000, 32_000)]


def _examples_of_image() -> list[Decoded]:
    from PIL import Image

    return [Image.new("RGB", size, "gray") for size in ((60, 40), (40, 80))]


EXAMPLES: Mapping[Modality, Any] = {
    "audio": _examples_of_audio,
    "image": _examples_of_image,
    "text": lambda: ["a", "a dog in the snow"],
}


def parameters(part: Any) -> dict[str, Any]:
    """What an image processor or feature extractor was set to, without paths."""
    settings = json.loads(part.to_json_string())
    settings = {name: value for name, value in settings.items() if name not in _PATHS}
    return {"class": type(part).__name__, **settings}
