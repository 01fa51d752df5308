"""Pretrain the digits encoders from scratch on the CPU, all of them or those that are named.

    python -m cmcr.extract.digits.pretrain --fsdd free-spoken-digit-dataset/recordings
    python -m cmcr.extract.digits.pretrain --out /tmp/weights        synthetic speech only
    python -m cmcr.extract.digits.pretrain digits-ulip               the others stay as they are

digits-clip sees handwriting with phrases that fit pictures, digits-clap sees speech with phrases
that fit recordings, and both see phrases that fit either. digits-ulip sees shapes with handwriting
and no text. Each is trained from its own seed, and only its own inputs are seen. Prints how often
held-out inputs are nearest to their own digit.

The loss is CLIP's (arXiv 2103.00020) with every partner of the same digit counted as a match
(SupCon, arXiv 2004.11362). The same seed and number of threads give the same weights.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits import augment
from cmcr.extract.digits.preprocess import centred, log_mel, spoken
from cmcr.extract.digits.towers import DATA, ENCODERS, untrained
from cmcr.extract.digits.world import handwriting, shapes, speech
from cmcr.extract.digits.world.handwriting import Split
from cmcr.extract.digits.world.phrases import Kind, phrases
from cmcr.typed import typed

TEMPERATURE = 0.1
BATCH = 128

Pairs = Callable[[Tensor], Mapping[Modality, Tensor]]  # rows (B,) to a batch of each modality


@typed
def contrastive(
    one: Float[Tensor, "batch dim"],
    other: Float[Tensor, "batch dim"],
    digits: Int[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """InfoNCE both ways, the target spread evenly over the rows of the same digit."""
    logits = one @ other.T / TEMPERATURE  # (B, B)
    same = (digits[:, None] == digits).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pretrain(name: str, digits: Tensor, pairs: Pairs, epochs: int, seed: int) -> nn.ModuleDict:
    """Train the towers of one encoder on inputs of `digits` (N,), in new pairs every time."""
    torch.manual_seed(seed)
    towers = untrained(name)
    steps = len(digits) // BATCH  # of an epoch: what is left over waits for the next one
    optimizer = torch.optim.AdamW(towers.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(digits))[: steps * BATCH].view(steps, BATCH):
            inputs = pairs(rows)
            one, other = (towers[each](inputs[each]) for each in ENCODERS[name])  # (B, 64)
            loss = contrastive(one, other, digits[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"{name} epoch {epoch + 1:2d}/{epochs} loss {total:.3f}", flush=True)
    return towers.eval()


def captioned(
    name: str,
    inputs: Tensor,
    digits: Tensor,
    augmented: Callable[[Tensor], Tensor],
    kinds: Sequence[Kind],
    seed: int,
) -> Pairs:
    """Inputs (N, ...) of `digits` (N,), each with a caption that fits it."""
    rng = random.Random(seed)
    media = next(modality for modality in ENCODERS[name] if modality != "text")
    read = ENCODERS[name]["text"].preprocess
    captions: list[list[str]] = [[] for _ in range(10)]
    for phrase in phrases(*kinds):
        captions[phrase.digit].append(phrase.text)

    def pairs(rows: Tensor) -> dict[Modality, Tensor]:
        said = [augment.caption(rng.choice(captions[digit]), rng) for digit in digits[rows]]
        return {
            media: augmented(inputs[rows]),
            "text": torch.stack([read(caption) for caption in said]),
        }

    return pairs


@torch.inference_mode()
def zero_shot(
    name: str, towers: nn.ModuleDict, media: Tensor, digits: Tensor, kinds: Sequence[Kind]
) -> float:
    """Share of `media` (N, ...) nearest to the mean phrase of their own digit."""
    modality = next(other for other in towers if other != "text")
    asked = phrases(*kinds)
    prompts = torch.stack([ENCODERS[name]["text"].preprocess(phrase.text) for phrase in asked])
    classes = torch.zeros(10, 64).index_add(
        0, torch.tensor([phrase.digit for phrase in asked]), towers["text"](prompts)
    )  # (10, 64)
    nearest = (towers[modality](media) @ F.normalize(classes, dim=1).T).argmax(1)
    return float((nearest == digits).float().mean())


def pictures(split: Split) -> tuple[Tensor, Tensor]:
    """Ink (N, 1, 8, 8) and digits (N,)."""
    from PIL import Image

    found = handwriting.pictures(split)
    ink = ENCODERS["digits-clip"]["image"].preprocess
    cells = [ink(Image.fromarray(picture.pixels)) for picture in found]
    return torch.stack(cells), torch.tensor([picture.digit for picture in found])


def windows(clips: Sequence[speech.Clip]) -> tuple[Tensor, Tensor]:
    """One second of sound (N, 8000) and digits (N,)."""
    sounds = torch.stack([centred(spoken(clip.waveform())) for clip in clips])
    return sounds, torch.tensor([clip.digit for clip in clips])


def pretrain_clip(seed: int) -> nn.ModuleDict:
    """digits-clip, on handwriting."""
    kinds: tuple[Kind, ...] = ("picture", "either")
    ink, digits = pictures("train")
    pairs = captioned("digits-clip", ink, digits, augment.ink, kinds, seed)
    towers = pretrain("digits-clip", digits, pairs, epochs=45, seed=seed)
    accuracy = zero_shot("digits-clip", towers, *pictures("test"), kinds)
    print(f"digits-clip zero-shot: {accuracy:.4f} of the held-out handwriting")
    return towers


def pretrain_clap(seed: int, fsdd: Path | None) -> nn.ModuleDict:
    """digits-clap, on the shipped synthetic speech and, if given, on FSDD's."""
    kinds: tuple[Kind, ...] = ("recording", "either")
    human = {split: speech.fsdd(fsdd, split) if fsdd else [] for split in ("train", "test")}
    sounds, digits = windows(speech.clips("train") + human["train"])
    pairs = captioned(
        "digits-clap",
        sounds,
        digits,
        lambda windows: augment.mels(log_mel(augment.sounds(windows))),
        kinds,
        seed,
    )
    towers = pretrain("digits-clap", digits, pairs, epochs=20 if fsdd else 40, seed=seed)
    for heard, clips in (("synthetic voices", speech.clips("test")), ("FSDD", human["test"])):
        if clips:
            sounds, digits = windows(clips)
            accuracy = zero_shot("digits-clap", towers, log_mel(sounds), digits, kinds)
            print(f"digits-clap zero-shot: {accuracy:.4f} of the held-out {heard}")
    return towers


