"""Where each method wins: retrieval over the number of bridge pairs, where the truth is known.

    python benchmarks/methods.py --out docs        # table, and a figure of it
    python benchmarks/methods.py --world classes --pairs 100 --pairs 300 --pairs 900 --out docs
    python benchmarks/methods.py --world digits --store stores/digits --out docs
    python benchmarks/methods.py --world classes --pairs 900 --no-memory --quick
    python benchmarks/methods.py --warned --pairs 300 --pairs 3000   # c-mcr by its name
    python benchmarks/methods.py --agreement docs  # of all methods-WORLD.json in docs

`synthetic`: a concept is a latent vector. A space sees it through a random nonlinear map, and each
of its modalities through a map of its own besides, with an offset (the modality gap) and noise.
Text is what both spaces have, and only texts are paired; the test is audio → image retrieval of
the same concept among 2,000, and back. `classes`, `phrases` and `shifted` are built otherwise
(`benchmarks/worlds.py`): images of classes that no pair shows are to find their text in the other
space. `digits`: the phrases of the store that `cmcr run digits` makes, thinned out.

Every method is made as `cmcr connect --method` makes it, and `auto` as well. With `--quick` it is
the closed forms and `auto` alone. Validation is the log-likelihood that the record holds.
"""

import argparse
import dataclasses
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from worlds import WORLDS, World

from cmcr.connect import Connection, read_config
from cmcr.connect.methods.auto import choose, keep_to, warning
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.methods.solve import closed_forms, solve
from cmcr.connect.training.validation import DECIDES
from cmcr.embeddings import Key, import_embeddings, open_dataset
from cmcr.evaluate import rank_both_ways, select

PAIRS = (300, 1_000, 3_000, 10_000, 30_000, 100_000)
SIZES = {"synthetic": PAIRS, "digits": (100, 300, 1_080)}
SPACES = {"hear": "audio", "see": "image"}
CONNECT = {
    "via": "text",
    "spaces": list(SPACES),
    "train": ["captions"],
    "memory": ["memory"],
}
# 128 dimensions instead of 512: the noise of the paper in all, σ²·D = 2.05.
SETTINGS: dict[str, dict[str, Any]] = {
    "synthetic": {
        "joint_dim": 128,
        "noise_variance": 0.016,
        "memory_temperature": 0.02,
        "bridge_temperature": 0.03,
        "pseudo_temperature": 0.03,
    }
}
TRAINED: tuple[dict[str, Any], ...] = (
    {"method": "linear", "centre": True},
    {"method": "ex-mcr", "projector": "residual"},
    {"method": "c-mcr", "projector": "residual"},
    {"method": "ex-mcr", "projector": "mlp"},
    {"method": "c-mcr", "projector": "mlp"},
)


class Run(NamedTuple):
    """One world with so many pairs; `auto` is a model among the others."""

    test: dict[str, float]  # of each model
    validation: dict[str, float]  # of each model that has one
    chosen: str  # what `auto` takes


