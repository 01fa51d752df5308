"""Where each method wins: retrieval over the number of bridge pairs, where the truth is known.

    python benchmarks/methods.py --out docs        # table, and docs/methods-synthetic.png
    python benchmarks/methods.py --pairs 300 --pairs 1000 --seeds 3
    python benchmarks/methods.py --world digits --store stores/digits

The synthetic world: a concept is a latent vector. A space sees it through a random nonlinear map,
and each of its modalities through a map of its own besides, with an offset (the modality gap) and
noise; a contrastive pretraining would give such spaces. Text is what both spaces have. Nothing but
text pairs is used to connect; the test is audio → image retrieval of the same concept among 2,000.

Training lasts 36 epochs, 12 with more than 10,000 pairs.

The digits world: the phrases of the store that `cmcr run digits` makes, thinned out.

Every method is chosen among as `cmcr connect --method auto` does it, on held-out text pairs, and
the table says what the choice was and how far from the best it is.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmcr.connect import Connection, read_config
from cmcr.connect.methods.auto import candidates, preferred
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.methods.solve import solve
from cmcr.embeddings import Key, import_embeddings, open_dataset
from cmcr.evaluate import rank_both_ways, select

LATENT, HIDDEN, DIM = 12, 512, 128
UNPAIRED, TEST = 10_000, 2_000
BEND, OWN, GAP, NOISE = 1.5, 0.3, 0.7, 0.5  # of the views
PAIRS = (300, 1_000, 3_000, 10_000, 30_000, 100_000)
SPACES = {"see": "image", "hear": "audio"}
SYNTHETIC = {
    "via": "text",
    "spaces": ["hear", "see"],
    "train": ["captions"],
    "memory": ["pictures", "sounds"],
    "joint_dim": DIM,
    "batch_size": 1024,
    # The noise of the paper in all: σ²·D = 2.05.
    "noise_variance": 0.016,
    "memory_temperature": 0.02,
    "bridge_temperature": 0.03,
    "pseudo_temperature": 0.03,
}


class Run(NamedTuple):
    """One world with so many pairs."""

    test: dict[str, float]  # of each model
    chosen: str  # what `auto` takes

    @property
    def behind(self) -> float:
        """How far from the best model that is."""
        return max(self.test.values()) - self.test[self.chosen]


@dataclass(frozen=True)
class View:
    """How one modality of one space shows a concept; random, but the same for the same seed."""

    space: int
    modality: int
    seed: int

    def __call__(self, latent: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        """(n, LATENT) → (n, DIM), not normalised."""
        shared = np.random.default_rng((self.seed, self.space))
        own = np.random.default_rng((self.seed, self.space, self.modality))
        seen = bent(latent, shared) + OWN * bent(latent, own)
        offset = own.normal(size=DIM)
        return seen + GAP * offset + NOISE * noise.normal(size=seen.shape)


def bent(latent: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random network with one hidden layer: (n, LATENT) → (n, DIM), variance about 1."""
    first = random.normal(size=(LATENT, HIDDEN)) / np.sqrt(LATENT)
    second = random.normal(size=(HIDDEN, DIM)) / np.sqrt(HIDDEN)
    return np.sin(BEND * latent @ first + random.uniform(0, 6.3, HIDDEN)) @ second * np.sqrt(2)


