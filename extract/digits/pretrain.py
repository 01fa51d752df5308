"""Pretrain both digits encoders from scratch on the CPU.

    python -m cmcr.extract.digits.pretrain --fsdd free-spoken-digit-dataset/recordings
    python -m cmcr.extract.digits.pretrain --out /tmp/weights        synthetic speech only

digits-clip sees handwriting with phrases that fit pictures, digits-clap sees speech with phrases
that fit recordings, and both see phrases that fit either. They never see each other's inputs, and
each is trained from its own seed. Prints the zero-shot accuracy on the held-out parts.

The loss is CLIP's (arXiv 2103.00020) with every caption of the same digit counted as a match
(SupCon, arXiv 2004.11362). The same seed and number of threads give the same weights.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits import Split, augment, handwriting, speech
from cmcr.extract.digits.branches import DATA, ENCODERS, untrained
from cmcr.extract.digits.phrases import Kind, phrases
from cmcr.extract.digits.preprocess import centred, log_mel, spoken
from cmcr.typed import typed

TEMPERATURE = 0.1
BATCH = 128


@typed
def contrastive(
    media: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    digits: Int[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """InfoNCE both ways, the target spread evenly over the rows of the same digit."""
    logits = media @ text.T / TEMPERATURE  # (B, B)
    same = (digits[:, None] == digits).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pretrain(
    name: str,
    modality: Modality,
    inputs: Tensor,
    digits: Tensor,
    augmented: Callable[[Tensor], Tensor],
    kinds: Sequence[Kind],
    epochs: int,
    seed: int,
) -> nn.ModuleDict:
    """Train the towers of one encoder: `inputs` (N, ...) of `digits` (N,), with captions."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    towers = untrained(name)
    read = ENCODERS[name]["text"].preprocess
    captions: list[list[str]] = [[] for _ in range(10)]
    for phrase in phrases(*kinds):
        captions[phrase.digit].append(phrase.text)

    steps = len(inputs) // BATCH  # of an epoch: what is left over waits for the next one
    optimizer = torch.optim.AdamW(towers.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs))[: steps * BATCH].view(steps, BATCH):
            said = [augment.caption(rng.choice(captions[digit]), rng) for digit in digits[rows]]
            media = towers[modality](augmented(inputs[rows]))  # (B, 64)
            text = towers["text"](torch.stack([read(caption) for caption in said]))  # (B, 64)
            loss = contrastive(media, text, digits[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"{name} epoch {epoch + 1:2d}/{epochs} loss {total:.3f}", flush=True)
    return towers.eval()


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
    towers = pretrain(
        "digits-clip", "image", *pictures("train"), augment.ink, kinds, epochs=45, seed=seed
    )
    accuracy = zero_shot("digits-clip", towers, *pictures("test"), kinds)
    print(f"digits-clip zero-shot: {accuracy:.4f} of the held-out handwriting")
    return towers


def pretrain_clap(seed: int, fsdd: Path | None) -> nn.ModuleDict:
    """digits-clap, on the shipped synthetic speech and, if given, on FSDD's."""
    kinds: tuple[Kind, ...] = ("recording", "either")
    human = {split: speech.fsdd(fsdd, split) if fsdd else [] for split in ("train", "test")}
    towers = pretrain(
        "digits-clap",
        "audio",
        *windows(speech.clips("train") + human["train"]),
        lambda sounds: augment.mels(log_mel(augment.sounds(sounds))),
        kinds,
        epochs=20 if fsdd else 40,
        seed=seed,
    )
    for heard, clips in (("synthetic voices", speech.clips("test")), ("FSDD", human["test"])):
        if clips:
            sounds, digits = windows(clips)
            accuracy = zero_shot("digits-clap", towers, log_mel(sounds), digits, kinds)
            print(f"digits-clap zero-shot: {accuracy:.4f} of the held-out {heard}")
    return towers


def main() -> None:
    """Train, measure and write both."""
    parser = argparse.ArgumentParser(description="Pretrain the digits encoders.")
    parser.add_argument("--fsdd", type=Path, help="the `recordings` folder of FSDD")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    trained = {
        "digits-clip": pretrain_clip(arguments.seed),
        "digits-clap": pretrain_clap(arguments.seed + 1, arguments.fsdd),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, towers in trained.items():
        file = arguments.out / f"{name}.safetensors"
        file.write_bytes(save(towers.state_dict(), metadata={"encoder": name}))
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    print(f"{time.perf_counter() - start:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