def main() -> None:
    """Read the flags, measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=[*WORLDS, "digits"], default="synthetic")
    parser.add_argument("--store", type=Path, default=Path("stores/digits"))
    parser.add_argument("--pairs", type=int, action="append", help="bridge pairs; can be repeated")
    parser.add_argument("--seeds", type=int, default=5, help="worlds a number of pairs (to 3,000)")
    parser.add_argument("--more", type=int, default=3, help="worlds with more pairs than that")
    parser.add_argument("--quick", action="store_true", help="closed forms and auto alone")
    parser.add_argument("--warned", action="store_true", help="c-mcr by its name alone")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the plot and of the numbers")
    parser.add_argument("--agreement", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.agreement:
        agreement(options.agreement)
        return
    name = options.world + "-no-memory" * options.no_memory
    found: dict[int, list[Run]] = defaultdict(list)
    for size in options.pairs or SIZES.get(options.world, (100, 300, 900)):
        for seed in range(options.seeds if size <= 3_000 else options.more):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                if options.world == "digits":
                    problem, measure = digits(options.store, size, seed, options.device)
                else:
                    world = WORLDS[options.world](size, seed)
                    memory = {"memory": []} if options.no_memory else {}
                    fields = CONNECT | SETTINGS.get(options.world, {}) | {"seed": seed} | memory
                    write(world, place / "store")
                    problem = pose(place / "store", read_config(fields), options.device)
                    measure = first_places(world)
                if options.warned:
                    print(f"{size:,} ({seed}): {warned(problem, measure, place)}", flush=True)
                    continue
                found[size].append(run(problem, measure, place, options.quick))
            print(row(size, seed, found[size][-1]), flush=True)
            if options.out:
                keep(found, options.out / f"methods-{name}.json")
    if found:
        print("\n" + table(found))
    if options.out and found:
        draw(found, options.out / f"methods-{name}.png", options.world)


def write(world: World, store: Path) -> None:
    """`world` as a store."""
    store.mkdir()
    for side, (space, modality) in enumerate(SPACES.items()):
        for key, rows in (
            (Key(space, "text", "captions"), world.captions[side]),
            (Key(space, modality, "memory"), world.memory[side]),  # type: ignore[arg-type]
        ):
            np.save(store.parent / "x.npy", rows.astype(np.float32))
            import_embeddings(store, key, store.parent / "x.npy", None, index=None)


def first_places(world: World) -> Callable[[Connection], float]:
    """Share of first places, of rows of space 1 and, where each kind has one, of space 2."""

    def measure(connection: Connection) -> float:
        one, two = (
            connection.project(space, rows, modality if other else "text")  # type: ignore[arg-type]
            for (space, modality), rows, other in zip(
                SPACES.items(), world.test, world.test_modality, strict=True
            )
        )
        kinds, others = map(torch.from_numpy, world.kinds)
        cosines = one @ two.T
        first = [(others[cosines.argmax(dim=1)] == kinds).float().mean().item()]
        if len(kinds) == len(others):
            first.append((kinds[cosines.argmax(dim=0)] == others).float().mean().item())
        return sum(first) / len(first)

    return measure


def digits(
    store: Path, size: int, seed: int, device: str
) -> tuple[Problem, Callable[[Connection], float]]:
    """`size` of the phrases, and the mAP of speech and handwriting, the worse direction."""
    from cmcr.cli.recipes.pipelines import load_pipelines

    recipe = load_pipelines().named("digits")
    config = read_config(recipe.connect[0].config | {"seed": seed})
    data = pose(store, config, device).data
    kept = np.random.default_rng(seed).permutation(len(data.pairs))[:size]
    thinned = dataclasses.replace(data)
    thinned.pairs = data.pairs.subset(np.sort(kept))
    pair = recipe.evaluate.retrieval[0]
    query, gallery = (_items(store, place) for place in (pair.query, pair.gallery))

    def average_precision(connection: Connection) -> float:
        rankings = list(rank_both_ways({"it": connection}, query, gallery))
        return min(r.row["metrics"]["mAP"] for r in rankings if r.row["model"] == "it")

    return Problem(config, thinned), average_precision


def _items(store: Path, place: str) -> Any:
    from cmcr.cli.recipes.pipelines import parse_place

    space, modality, dataset = parse_place(place)
    return select(open_dataset(store, Key(space, modality, str(dataset))))


def run(problem: Problem, measure: Callable[[Connection], float], folder: Path, quick: bool) -> Run:
    """Each method made and measured, `auto` last."""
    test, validation = {}, {}
    plain = problem.variant(centre=False, projector="mlp")
    trained = [] if quick else [plain.variant(**settings) for settings in TRAINED]
    for candidate in [*closed_forms(plain), plain.variant(method="ex-cca"), *trained]:
        model = candidate.config.model_name
        if candidate.config.centre and not all(space.memory for space in problem.data.spaces):
            continue  # it cannot project what has no mean
        connection = solve(candidate, folder / model).connection
        test[model] = measure(connection)
        validation[model] = connection.record.validation[DECIDES]
    auto = choose(plain.variant(method="auto"), folder / "auto")
    test["auto"] = measure(auto)
    return Run(test, validation, auto.model_name)


def warned(problem: Problem, measure: Callable[[Connection], float], folder: Path) -> str:
    """The paper's method beside the centred closed form on the test, and what a user is told."""
    asked = {"method": "c-mcr", "projector": "mlp", "centre": False}
    named = Problem(problem.config.model_copy(update=asked), problem.data)  # by its name
    made = keep_to(named, folder / "named")
    closed = solve(problem.variant(method="procrustes", centre=True), folder / "closed").connection
    told = "a warning" if warning(folder / "named", made.record) else "no warning"
    return f"c-mcr {measure(made):.3f}  procrustes-centred {measure(closed):.3f}  {told}"


