"""Other trainers beside ours, on worlds where the truth is known: accuracy, CPU seconds, memory.

    python benchmarks/peers.py                                   # synthetic: 100, 300, 3,000 pairs
    python benchmarks/peers.py --world classes --pairs 100 --pairs 300 --seeds 5
    python benchmarks/peers.py --pairs 100000 --seeds 1 --method cca --method textme
    python benchmarks/peers.py --world digits --store stores/digits --pairs 1080

Worlds, tests and settings are those of `benchmarks/methods.py`. Ours are made as `cmcr connect
--method` makes them, with the validation that it does; TextME too (`--method textme`), as
published, with space 2 centred as well, and with as many steps as ours instead of 50 epochs. What
else people train is restated here from the papers, on the same pairs of texts:

least squares   W of min ‖X₁W - X₂‖, rows as they are
cosine map      W of max Σ cos(x₁W, x₂), from the identity by Adam (as antflydb/termite#30 does)
procrustes      a rotation between texts, centred
csa             arXiv 2410.07610: CCA of the pairs, cosines weighted by the canonical correlations
sail            arXiv 2412.04616: two gated heads and a sigmoid loss
sue             arXiv 2505.21524: spectral embedding of each space, CCA of the pairs, MMD

All but the first two are given rows about the mean of their own modality, which the papers do not
need: they have one modality a side. Each method runs in a process of its own; memory is what its
resident set grows by at most.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from methods import CONNECT, SETTINGS, SPACES, digits, first_places, write
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from worlds import WORLDS

from cmcr.connect import read_config
from cmcr.connect.methods.auto import choose
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.methods.solve import solve
from cmcr.connect.spaces.pairs import Rows
from cmcr.devices import float32

OURS: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto"},
    "cca": {"method": "cca"},
    "c-mcr": {"method": "c-mcr"},
    "c-mcr-residual": {"method": "c-mcr", "projector": "residual"},
    "ex-mcr": {"method": "ex-mcr"},
    "ex-mcr, bridge alone": {"method": "ex-mcr", "centric": ["bridge"]},
    "textme": {"method": "textme"},
    "textme-centred": {"method": "textme", "centre": True},
    "textme-centred, our steps": {
        "method": "textme", "centre": True, "batch_size": None, "epochs": None,
    },
}  # fmt: skip
TEXTME = (
    "spaces",
    "via",
    "train",
    "memory",
    "seed",
)  # of the world's settings; the rest is its own
STEPS = 300  # of what is trained here

# Rows of a space and the name of their modality → in the joint space, (n, joint).
Map = Callable[[Tensor, str], Tensor]
Maps = tuple[Map, Map]


class Data(NamedTuple):
    """What a peer is given."""

    pairs: tuple[Tensor, Tensor]  # (n, D) of the texts of each space, unit vectors
    others: tuple[Tensor, Tensor]  # (m, D) of the other modality of each space, unpaired
    modalities: tuple[str, str]  # theirs
    seed: int

    def centred(self, side: int) -> Map:
        """Rows of one space about the mean of their modality, unit vectors."""
        means = {"text": self.pairs[side].mean(dim=0),
                 self.modalities[side]: self.others[side].mean(dim=0)}  # fmt: skip
        return lambda rows, modality: F.normalize(F.normalize(rows) - means[modality])


class Peer:
    """Two maps as the connection that a world measures."""

    def __init__(self, maps: Maps, spaces: tuple[str, str]) -> None:
        self.maps = dict(zip(spaces, maps, strict=True))

    def project(self, space: str, rows: Any, modality: str) -> Tensor:
        """(n, D) → (n, joint); csa's gallery is not of unit vectors."""
        with torch.no_grad():
            return self.maps[space](float32(rows, "cpu"), modality)


def least_squares(data: Data) -> Maps:
    """The W of least ‖X₁W - X₂‖, and of least norm where there are few pairs."""
    w = torch.linalg.lstsq(*(x.double() for x in data.pairs), driver="gelsd").solution.float()
    return lambda x, _: F.normalize(F.normalize(x) @ w), lambda x, _: F.normalize(x)


