"""clap beside laion_clap itself: the same files through both, at the real architecture.

    HF_HUB_OFFLINE=1 python benchmarks/parity_clap.py                  # made-up clips
    HF_HUB_OFFLINE=1 python benchmarks/parity_clap.py --folder esc10   # and 20 clips of a folder
    HF_HUB_OFFLINE=1 python benchmarks/parity_clap.py --checkpoint 630k-fusion-best.pt
    HF_HUB_OFFLINE=1 python benchmarks/parity_clap.py --variant music_audioset_epoch_15_esc_90.14

Theirs is `laion_clap.CLAP_Module.get_audio_embedding_from_filelist` and `get_text_embedding`. Only
what its constructor would download is replaced: RoBERTa is built from its configuration, and texts
are token numbers. Without --checkpoint the weights are random, seeded, and saved in the layout of
the published files. For clips longer than 10 s NumPy's global generator, from which laion_clap
draws its chunks, gets the seed that cmcr takes from the clip, and torchvision shrinks their
spectrogram as it did when the weights were trained, without antialiasing (`--antialias`: as it does
today).

Random weights leave much in common between all embeddings, so the cosine is also taken after the
mean of all clips is taken away (`centred`); `others` is the highest such cosine that a clip has
with another clip.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import soundfile
import torch

from cmcr.extract.encoders.clap import DEFAULT, VARIANTS, open_encoder, roberta
from cmcr.extract.encoders.models import clap_audio
from cmcr.extract.encoders.models.htsat import Architecture
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.items import Item, Waveform
from cmcr.extract.media.decode import decode

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
SHORT = (1.0, 5.0, 10.0)  # seconds
LONG = (10.004, 10.02, 12.0, 31.7)  # 10.004 s is longer than the window by less than one frame
PROMISED = 0.9999
MUSIC = "music_audioset_epoch_15_esc_90.14"


def main() -> None:
    """Print one line for each clip and leave with status 1 when one is below what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=tuple(VARIANTS), action="append")
    parser.add_argument("--checkpoint", type=Path, help="a published file, of --variant")
    parser.add_argument("--folder", type=Path, help="compare 20 of its audio files as well")
    parser.add_argument(
        "--antialias", action="store_true", help="theirs, as torchvision does today"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    lowest = 1.0
    with tempfile.TemporaryDirectory() as scratch, resize(antialias=arguments.antialias):
        clips = made_up(Path(scratch))
        if arguments.folder:
            found = sorted(p for p in arguments.folder.rglob("*.*") if p.suffix in (".ogg", ".wav"))
            clips += found[:: max(1, len(found) // 20)][:20]
        for variant in arguments.variant or (DEFAULT, "630k-best", MUSIC):
            checkpoint = arguments.checkpoint or Path(scratch, f"{variant}.pt")
            with quiet():
                theirs = publisher(VARIANTS[variant])
                if not arguments.checkpoint:
                    save_random(theirs.model, checkpoint)
                theirs.load_ckpt(str(checkpoint), verbose=False)
            ours = open_encoder(variant=variant, checkpoint=checkpoint, device="cpu")
            lowest = min(lowest, compare_audio(variant, theirs, ours, clips))
            lowest = min(lowest, compare_text(variant, theirs, ours))
    print(f"lowest cosine {lowest:.7f}, promised {PROMISED}")
    raise SystemExit(lowest < PROMISED)


def made_up(folder: Path) -> list[Path]:
    """Clips of every length at every rate, mono and stereo in turn, each with its own sound."""
    cases = [(length, rate) for length in SHORT for rate in RATES]
    cases += [(length, RATES[number % len(RATES)]) for number, length in enumerate(LONG)]
    cases += [(LONG[0], 48_000), (LONG[1], 48_000)]
    paths = []
    for number, (length, rate) in enumerate(cases):
        random = np.random.default_rng(number)
        moments = np.arange(round(length * rate)) / rate
        channels = 1 + number % 2
        sound = np.zeros((len(moments), channels))
        for _ in range(6):
            start, stop = sorted(random.uniform(0, length, 2))
            burst = (moments >= start) & (moments < stop)
            pitch, glide = random.uniform(60, 3500), random.uniform(-0.3, 0.3)
            tone = np.sin(2 * np.pi * pitch * moments * (1 + glide * moments / length))
            sound += (burst * tone)[:, None] * random.uniform(0.05, 0.2, channels)
        sound += random.normal(0, random.uniform(0.001, 0.05), sound.shape)
        kind = "stereo" if channels == 2 else "mono"
        paths.append(folder / f"{length:g}s-{rate}Hz-{kind}-{number}.wav")
        soundfile.write(paths[-1], sound, rate, subtype="PCM_16")
    return paths


def publisher(architecture: Architecture = VARIANTS[DEFAULT]) -> Any:
    """laion_clap's CLAP_Module, with no network."""
    import laion_clap
    from transformers import RobertaModel, RobertaTokenizer

    with (
        patch.object(RobertaModel, "from_pretrained", lambda name: roberta()),
        patch.object(RobertaTokenizer, "from_pretrained", lambda name: None),
    ):
        return laion_clap.CLAP_Module(
            enable_fusion=architecture.fusion, device="cpu", amodel=f"HTSAT-{architecture.size}"
        )


@contextlib.contextmanager
def resize(antialias: bool) -> Iterator[None]:
    """Let torchvision's Resize, which laion_clap shrinks with, antialias or not."""
    from torchvision import transforms

    with patch.object(transforms, "Resize", partial(transforms.Resize, antialias=antialias)):
        yield


def save_random(model: Any, path: Path) -> None:
    """Save seeded random weights of `model` as a published checkpoint is saved."""
    torch.manual_seed(0)
    state = model.state_dict()
    for name, value in state.items():
        fixed = "spectrogram_extractor" in name or "logmel_extractor" in name
        if value.is_floating_point() and value.ndim > 1 and not fixed and "attn_mask" not in name:
            state[name] = torch.randn_like(value) * (2 / value[0].numel()) ** 0.5
    # What bn0 has learned in the published models is about this: where decibels lie.
    state["audio_branch.bn0.running_mean"].fill_(-40)
    state["audio_branch.bn0.running_var"].fill_(400)
    state["text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 1, "name": "random", "state_dict": state}, path)


def compare_audio(variant: str, theirs: Any, ours: Encoder, clips: Sequence[Path]) -> float:
    """Print a line for each clip; the lowest cosine between theirs and ours."""
    rows, seconds = [], {"theirs": 0.0, "ours": 0.0}
    for clip in clips:
        item = decode("audio", Item(id=clip.name, uri=str(clip)))
        assert isinstance(item, Waveform)
        np.random.set_state(clap_audio.generator(item).get_state())
        started = time.perf_counter()
        with torch.no_grad():
            expected = theirs.get_audio_embedding_from_filelist([str(clip)])[0]
        turned = time.perf_counter()
        record = ours.preprocess("audio", decode("audio", Item(id=clip.name, uri=str(clip))))
        embedding = ours.encode("audio", record[None])[0].numpy()
        seconds["theirs"] += turned - started
        seconds["ours"] += time.perf_counter() - turned
        rows.append((expected, embedding))
    expected, embeddings = (np.stack(column) for column in zip(*rows, strict=True))
    cosines = (expected * embeddings).sum(1)  # (clips,)
    centred, others = sharper(expected, embeddings)
    for clip, *numbers in zip(clips, cosines, centred, others, strict=True):
        cosine, alone, other = numbers
        print(
            f"{variant:33} {clip.name:30} cosine {cosine:.7f}  "
            f"centred {alone:.7f}  others {other:.4f}"
        )
    times = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    print(f"{variant:33} {len(clips)} clips one by one, decoding included: {times}")
    return float(min(cosines.min(), centred.min()))


def sharper(expected: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines after the mean is taken away: with its counterpart, and with the nearest other."""
    mean = expected.mean(0)
    theirs, ours = (rows - mean for rows in (expected, embeddings))
    theirs, ours = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (theirs, ours))
    return (theirs * ours).sum(1), (ours @ ours.T - 2 * np.eye(len(ours))).max(1)


def compare_text(variant: str, theirs: Any, ours: Encoder) -> float:
    """Random texts of 3 to 90 tokens through both; the lowest cosine."""
    random = np.random.default_rng(0)
    tokens = torch.full((12, 78), 1)  # 1 is padding
    for row, length in zip(tokens, random.integers(3, 90, len(tokens)), strict=True):
        length = min(int(length), 78)
        row[:length] = torch.from_numpy(random.integers(4, 50_264, length))
        row[0], row[length - 1] = 0, 2
    cut = tokens[:, :77].clone()
    cut[tokens[:, 77] != 1, -1] = 2  # the tokenizer cuts before it adds the closing token
    batch = {"input_ids": cut, "attention_mask": (cut != 1).long()}
    with torch.no_grad():
        expected = theirs.get_text_embedding(None, tokenizer=lambda texts: batch)
    embeddings = ours.encode("text", tokens).numpy()
    centred, others = sharper(expected, embeddings)
    lowest = float(min((expected * embeddings).sum(1).min(), centred.min()))
    print(f"{variant:33} {len(tokens)} texts: lowest {lowest:.7f}  others {others.max():.4f}")
    return lowest


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """laion_clap prints and warns while it is loaded."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