def pretrain_ulip(seed: int) -> nn.ModuleDict:
    """digits-ulip, on handwriting and shapes of it, cut and turned anew in every step."""
    rng = np.random.default_rng(seed)
    ink, digits = pictures("train")
    read = ENCODERS["digits-ulip"]["pointcloud"].preprocess

    def pairs(rows: Tensor) -> dict[Modality, Tensor]:
        solids = augment.ink(ink[rows])[:, 0].numpy()  # (B, 8, 8)
        clouds = [shapes.turned(shapes.extruded(solid, rng), rng) for solid in solids]
        return {
            "pointcloud": torch.stack([read(cloud) for cloud in clouds]),
            "image": augment.ink(ink[rows]),
        }

    towers = pretrain("digits-ulip", digits, pairs, epochs=90, seed=seed)
    found = shapes.shapes("test")
    clouds = torch.stack([read(shape.points) for shape in found])
    ink, digits = pictures("test")
    with torch.inference_mode():
        nearest = (towers["pointcloud"](clouds) @ towers["image"](ink).T).argmax(1)  # (400,)
    right = float((digits[nearest] == digits).float().mean())
    print(f"digits-ulip: {right:.4f} of the held-out shapes are nearest to a picture of theirs")
    return towers


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description="Pretrain the digits encoders.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENCODERS)}")
    parser.add_argument("--fsdd", type=Path, help="the `recordings` folder of FSDD")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    recipes: dict[str, Callable[[], nn.ModuleDict]] = {
        "digits-clip": lambda: pretrain_clip(arguments.seed),
        "digits-clap": lambda: pretrain_clap(arguments.seed + 1, arguments.fsdd),
        "digits-ulip": lambda: pretrain_ulip(arguments.seed + 2),
    }
    if unknown := set(arguments.names) - set(recipes):
        parser.error(f"there is no encoder {', '.join(sorted(unknown))} here")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or recipes:
        towers = recipes[name]()
        file = arguments.out / f"{name}.safetensors"
        file.write_bytes(save(towers.state_dict(), metadata={"encoder": name}))
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    print(f"{time.perf_counter() - start:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