def main() -> None:
    """Read the flags, measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=["synthetic", "digits"], default="synthetic")
    parser.add_argument("--store", type=Path, default=Path("stores/digits"))
    parser.add_argument("--pairs", type=int, action="append", help="bridge pairs; can be repeated")
    parser.add_argument("--seeds", type=int, default=2, help="worlds a number of pairs (to 3,000)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the plot and of the numbers")
    options = parser.parse_args()
    sizes = options.pairs or ((100, 300, 1_080) if options.world == "digits" else PAIRS)
    found: dict[int, list[Run]] = defaultdict(list)
    for size in sizes:
        for seed in range(options.seeds if size <= 3_000 else 1):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                if options.world == "digits":
                    scores = digits(options.store, size, seed, place, options.device)
                else:
                    scores = synthetic(size, seed, place, options.device)
            found[size].append(scores)
            if options.out:
                keep(found, options.out / f"methods-{options.world}.json")
        print(row(size, found[size]), flush=True)
    print("\n" + table(found))
    if options.out:
        draw(found, options.out / f"methods-{options.world}.png", options.world)


def synthetic(size: int, seed: int, folder: Path, device: str) -> Run:
    """Every method on a world of `size` text pairs."""
    random = np.random.default_rng((size, seed))

    def store(space: str, modality: str, dataset: str, latent: np.ndarray) -> None:
        number = list(SPACES).index(space)
        view = View(number, 0 if modality == "text" else 1, seed)
        np.save(folder / "x.npy", view(latent, random).astype(np.float32))
        key = Key(space, modality, dataset)  # type: ignore[arg-type]
        import_embeddings(folder / "store", key, folder / "x.npy", None, index=None)

    captions, test = random.normal(size=(size, LATENT)), random.normal(size=(TEST, LATENT))
    for space, modality in SPACES.items():
        store(space, "text", "captions", captions)
        unpaired = {"see": "pictures", "hear": "sounds"}[space]
        store(space, modality, unpaired, random.normal(size=(UNPAIRED, LATENT)))
        store(space, modality, "test", test)
    config = read_config(SYNTHETIC | {"seed": seed, "epochs": 36 if size <= 10_000 else 12})
    problem = pose(folder / "store", config, device)
    return run(lambda _, connection: first_places(connection, folder / "store"), problem, folder)


def first_places(connection: Connection, store: Path) -> float:
    """Share of first places, audio → image and image → audio."""
    sound, picture = (
        connection.project(
            space,
            open_dataset(store, Key(space, SPACES[space], "test")).embeddings(),  # type: ignore[arg-type]
            SPACES[space],  # type: ignore[arg-type]
        )
        for space in ("hear", "see")
    )
    scores = sound @ picture.T  # (TEST, TEST)
    own = scores.diagonal()
    first = [(scores.amax(dim=dim) <= own).float().mean().item() for dim in (0, 1)]
    return sum(first) / 2


def digits(store: Path, size: int, seed: int, folder: Path, device: str) -> Run:
    """Every method on `size` of the phrases."""
    from cmcr.cli.recipes.pipelines import load_pipelines

    recipe = load_pipelines().named("digits")
    config = read_config(recipe.connect[0].config | {"seed": seed})
    problem = pose(store, config, device)
    data = problem.data
    assert data.held is not None  # searched among all phrases
    seen, held_out = data.rows
    kept = np.random.default_rng(seed).permutation(len(seen))[:size]
    data.rows = (seen[np.sort(kept)], held_out)
    data.fitted = data.pairs.subset(data.rows[0])
    data.store = folder
    pair = recipe.evaluate.retrieval[0]
    query, gallery = (_items(store, place) for place in (pair.query, pair.gallery))

    def average_precision(model: str, connection: Connection) -> float:
        rankings = list(rank_both_ways({model: connection}, query, gallery))
        values = [r.row["metrics"]["mAP"] for r in rankings if r.row["model"] == model]
        return sum(values) / 2

    return run(average_precision, problem, folder)


def _items(store: Path, place: str) -> object:
    from cmcr.cli.recipes.pipelines import parse_place

    space, modality, dataset = parse_place(place)
    return select(open_dataset(store, Key(space, modality, str(dataset))))


def run(
    measure: Callable[[str, Connection], float],
    problem: Problem,
    folder: Path,
) -> Run:
    """Each candidate of `auto` made and measured."""
    test, each = {}, {}
    for candidate in candidates(problem):
        model = candidate.config.model_name
        connection = solve(candidate, folder / model)
        test[model] = measure(model, connection)
        each[model] = problem.score(connection.projectors).each
    return Run(test, preferred(each))


def row(size: int, runs: Sequence[Run]) -> str:
    """One line of numbers, as they come."""
    means = {model: np.mean([run.test[model] for run in runs]) for model in runs[0].test}
    cells = "  ".join(f"{model} {value:.3f}" for model, value in means.items())
    choices = ", ".join(run.chosen for run in runs)
    return f"{size:,}: {cells}  auto: {choices}, behind {max(run.behind for run in runs):.3f}"


def table(found: dict[int, list[Run]]) -> str:
    """All of it in Markdown: a row a method, a column a number of pairs."""
    models = list(next(iter(found.values()))[0].test)
    lines = ["| | " + " | ".join(f"{size:,}" for size in found) + " |"]
    lines.append("|---|" + "---:|" * len(found))
    for model in models:
        cells = [np.mean([run.test[model] for run in runs]) for runs in found.values()]
        lines.append(f"| {model} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    picked = [np.mean([run.test[run.chosen] for run in runs]) for runs in found.values()]
    lines.append("| auto | " + " | ".join(f"{value:.3f}" for value in picked) + " |")
    behind = [max(run.behind for run in runs) for runs in found.values()]
    lines.append(
        "| auto, behind the best at most | " + " | ".join(f"{b:.3f}" for b in behind) + " |"
    )
    return "\n".join(lines)


def keep(found: dict[int, list[Run]], path: Path) -> None:
    """What was measured so far, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = {size: [run._asdict() for run in runs] for size, runs in found.items()}
    path.write_text(json.dumps(runs, indent=1) + "\n")


def draw(found: dict[int, list[Run]], path: Path, world: str) -> None:
    """A line a method over the number of pairs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9.5, 5), layout="constrained")
    models = [model for model in next(iter(found.values()))[0].test if model != "identity"]
    colours = plt.get_cmap("tab10")
    for number, model in enumerate(models):
        closed = model.startswith(("procrustes", "ridge"))
        means = [np.mean([run.test[model] for run in runs]) for runs in found.values()]
        axes.plot(list(found), means, "--" if closed else "-", marker="o", markersize=4,
                  color=colours(number), label=model)  # fmt: skip
    picked = [np.mean([run.test[run.chosen] for run in runs]) for runs in found.values()]
    axes.plot(
        list(found), picked, "o", markersize=11, fillstyle="none", color="black", label="auto"
    )
    axes.set_xscale("log")
    axes.set_xlabel("bridge pairs")
    axes.set_ylabel("mAP, both ways" if world == "digits" else "first places, both ways")
    axes.set_title(f"The {world} world: audio and images that were never paired")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
