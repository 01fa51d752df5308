"""How fast files become embeddings: `cmcr.extract`, others on the same files, and what is possible.

    python benchmarks/extract.py                                    # on this machine's CPU
    python benchmarks/extract.py --modality audio --items 200
    python benchmarks/extract.py --device cuda                      # with every core decoding

Prints a Markdown table, in inputs per second:

ours     `extract` into a temporary store, a worker process for each core; it alone writes
loop     decode, preprocess, encode, one batch after another in one process
peer     image: open_clip's transform in a DataLoader with as many workers, as clip-retrieval reads;
         audio: laion_clap's get_audio_embedding_from_filelist; text: open_clip's tokenizer and
         encode_text, a batch at a time; point clouds have none: ULIP publishes only the loop
decode   decoding and preprocessing alone, spread over the cores, nothing sent anywhere
forward  the bare `encode` of batches that lie in the device's memory
floor    CPU: a batch takes decode's and forward's time together, as they share the cores;
         CUDA: forward's time alone

The encoders are `clip`, `clap` and `ulip` at their real size, with random weights: that does not
change the time. The files are made here. All use the same batch size, all cores, and on CUDA the
same autocast, but for laion_clap, whose fusion does not work under it.

Start-up counts for nobody: a way is run on a few files, then on those and N more, and its rate is
N over the difference of the times; a run before that is not timed. All ways take turns, ROUNDS
times, and the medians of the rounds' rates and ratios are printed, beside the ratios' range.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import parity_clap
import torch
from made_up import FILES, WEIGHTS
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from cmcr.embeddings import Modality
from cmcr.extract import Source, extract, load_encoder, open_source
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.encode import find_autocast, usual_batch
from cmcr.extract.items import Item
from cmcr.extract.media.decode import decode

ROUNDS = 5
CORES = len(os.sched_getaffinity(0))
ENCODERS: dict[Modality, str] = {
    "image": "clip",
    "audio": "clap",
    "text": "clip",
    "pointcloud": "ulip",
}
# Smaller than what `extract` takes by default, so that a measurement ends sooner.
CPU_BATCH_SIZES: dict[Modality, int] = {"image": 16, "audio": 4, "text": 64, "pointcloud": 4}

Way = Callable[[Sequence[Item]], object]  # embeds the items, or does a part of it


@dataclass(frozen=True)
class Bench:
    """One modality: what to embed, how many at once, and with what."""

    modality: Modality
    source: Source
    encoder: Encoder
    checkpoint: Path
    batch_size: int

    def autocast(self) -> AbstractContextManager[Any]:
        """What `extract` encodes under on this device."""
        kind = find_autocast("auto", self.encoder.device)
        return torch.autocast("cuda", getattr(torch, kind)) if kind else nullcontext()

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """`items`, a batch at a time."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]


