"""The encoder clip beside open_clip's own code, at the publisher's architectures.

    python benchmarks/parity_clip.py                                # ViT-B-32/openai
    python benchmarks/parity_clip.py PE-Core-T-16-384/meta MobileCLIP-S1/datacompdr
    python benchmarks/parity_clip.py --images FOLDER --texts CAPTIONS.tsv
    python benchmarks/parity_clip.py --checkpoint open_clip_model.safetensors

Without --checkpoint the weights are random from a seed, written in open_clip's layout. open_clip
finds them through its tag, in a Hugging Face cache laid out for the purpose, and reads files with
PIL; ours takes the same file as --checkpoint, and a source. Printed: the greatest difference of
a preprocessed value, the least and the mean cosine, the greatest difference of a value of the unit
vectors, and the mean cosine between different inputs, without which the rest says little. Exit
code 1 where a unit vector differs by more than 1e-6.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cmcr.extract import Item, Source, open_source
from cmcr.extract.encoders.clip import CLIP, Variant, parse_variant, published
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.media.decode import decode

BATCH = 32
TOLERANCE = 1e-6
WORDS = ["a", "photo", "of", "rain", "Zürich's", "日本語", "☃", "3.14", "&amp;", "engine-room!"]


def main() -> None:
    """Read the flags, run both, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=["ViT-B-32/openai"])
    parser.add_argument("--images", help="a folder or manifest of pictures")
    parser.add_argument("--texts", help="a text file or manifest of captions")
    parser.add_argument("--checkpoint", type=Path, help="weights of the one variant")
    parser.add_argument("--limit", type=int, default=128, help="inputs of each modality")
    options = parser.parse_args()
    print(f"{'variant':32} {'modality':8} {'inputs':>6} {'preprocess':>10} {'cosine min':>12}"
          f" {'mean':>12} {'difference':>10} {'others':>7}")  # fmt: skip
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        pictures = options.images or str(generated(Path(scratch) / "pictures"))
        sentences = options.texts or str(written(Path(scratch) / "texts.txt"))
        sources = [open_source("image", pictures), open_source("text", sentences)]
        for name in options.variants:
            variant = parse_variant(name, untagged=False)
            cache = Path(scratch) / name
            checkpoint = place(variant, options.checkpoint, cache)
            theirs = publisher(variant, cache)
            ours = CLIP.load(variant=name, checkpoint=checkpoint, device="cpu")
            for source in sources:
                worst = max(worst, compare(name, ours, theirs, source, options.limit))
    raise SystemExit(int(not worst <= TOLERANCE))


def place(variant: Variant, checkpoint: Path | None, cache: Path) -> Path:
    """Lay `checkpoint`, or random weights, into a cache as the tag's published file."""
    import open_clip

    repo, names = published(variant)
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("main")
    file = folder / "snapshots" / "main" / (checkpoint.name if checkpoint else names[0])
    file.parent.mkdir(parents=True)
    if checkpoint:
        file.symlink_to(checkpoint.absolute())
        return checkpoint
    torch.manual_seed(0)
    model = open_clip.create_model(variant.model, pretrained_text=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return file


def publisher(variant: Variant, cache: Path) -> tuple[Any, Any, Any]:
    """open_clip's model, transform and tokenizer, as its documentation has it."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(
        variant.model,
        pretrained=variant.tag,
        cache_dir=str(cache),
        force_quick_gelu=variant.config.get("quick_gelu", False),
    )
    return model.eval(), transform, open_clip.get_tokenizer(variant.model)


def compare(
    name: str, ours: Encoder, theirs: tuple[Any, Any, Any], source: Source, limit: int
) -> float:
    """Print a line about the first inputs of `source`; returns the greatest difference."""
    model, transform, tokenizer = theirs
    modality = source.modality
    pairs: list[tuple[Tensor, Tensor]] = []
    inputs_apart = 0.0
    for items in batches(source, limit):
        decoded = [ours.preprocess(modality, decode(modality, item)) for item in items]
        batch = torch.stack(decoded)  # (items, ...)
        if modality == "image":
            expected = torch.stack([transform(Image.open(item.uri)) for item in items])
            taken: Tensor = batch
        else:
            expected, taken = tokenizer([item.content for item in items]), batch[:, :-1]
        with torch.inference_mode():
            encode = model.encode_image if modality == "image" else model.encode_text
            wanted = encode(expected, normalize=True)  # (items, dim)
        given = ours.encode(modality, batch)  # (items, dim)
        inputs_apart = max(inputs_apart, float((taken - expected).abs().max()))
        pairs.append((given, wanted))
    given, wanted = (torch.cat(side).double() for side in zip(*pairs, strict=True))  # (inputs, dim)
    apart = float((given - wanted).abs().max())
    cosines = cosine_similarity(given, wanted)  # (inputs,)
    count = len(given)
    others = ((given @ given.T).sum() - given.square().sum()) / max(count * (count - 1), 1)
    print(f"{name:32} {modality:8} {count:6} {inputs_apart:10.1e} {cosines.min():12.9f}"
          f" {cosines.mean():12.9f} {apart:10.1e} {others:7.3f}")  # fmt: skip
    return apart


def batches(source: Source, limit: int) -> Iterator[Sequence[Item]]:
    """The first `limit` items of a source, BATCH at a time."""
    chosen = [item for item, _ in zip(source.items(), range(limit), strict=False)]
    for start in range(0, len(chosen), BATCH):
        yield chosen[start : start + BATCH]


def generated(folder: Path) -> Path:
    """Pictures of noise in many sizes and modes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, mode in enumerate(["RGB", "RGBA", "L", "LA", "CMYK", "P", "1", "YCbCr"] * 4):
        height, width = random.integers(3, 900, 2)
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
        kind = "jpg" if mode in ("CMYK", "YCbCr") else "png"
        image.save(folder / f"{number:02}-{mode}.{kind}")
    return folder


def written(file: Path) -> Path:
    """Texts of one to a hundred words."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(1, 100))) for _ in range(64)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
