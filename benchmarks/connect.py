"""What connecting costs: aggregation and training beside the products that cannot be avoided.

    python benchmarks/connect.py                              # this machine's CPU
    python benchmarks/connect.py --device cuda
    python benchmarks/connect.py --paper-scale --device cuda  # the paper's whole run
    python benchmarks/connect.py --paper-scale --scale 0.001  # the same, a thousandth of the rows
    python benchmarks/connect.py --cca                        # 100,000 pairs, 1 M memory rows
    python benchmarks/connect.py --cca --scale 0.1

Everything is measured side by side in one run, on random unit vectors of 512 dimensions:

product    the machine's rate for matrix products of these sizes, in the precision that is used
aggregate  `cmcr.connect.aggregate`, 1,024 queries × 100,000 memory rows: two products
softmax    the same in three lines, with all scores at once
memory     what `aggregate` holds beside its inputs and its output
step       one training step of C-MCR at batch 4,096, noise and AdamW included
products   the bare products of that step, which no implementation can leave out
textbook   a step of the loop one writes first: DataLoader, a softmax over both memories of 100,000
           rows in every step, both cross-entropies. Ours aggregates once; a 36th of it, as there
           are 36 epochs, is counted to each step.

The paper's scale is 2.33 M texts, 1.3 M images and 1.8 M audio clips, 36 epochs at batch 10,240.
"""

import argparse
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cmcr.connect import ConnectConfig, aggregate, read_config
from cmcr.connect.connection.projectors import Projector, make_heads
from cmcr.connect.methods.cca import CACHED_ROWS, Spread, canonical, cross
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.connect.training.batches import TrainingSet
from cmcr.connect.training.checkpoint import TrainingState
from cmcr.connect.training.loop import Modalities, Trainer, take_step, train
from cmcr.devices import freed_memory_kept, product

DIM = 512
QUERIES, MEMORY, BATCH, EPOCHS = 1_024, 100_000, 4_096, 36
ROUNDS = 7
CCA_PAIRS, CCA_MEMORY, CCA_ROUNDS = 100_000, 500_000, 3
TEXTS, IMAGES, SOUNDS, PAPER_BATCH = 2_330_000, 1_300_000, 1_800_000, 10_240
MODALITIES: Modalities = (("text", "image"), ("text", "audio"))