@dataclass(frozen=True)
class Times:
    """Seconds that each way takes for so many inputs, (rounds,)."""

    inputs: int
    seconds: dict[str, np.ndarray]

    def rate(self, way: str) -> str:
        """Inputs per second, the median of the rounds."""
        if way not in self.seconds:
            return "—"
        return f"{np.median(self.inputs / self.seconds[way]):,.1f}"

    def ratio(self, way: str) -> str:
        """Our rate to that of `way`: the median of the rounds, and the least and the largest."""
        if way not in self.seconds:
            return "—"
        ratios = self.seconds[way] / self.seconds["ours"]
        return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", choices=get_args(Modality), action="append")
    parser.add_argument("--items", type=int, help="inputs that are timed (4 batches for each core)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    usual = {modality: usual_batch(modality) for modality in CPU_BATCH_SIZES}
    sizes = CPU_BATCH_SIZES if options.device == "cpu" else usual
    print(f"{machine(options.device)}\n")
    print("| modality | encoder | inputs | batch | ours | loop | peer | decode | forward | floor "
          "| ours/floor | ours/loop | ours/peer |")  # fmt: skip
    print("|---|---|" + "---:|" * 11)
    for modality in options.modality or ENCODERS:
        size = sizes[modality]
        count = options.items or 4 * CORES * size
        if count < 2 * CORES * size:
            parser.error(f"--items: at least {2 * CORES * size} {modality} inputs, two batches "
                         "for each core; fewer say nothing")  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            times = measure(modality, count, size, options.device, Path(folder))
        print(row(modality, size, times), flush=True)


def machine(device: str) -> str:
    """What it runs on, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    gpu = "no GPU used" if device == "cpu" else torch.cuda.get_device_name(device)
    return f"{CORES} cores of {cpu or platform.machine()}, {gpu}, torch {torch.__version__}"


def row(modality: Modality, size: int, times: Times) -> str:
    """One line of the table."""
    cells = [modality, ENCODERS[modality], f"{times.inputs:,}", str(size)]
    cells += [times.rate(way) for way in ("ours", "loop", "peer", "decode", "forward", "floor")]
    cells += [times.ratio(way) for way in ("floor", "loop", "peer")]
    return f"| {' | '.join(cells)} |"


def measure(modality: Modality, count: int, size: int, device: str, folder: Path) -> Times:
    """How long each way takes."""
    few = CORES * size
    checkpoint = WEIGHTS[ENCODERS[modality]](folder)
    where = FILES[modality](folder / modality, few + count)
    bench = Bench(
        modality,
        source=open_source(modality, str(where)),
        encoder=load_encoder(ENCODERS[modality], checkpoint=checkpoint, device=device),
        checkpoint=checkpoint,
        batch_size=size,
    )
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CORES, torch.set_num_threads, (1,)) as pool:
        ways: dict[str, Way] = {
            "ours": partial(ours, bench, folder / "store"),
            "loop": partial(loop, bench),
            "decode": partial(decode_only, bench, pool),
            "forward": forward(bench, list(itertools.islice(bench.source.items(), few))),
        }
        if modality in PEERS:
            ways["peer"] = PEERS[modality](bench)
        items = list(bench.source.items())
        seconds = differences(ways, items, few)
    shared = seconds["decode"] if device == "cpu" else 0.0
    return Times(count, seconds | {"floor": seconds["forward"] + shared})


def differences(ways: dict[str, Way], items: Sequence[Item], few: int) -> dict[str, np.ndarray]:
    """Seconds that each way takes longer for all `items` than for the first `few`, by round."""
    for way in ways.values():
        way(items[:few])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):  # all ways take turns, so that a slow minute is slow for all
        for name, way in ways.items():
            shorter = timed(way, items[:few])
            seconds[name].append(timed(way, items) - shorter)
    return {name: np.array(times) for name, times in seconds.items()}


def timed(way: Way, items: Sequence[Item]) -> float:
    """Seconds until `way` is through and the device is done."""
    started = time.perf_counter()
    way(items)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


# The ways


def ours(bench: Bench, store: Path, items: Sequence[Item]) -> None:
    """`extract`, as the command line calls it."""
    source = replace(bench.source, items=partial(iter, items), total=len(items))
    name = f"run-{time.monotonic_ns()}"
    extract(store, bench.encoder, source, name, batch_size=bench.batch_size)


def loop(bench: Bench, items: Sequence[Item]) -> None:
    """What one writes first."""
    for batch in bench.batches(items):
        with bench.autocast():
            bench.encoder.encode(bench.modality, prepared(bench, batch)).cpu().numpy()


def prepared(bench: Bench, items: Sequence[Item]) -> Tensor:
    """Items decoded, preprocessed and stacked: (items, ...)."""
    preprocess, modality = bench.encoder.preprocess, bench.modality
    return torch.stack([preprocess(modality, decode(modality, item)) for item in items])


def decode_only(bench: Bench, pool: Any, items: Sequence[Item]) -> None:
    """Decode and preprocess on every core, and drop the result."""
    work = partial(decode_one, bench.encoder.preprocess, bench.modality)
    pool.map(work, items, chunksize=max(1, len(items) // (8 * CORES)))


def decode_one(
    preprocess: Callable[[Modality, Any], Tensor], modality: Modality, item: Item
) -> None:
    """What a worker does with one item."""
    preprocess(modality, decode(modality, item))


def forward(bench: Bench, examples: Sequence[Item]) -> Way:
    """`encode` of batches that are on the device; texts lie together by length, as in `extract`."""
    if bench.modality == "text":
        examples = sorted(examples, key=lambda item: len(item.content or ""))
    ready = [prepared(bench, batch).to(bench.encoder.device) for batch in bench.batches(examples)]

    def way(items: Sequence[Item]) -> None:
        for _, batch in zip(bench.batches(items), itertools.cycle(ready), strict=False):
            with bench.autocast():
                bench.encoder.encode(bench.modality, batch)

    return way


# Others


def open_clip_images(bench: Bench) -> Way:
    """clip-retrieval's way: its reader is a DataLoader over files, its mapper this loop."""
    model, transform, _ = published_clip(bench)

    def way(items: Sequence[Item]) -> None:
        loader = DataLoader(
            Pictures(items, transform),
            batch_size=bench.batch_size,
            num_workers=CORES,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2,
        )
        for pixels in loader:
            with torch.no_grad(), bench.autocast():
                features = model.encode_image(pixels.to(bench.encoder.device))  # (batch, dim)
            normalize(features.float(), dim=-1).cpu().numpy()

    return way


class Pictures(Dataset):
    """Files, opened and transformed where they are asked for."""

    def __init__(self, items: Sequence[Item], transform: Callable[[Any], Tensor]) -> None:
        self.files = [item.uri for item in items]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]))


def open_clip_texts(bench: Bench) -> Way:
    """As open_clip's documentation embeds texts."""
    model, _, tokenizer = published_clip(bench)

    def way(items: Sequence[Item]) -> None:
        for batch in bench.batches(items):
            tokens = tokenizer([item.content for item in batch])  # (batch, 77)
            with torch.no_grad(), bench.autocast():
                features = model.encode_text(tokens.to(bench.encoder.device))  # (batch, dim)
            normalize(features.float(), dim=-1).cpu().numpy()

    return way


def published_clip(bench: Bench) -> tuple[Any, Any, Any]:
    """open_clip's model, transform and tokenizer."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(
        "ViT-B-32",
        pretrained=str(bench.checkpoint),
        force_quick_gelu=True,
        device=bench.encoder.device,
    )
    return model.eval(), transform, open_clip.get_tokenizer("ViT-B-32")


def laion_clap_files(bench: Bench) -> Way:
    """laion_clap's own function, a batch of files at a time."""
    with parity_clap.quiet():
        module = parity_clap.publisher(fusion=True)
        module.load_ckpt(str(bench.checkpoint), verbose=False)
        module.to(bench.encoder.device)

    def way(items: Sequence[Item]) -> None:
        for batch in bench.batches(items):
            with torch.no_grad():
                module.get_audio_embedding_from_filelist([item.uri for item in batch])

    return way


PEERS: dict[Modality, Callable[[Bench], Way]] = {
    "image": open_clip_images,
    "audio": laion_clap_files,
    "text": open_clip_texts,
}

if __name__ == "__main__":
    main()