def cosine_map(data: Data) -> Maps:
    """W from the identity: 20 epochs of Adam, 256 rows a batch, the best on a tenth held out."""
    torch.manual_seed(data.seed)
    x, y = data.pairs
    w = torch.eye(x.shape[1], y.shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=1e-3)
    order = torch.randperm(len(x))
    held, seen = order[: len(x) // 10], order[len(x) // 10 :]
    best, kept = -1.0, w.detach().clone()
    for _ in range(20):
        for batch in seen[torch.randperm(len(seen))].split(256):
            step(optimizer, -F.cosine_similarity(x[batch] @ w, y[batch]).mean())
        score = F.cosine_similarity(x[held] @ w.detach(), y[held]).mean().item()
        if score > best:
            best, kept = score, w.detach().clone()
    return lambda x, _: F.normalize(F.normalize(x) @ kept), lambda x, _: F.normalize(x)


def procrustes(data: Data) -> Maps:
    """The rotation between centred texts."""
    one, two = data.centred(0), data.centred(1)
    u, _, vh = torch.linalg.svd(one(data.pairs[0], "text").T @ two(data.pairs[1], "text"), False)
    return lambda x, modality: F.normalize(one(x, modality) @ u @ vh), two


def cca_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of either side, (D, k) each, and the canonical correlations, (k,)."""
    sides = []
    for rows in (x, y):
        u, s, vh = torch.linalg.svd(rows.double() - rows.double().mean(dim=0), False)
        kept = s > 1e-6 * s[0]
        sides.append((u[:, kept], (vh[kept].T / s[kept]) * len(x) ** 0.5))
    (u1, w1), (u2, w2) = sides
    left, correlations, right = torch.linalg.svd(u1.T @ u2, False)
    return (w1 @ left).float(), (w2 @ right.T).float(), correlations.clamp(max=1).float()


def csa(data: Data) -> Maps:
    """Σ ρᵢ uᵢ vᵢ / (‖u‖ ‖v‖) of canonical directions whose correlation is ρᵢ."""
    one, two = data.centred(0), data.centred(1)
    a, b, rho = cca_of(one(data.pairs[0], "text"), two(data.pairs[1], "text"))
    return (
        lambda x, modality: F.normalize(one(x, modality) @ a) * rho,
        lambda x, modality: F.normalize(two(x, modality) @ b),
    )


class Gated(nn.Module):
    """SAIL's head: a gated layer of twice the width, and one out of it."""

    def __init__(self, dim: int, joint: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(2 * dim, joint)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) → (n, joint), unit vectors."""
        return F.normalize(self.out(F.relu6(self.gate(x)) * self.value(x)))


def sail(data: Data) -> Maps:
    """Two gated heads into 512 dimensions, -log σ(±(t⟨x, y⟩ + b)) of all pairs of a batch."""
    torch.manual_seed(data.seed)
    one, two = data.centred(0), data.centred(1)
    x, y = one(data.pairs[0], "text"), two(data.pairs[1], "text")
    heads = nn.ModuleList([Gated(x.shape[1], 512), Gated(y.shape[1], 512)])
    scale = nn.Parameter(torch.tensor([np.log(20.0), -10.0], dtype=torch.float32))
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for batch in batches(len(x), 512):
        logits = heads[0](x[batch]) @ heads[1](y[batch]).T * scale[0].exp() + scale[1]
        right = 2 * torch.eye(len(batch)) - 1
        step(optimizer, -F.logsigmoid(right * logits).sum(dim=1).mean())
        schedule.step()
    return (
        lambda x, modality: heads[0](one(x, modality)),
        lambda x, modality: heads[1](two(x, modality)),
    )


class Spectral:
    """Eigenvectors of a neighbourhood graph over landmarks, and of other rows by Nyström."""

    NEIGHBOURS, LANDMARKS, DIMS = 30, 2_000, 64

    def __init__(self, rows: Tensor, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.rows = rows[torch.randperm(len(rows), generator=random)[: self.LANDMARKS]]
        near = self.rows @ self.rows.T
        self.width = 1 - near.topk(self.NEIGHBOURS + 1, dim=1).values[:, -1].median()
        graph = self.weights(self.rows)
        graph = (graph + graph.T) / 2
        self.degrees = graph.sum(axis=1)
        scaled = diags_array(self.degrees**-0.5) @ graph @ diags_array(self.degrees**-0.5)
        count = min(self.DIMS, len(self.rows) // 3)
        self.values, vectors = eigsh(scaled, count + 1, v0=np.ones(len(self.rows)))
        self.vectors = vectors / self.degrees[:, None] ** 0.5

    def weights(self, rows: Tensor) -> Any:
        """Weights of the nearest landmarks, (n, landmarks), sparse."""
        found = (rows @ self.rows.T).topk(self.NEIGHBOURS, dim=1)
        weight = ((found.values - 1) / self.width).exp().double().numpy()
        places = np.arange(len(rows)).repeat(self.NEIGHBOURS), found.indices.numpy().ravel()
        shape = len(rows), len(self.rows)
        return coo_array((weight.ravel(), places), shape=shape).tocsr()

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, D) → (n, DIMS), the constant one left out."""
        weight = self.weights(rows)
        found = diags_array(1 / weight.sum(axis=1)) @ weight @ self.vectors / self.values
        return torch.from_numpy(found[:, :-1] * self.degrees.sum() ** 0.5).float()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy by Gaussian kernels of five widths."""
    rows = torch.cat([x, y])
    far = torch.cdist(rows, rows).square()
    kernel = sum(torch.exp(-far / (far.detach().mean() * 2.0**k)) for k in range(-2, 3))
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def sue(data: Data) -> Maps:
    """Of each space all centred rows make the graph; 8 canonical directions at least; MMD after."""
    torch.manual_seed(data.seed)
    centre = data.centred(0), data.centred(1)
    graphs, rows = [], []
    for side in (0, 1):
        text = centre[side](data.pairs[side], "text")
        other = centre[side](data.others[side], data.modalities[side])
        graphs.append(Spectral(torch.cat([text, other]), data.seed))
        rows.append((graphs[side](text), graphs[side](other)))
    a, b, _ = cca_of(rows[0][0], rows[1][0])
    kept = max(8, min(a.shape[1], len(data.pairs[0]) // 8))
    a, b = a[:, :kept], b[:, :kept]
    moved = nn.Sequential(nn.Linear(a.shape[1], 128), nn.ReLU(), nn.Linear(128, a.shape[1]))
    nn.init.zeros_(moved[2].weight)
    optimizer = torch.optim.Adam(moved.parameters(), lr=1e-3)
    from1, from2 = torch.cat(rows[0]) @ a, torch.cat(rows[1]) @ b
    for one, two in zip(batches(len(from1), 256), batches(len(from2), 256), strict=True):
        x = from1[one]
        step(optimizer, mmd(x + moved(x), from2[two]))

    def first(rows: Tensor, modality: str) -> Tensor:
        x = graphs[0](centre[0](rows, modality)) @ a
        return F.normalize(x + moved(x))

    return first, lambda rows, modality: F.normalize(graphs[1](centre[1](rows, modality)) @ b)


PEERS: dict[str, Callable[[Data], Maps]] = {
    "least squares": least_squares,
    "cosine map": cosine_map,
    "procrustes": procrustes,
    "csa": csa,
    "sail": sail,
    "sue": sue,
}


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


def batches(rows: int, size: int) -> Iterator[Tensor]:
    """STEPS batches."""
    order = torch.randperm(rows)
    for _ in range(STEPS):
        if len(order) < min(size, rows):
            order = torch.randperm(rows)
        yield order[:size]
        order = order[size:]


def given(problem: Problem) -> Data:
    """The pairs and the memories of a problem, in the memory of this machine."""
    pairs, spaces = problem.data.pairs, problem.data.spaces
    memory = [Rows([part for one in space.memory for part in one.parts()]) for space in spaces]
    x, y, a, c = (F.normalize(float32(rows[:], "cpu"))
                  for rows in (pairs.first, pairs.second, *memory))  # fmt: skip
    one, two = (str(space.memory_modality) for space in spaces)
    return Data((x, y), (a, c), (one, two), problem.config.seed)


def made(name: str, problem: Problem, folder: Path) -> Any:
    """What `project`s."""
    if name in PEERS:
        spaces = problem.config.spaces
        return Peer(PEERS[name](given(problem)), spaces)
    settings = problem.config.model_dump(exclude={"projector", "centre", "method", "centric"})
    if name.startswith("textme"):
        settings = {key: settings[key] for key in TEXTME}
    config = read_config(settings | OURS[name])
    whole = Problem(config, problem.data)
    return choose(whole, folder) if config.method == "auto" else solve(whole, folder).connection


def resident(which: str) -> int:
    """MiB of this process: `VmRSS` now, `VmHWM` at most."""
    (found,) = re.findall(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) // 1024


def alone(name: str, ready: Callable[[], tuple[Problem, Any]], folder: Path, say: Any) -> None:
    """Make and measure one method; it and the reason go to `say` where it does not work."""
    try:
        torch.set_num_threads(1)
        problem, measure = ready()
        _ = problem.data.pairs
        before, start = resident("VmRSS"), time.process_time()
        connection = made(name, problem, folder)
        seconds, memory = time.process_time() - start, resident("VmHWM") - before
        say.send({"accuracy": float(measure(connection)), "seconds": seconds, "MiB": memory})
    except Exception as error:
        traceback.print_exc()
        say.send({"failed": repr(error)})


def measured(name: str, ready: Callable[[], tuple[Problem, Any]]) -> dict[str, Any]:
    """Accuracy, seconds and MiB of a method in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        hear, say = multiprocessing.get_context("fork").Pipe(duplex=False)
        arguments = (name, ready, Path(folder), say)
        process = multiprocessing.get_context("fork").Process(target=alone, args=arguments)
        process.start()
        say.close()
        try:
            found: dict[str, Any] = hear.recv()
        except EOFError:
            found = {"failed": "the process ended"}
        process.join()
    return found


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=[*WORLDS, "digits"], default="synthetic")
    parser.add_argument("--store", type=Path, default=Path("stores/digits"))
    parser.add_argument("--pairs", type=int, action="append", help="can be repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", action="append", choices=[*OURS, *PEERS], help="all if none")
    parser.add_argument("--keep", type=Path, help="numbers as JSON; what is there is not repeated")
    options = parser.parse_args()
    weight = torch.ones(1, requires_grad=True)  # what optimisers import is nobody's cost
    step(torch.optim.AdamW([weight]), weight.square().sum())
    found: dict[str, Any] = {}
    if options.keep and options.keep.exists():
        found = json.loads(options.keep.read_text())
    names = options.method or [*OURS, *PEERS]
    sizes = options.pairs or [100, 300, 3_000]
    for size in sizes:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                ready = world(options, size, seed, Path(folder))
                for name in names:
                    key = f"{options.world}/{size}/{seed}/{name}"
                    if key not in found:
                        found[key] = measured(name, ready)
                        print(key, found[key], flush=True)
                    if options.keep:
                        options.keep.write_text(json.dumps(found, indent=1) + "\n")
    print("\n" + table(found, options.world, sizes, options.seeds, names))