@dataclass(frozen=True)
class Line:
    """One measurement: seconds, and the floating-point operations in it."""

    seconds: float
    operations: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--paper-scale", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the paper's rows")
    parser.add_argument("--cca", action="store_true", help="its time, and that of its products")
    parser.add_argument("--held-by-aggregate", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.held_by_aggregate:
        print(held_by_aggregate(options.held_by_aggregate, device))
        return
    print(f"{machine(device)}\n")
    if options.cca:
        cca(options.scale)
    elif options.paper_scale:
        paper_scale(device, options.scale)
    else:
        compare(device)


def cca(scale: float) -> None:
    """Fitting `cca` on mapped float16 rows, beside its matrix products alone, in CPU seconds.

    Products are whole ones, though a covariance is its own mirror image. The shortest of a few
    turns of each: other work on the machine makes memory slower than arithmetic.
    """
    pairs, memory = int(CCA_PAIRS * scale), int(CCA_MEMORY * scale)
    block = units(CACHED_ROWS, torch.device("cpu"))
    square = block.T @ block

    def products() -> None:
        for _ in range(-(-(2 * memory + 2 * pairs) // CACHED_ROWS)):
            block.T @ block  # the covariances
        for _ in range(-(-pairs // CACHED_ROWS)):
            block @ square, block @ square, block.T @ block  # z A on both sides, the cross moment
        for _ in range(4):
            torch.linalg.eigh(square.double())
        torch.linalg.svd(square.double())

    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("b1", pairs), ("b2", pairs), ("memory", memory)):
            stored = np.lib.format.open_memmap(f"{folder}/{name}.npy", "w+", np.float16,
                                               (rows, DIM))  # fmt: skip
            for start in range(0, rows, CACHED_ROWS):
                part = units(min(CACHED_ROWS, rows - start), torch.device("cpu"))
                stored[start : start + CACHED_ROWS] = part.numpy()
        b1, b2, rows = (Rows([np.load(f"{folder}/{name}.npy", mmap_mode="r")])
                        for name in ("b1", "b2", "memory"))  # fmt: skip

        def ours() -> None:
            projectors = []
            for bridge in (b1, b2):
                own = {"text": Spread(bridge.batches, DIM), "image": Spread(rows.batches, DIM)}
                means = {name: one.mean for name, one in own.items()}
                whitenings = {name: one.whitening for name, one in own.items()}
                projectors.append(Projector(torch.nn.Identity(), means, whitenings=whitenings))
            canonical(cross(Pairs(b1, b2), (projectors[0], projectors[1]), "text"), len(b1))

        turns = [(spent(ours), spent(products)) for _ in range(CCA_ROUNDS)]
    whole, bare = (min(seconds) for seconds in zip(*turns, strict=True))
    print(f"{pairs:,} pairs, 2 x {memory:,} memory rows of {DIM}: cca {whole:.1f} s, its products "
          f"{bare:.1f} s, {whole / bare:.2f} times")  # fmt: skip
    print("turns: " + ", ".join(f"{one:.1f} and {two:.1f} s" for one, two in turns))


def spent(run: Callable[[], object]) -> float:
    """CPU seconds of it."""
    started = time.process_time()
    run()
    return time.process_time() - started


def machine(device: torch.device) -> str:
    """What it runs on, in words."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].partition("\n")[0]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU used"
    threads = torch.get_num_threads()
    return f"{threads} threads of {cpu or platform.machine()}, {gpu}, torch {torch.__version__}"


def compare(device: torch.device) -> None:
    """The table."""
    queries, memory = units(QUERIES, device), units(MEMORY, device)
    operations = 4 * QUERIES * MEMORY * DIM
    ours, naive, *bare = measured(
        [
            (operations, lambda: aggregate(queries, memory, 0.01)),
            (operations, lambda: softmax(queries, memory)),
            *products(device),
        ]
    )
    rate = max(line.rate for line in bare)
    print("| | seconds | TFLOP/s | share of the product rate |")
    print("|---|---:|---:|---:|")
    print(f"| product | | {rate / 1e12:.3f} | 1.00 |")
    for name, line in (("aggregate", ours), ("softmax, all scores at once", naive)):
        print(f"| {name} | {line.seconds:.3f} | {line.rate / 1e12:.3f} | {line.rate / rate:.2f} |")

    print("\n| memory rows | held beside inputs and output, MB |\n|---:|---:|")
    for rows in (20_000, 100_000, 500_000):
        command = [sys.executable, __file__, "--device", str(device)]
        command += ["--held-by-aggregate", str(rows)]
        held = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {rows:,} | {float(held):.0f} |", flush=True)

    with freed_memory_kept():
        step, bare = side_by_side([training_step(device), bare_products(device)])
    aggregation = 2 * ours.seconds * BATCH / QUERIES
    textbook = textbook_step(device, units(MEMORY, device), memory)
    whole = step + aggregation / EPOCHS
    print("\n| of a training step at batch 4,096 | seconds | ratio |\n|---|---:|---:|")
    print(f"| its bare products | {bare:.3f} | 1.00 |")
    print(f"| ours | {step:.3f} | {step / bare:.2f} of the products |")
    print(f"| ours, with its share of the aggregation | {whole:.3f} | |")
    print(f"| textbook | {textbook:.3f} | {textbook / whole:.1f} times ours |")


def units(rows: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random unit vectors, (rows, 512), made a piece at a time."""
    generator = torch.Generator(device).manual_seed(rows)
    whole = torch.empty(rows, DIM, dtype=dtype, device=device)
    for piece in whole.split(65_536):
        piece.copy_(F.normalize(torch.randn(piece.shape, generator=generator, device=device)))
    return whole


def side_by_side(runs: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """The shortest of a few turns of each, in seconds; one before them is not timed."""
    for run in runs:
        run()
    shortest = [math.inf] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            shortest[number] = min(shortest[number], time.perf_counter() - started)
    return shortest


def timed(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of a few runs, in seconds; one before them is not timed."""
    return side_by_side([run], rounds)[0]


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measured(runs: Sequence[tuple[int, Callable[[], object]]]) -> list[Line]:
    """A line for each run, given with its operations."""
    seconds = side_by_side([run for _, run in runs])
    return [Line(one, operations) for (operations, _), one in zip(runs, seconds, strict=True)]


def products(device: torch.device) -> list[tuple[int, Callable[[], object]]]:
    """Matrix products of a few shapes, each with its operations."""
    kind = torch.float16 if device.type == "cuda" else None
    return [
        (2 * n * m * DIM, partial(product, units(n, device), units(m, device).T, kind))
        for n, m in ((1_024, 8_192), (2_048, 2_048), (4_096, 4_096))
    ]


def product_rate(device: torch.device) -> float:
    """Operations per second of the fastest of them."""
    return max(line.rate for line in measured(products(device)))


def softmax(queries: Tensor, memory: Tensor) -> Tensor:
    """Aggregation as one writes it first."""
    return (queries @ memory.T / 0.01).softmax(dim=1) @ memory


def held_by_aggregate(rows: int, device: torch.device) -> float:
    """Megabytes that `aggregate` takes at its peak, beside its inputs and its output."""
    queries, memory = units(QUERIES, device), units(rows, device, torch.float16)
    aggregate(queries[:8], memory[:8], 0.01)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = aggregate(queries, memory, 0.01)
        return (torch.cuda.max_memory_allocated() - before - found.nbytes) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    found = aggregate(queries, memory, 0.01)
    return (resident("VmHWM") - before - found.nbytes) / 1e6


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# A training step


def recipe(**settings: object) -> ConnectConfig:
    """The paper's settings."""
    section = {"via": "text", "spaces": ["clip", "clap"], "train": ["texts"], "method": "c-mcr"}
    fixed = {"memory": ["images", "sounds"], "validation": 0, "epochs": EPOCHS}
    return read_config(section | fixed | {"batch_size": PAPER_BATCH} | settings)


def fresh(
    config: ConnectConfig, device: torch.device
) -> tuple[tuple[Projector, Projector], TrainingState, Trainer]:
    """Untrained projectors and what trains them."""
    heads = make_heads(config.heads, (DIM, DIM), DIM, seed=0)
    projectors = (Projector(heads[0]), Projector(heads[1]))
    modules = torch.nn.ModuleDict({"Head_A": heads[0], "Head_B": heads[1]}).to(device).train()
    return (
        projectors,
        TrainingState(modules, config, str(device)),
        Trainer(config, projectors, MODALITIES),
    )


def training_step(device: torch.device) -> Callable[[], object]:
    """Ours."""
    _, state, trainer = fresh(recipe(), device)
    blocks = (units(BATCH + number, device, torch.float16)[:BATCH] for number in range(4))
    batch = TrainingSet(*blocks)
    return lambda: take_step(state, trainer, batch, 0, 1)


def bare_products(device: torch.device) -> Callable[[], object]:
    """The step's products alone.

    Each head multiplies 2 · 4,096 rows by 512 × 1,024 and 1,024 × 512 weights, backwards again for
    both weights and for the hidden layer; each of the two InfoNCE has its scores and two gradients.
    """
    rows, hidden = units(2 * BATCH, device), torch.randn(2 * BATCH, 2 * DIM, device=device)
    up, down = torch.randn(DIM, 2 * DIM, device=device), torch.randn(2 * DIM, DIM, device=device)
    x, y = rows[:BATCH], rows[BATCH:]
    scores = product(x, y.T)

    def run() -> None:
        for _ in range(2):  # heads
            product(rows, up)
            product(hidden, down)
            product(rows.T, hidden)
            product(hidden.T, rows)
            product(rows, down.T)
        for _ in range(2):  # bridge pairs and pseudo pairs
            product(x, y.T)
            product(scores, y)
            product(scores.T, x)

    return run


def textbook_step(device: torch.device, images: Tensor, sounds: Tensor) -> float:
    """Seconds of a step that aggregates as it goes."""
    config = recipe()
    heads = [head.to(device).train() for head in make_heads(config.heads, (DIM, DIM), DIM, seed=0)]
    weights = [weight for head in heads for weight in head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate)
    texts = TensorDataset(
        units(BATCH, torch.device("cpu")), units(BATCH + 1, torch.device("cpu"))[:BATCH]
    )
    target = torch.arange(BATCH, device=device)

    def noisy(x: Tensor) -> Tensor:
        return F.normalize(x + config.noise_variance**0.5 * torch.randn_like(x), dim=1)

    def info_nce(x: Tensor, y: Tensor) -> Tensor:
        logits = x @ y.T / 0.01
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def run() -> None:
        for one, two in DataLoader(texts, batch_size=BATCH, shuffle=True):
            b1, b2 = one.to(device), two.to(device)
            a, c = softmax(b1, images), softmax(b2, sounds)
            f1 = [F.normalize(heads[0](noisy(x)), dim=1) for x in (b1, a)]
            f2 = [F.normalize(heads[1](noisy(x)), dim=1) for x in (b2, c)]
            intra = ((f1[0] - f1[1]).norm(dim=1) + (f2[0] - f2[1]).norm(dim=1)).mean() / 2
            loss = info_nce(f1[0], f2[0]) + info_nce(f1[1], f2[1]) + 0.1 * intra
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss.item()

    return timed(run, rounds=2)


# The paper's run


def paper_scale(device: torch.device, scale: float) -> None:
    """Aggregation and training of the paper's CLIP-CLAP on random unit vectors, stage by stage."""
    texts, images, sounds = (max(64, int(rows * scale)) for rows in (TEXTS, IMAGES, SOUNDS))
    batch = min(PAPER_BATCH, max(4, texts // 4))
    rate = product_rate(device)
    half = torch.float16
    b1, b2 = units(texts, device, half), units(texts, device, half)
    print("| stage | seconds | floor | of the floor |\n|---|---:|---:|---:|")
    total = 0.0
    pseudo = []
    for name, rows, queries in (("images", images, b1), ("sounds", sounds, b2)):
        memory = units(rows, device, half)
        started = time.perf_counter()
        parts = [aggregate(part, memory, 0.01).to(half) for part in queries.split(65_536)]
        pseudo.append(torch.cat(parts))
        synchronise()
        total += report(f"aggregate {name}", started, 4 * texts * rows * DIM / rate)
        del memory
    config = recipe(batch_size=batch)
    heads = make_heads(config.heads, (DIM, DIM), DIM, seed=0)
    projectors = (Projector(heads[0]).to(device), Projector(heads[1]).to(device))
    data = TrainingSet(b1, pseudo[0], b2, pseudo[1])
    # An item, forward and back: five products in each head for two rows, six for its scores.
    operations = 2 * 2 * 5 * 2 * DIM * 2 * DIM + 6 * 2 * batch * DIM
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(config, data, projectors, MODALITIES, Path(folder), "benchmark", device=str(device))
        synchronise()
        total += report("train", started, operations * texts * config.epochs / rate)
    print(f"| all | {total:.1f} | | |")


def report(stage: str, started: float, floor: float) -> float:
    """Print a line; gives the seconds."""
    seconds = time.perf_counter() - started
    print(f"| {stage} | {seconds:.1f} | {floor:.1f} | {seconds / floor:.2f} |", flush=True)
    return seconds


if __name__ == "__main__":
    main()