def row(size: int, seed: int, run: Run) -> str:
    """One line of numbers, as they come."""
    cells = "  ".join(f"{model} {value:.3f}" for model, value in run.test.items())
    return f"{size:,} ({seed}): {cells}  takes {run.chosen}"


def table(found: dict[int, list[Run]]) -> str:
    """All of it in Markdown: a row a method, a column a number of pairs; mean ± sd of worlds."""
    models = list(next(iter(found.values()))[0].test)
    lines = ["| | " + " | ".join(f"{size:,}" for size in found) + " |"]
    lines.append("|---|" + "---:|" * len(found))
    for model in models:
        cells = [_spread([run.test[model] for run in runs]) for runs in found.values()]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    behind = [max(max(run.test.values()) - run.test["auto"] for run in runs)
              for runs in found.values()]  # fmt: skip
    lines.append(
        "| auto, behind the best at most | " + " | ".join(f"{b:.3f}" for b in behind) + " |"
    )
    lines.append("| seeds | " + " | ".join(str(len(runs)) for runs in found.values()) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}".replace("0.", ".") if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def agreement(folder: Path) -> None:
    """How validation and test rank the methods: Spearman of each world and number of pairs."""
    import matplotlib
    from scipy.stats import spearmanr

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = sorted(folder.glob("methods-*.json"))
    figure, axes = plt.subplots(1, len(paths), figsize=(3.2 * len(paths), 3.4), squeeze=False,
                                layout="constrained")  # fmt: skip
    for path, axis in zip(paths, axes[0], strict=True):
        world = path.stem.removeprefix("methods-")
        for number, (size, runs) in enumerate(json.loads(path.read_text()).items()):
            each = []
            for one in runs:
                models = list(one["validation"])
                seen = [one["validation"][model] for model in models]
                test = [one["test"][model] for model in models]
                each.append(spearmanr(seen, test)[0])
                label = f"{int(size):,}" if one is runs[0] else None
                axis.plot(np.subtract(seen, max(seen)), test, "o", markersize=3, alpha=0.7,
                          color=f"C{number}", label=label)  # fmt: skip
            print(f"{world} {int(size):,}: Spearman {np.mean(each):.2f} ({len(runs)} worlds)")
        axis.set_title(world)
        axis.set_xlabel("log-likelihood, less the best")
        axis.legend(fontsize=7, title="pairs")
    axes[0][0].set_ylabel("test")
    figure.savefig(folder / "methods-agreement.png", dpi=110)


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
    models = [model for model in next(iter(found.values()))[0].test
              if model not in ("identity", "auto")]  # fmt: skip
    colours = plt.get_cmap("tab20")
    for number, model in enumerate(models):
        closed = model.startswith(("procrustes", "ridge", "cca", "ex-cca"))
        means = [np.mean([run.test[model] for run in runs]) for runs in found.values()]
        axes.plot(list(found), means, "--" if closed else "-", marker="o", markersize=4,
                  color=colours(number), label=model)  # fmt: skip
    picked = [np.mean([run.test["auto"] for run in runs]) for runs in found.values()]
    axes.plot(
        list(found), picked, "o", markersize=11, fillstyle="none", color="black", label="auto"
    )
    axes.set_xscale("log")
    axes.set_xlabel("bridge pairs")
    axes.set_ylabel("mAP, the worse way" if world == "digits" else "first places, both ways")
    axes.set_title(f"The {world} world: audio and images that were never paired")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