def world(
    options: argparse.Namespace, size: int, seed: int, folder: Path
) -> Callable[[], tuple[Problem, Any]]:
    """What opens a world with so many pairs and gives how it is measured."""
    if options.world == "digits":
        return lambda: digits(options.store, size, seed, "cpu")
    made = WORLDS[options.world](size, seed)
    write(made, folder / "store")
    config = read_config(CONNECT | SETTINGS.get(options.world, {}) | {"seed": seed})
    assert config.spaces == tuple(SPACES)
    return lambda: (pose(folder / "store", config), first_places(made))


def table(
    found: Mapping[str, Mapping[str, Any]],
    world: str,
    sizes: list[int],
    seeds: int,
    names: list[str],
) -> str:
    """A row a method, a column a number of pairs: accuracy ± sd, seconds, MiB.

    Of fewer worlds than `seeds` their number stands behind.
    """
    lines = [f"| {world} | " + " | ".join(f"{size:,} pairs" for size in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for name in names:
        cells = []
        for size in sizes:
            keys = [f"{world}/{size}/{seed}/{name}" for seed in range(seeds)]
            runs = [found[key] for key in keys if "accuracy" in found.get(key, {})]
            cells.append(cell(runs) + f" ({len(runs)})" * (0 < len(runs) < seeds))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(runs: list[Mapping[str, float]]) -> str:
    """Of some worlds; empty of none."""
    if not runs:
        return ""
    accuracy, seconds, memory = (
        [run[one] for run in runs] for one in ("accuracy", "seconds", "MiB")
    )
    spread = f" ± {np.std(accuracy, ddof=1):.3f}" if len(runs) > 1 else ""
    return (f"{np.mean(accuracy):.3f}{spread}, {np.mean(seconds):.2g} s, "
            f"{np.mean(memory):.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
