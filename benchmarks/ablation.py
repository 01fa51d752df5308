"""What each piece of C-MCR is worth: train with and without it, over several seeds.

    cmcr run digits                                  # once: embeds the sources
    python benchmarks/ablation.py                    # five seeds of each variant
    python benchmarks/ablation.py --pipeline digits --seeds 10 --set epochs=100
    python benchmarks/ablation.py --centric          # what ex-mcr's training rows are centred on

Prints a Markdown table of mAP and hit rates for the first retrieval pair of the pipeline, both
ways: mean ± standard deviation over the seeds, beside chance and the closed forms, which have no
seed. Trained connections stay in STORE/ablation, so a second run only evaluates them.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from cmcr.cli.recipes.pipelines import load_pipelines, parse_place
from cmcr.connect import baselines, connect, load_connection, read_config, with_overrides
from cmcr.embeddings import Key, open_dataset
from cmcr.evaluate import Items, rank_both_ways, select

VARIANTS = {
    "c-mcr": (),
    "without noise (σ² = 0)": ("noise_variance=0",),
    "without intra term (λ = 0)": ("intra_weight=0",),
    "without pseudo pairs (L_avc = 0)": ("pseudo_weight=0",),
}
# T, A and I of Ex-MCR: rows aggregated from texts, and from the memory of either space.
CENTRIC = {
    f"ex-mcr, {' + '.join(names)}": ("method=ex-mcr", f"centric=[{', '.join(names)}]")
    for names in (
        ("bridge",), ("first",), ("second",), ("bridge", "first"), ("bridge", "second"),
        ("first", "second"), ("bridge", "first", "second"),
    )
}  # fmt: skip
METRICS = ("mAP", "hit_rate@1", "hit_rate@5", "hit_rate@10")

Values = dict[tuple[str, str, str], list[float]]  # (query, model, metric) → one value a seed


def main() -> None:
    """Read the flags, train, evaluate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", help="named recipe (the default one if left out)")
    parser.add_argument("--store", type=Path, help="embedding store (the recipe's)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--centric", action="store_true", help="ex-mcr by its training rows")
    flags = parser.parse_args()

    pipeline = load_pipelines().named(flags.pipeline)
    store = flags.store or pipeline.store
    config = with_overrides(read_config(pipeline.connect[0].config), flags.settings)
    pair = pipeline.evaluate.retrieval[0]
    query, gallery = _items(store, pair.query), _items(store, pair.gallery)

    values: Values = defaultdict(list)
    variants = CENTRIC if flags.centric else VARIANTS
    for number, (variant, overrides) in enumerate(variants.items()):
        for seed in range(flags.seeds):
            name = f"centric-{number}-{seed}" if flags.centric else f"{number}-{seed}"
            changed = with_overrides(config, [*overrides, f"seed={seed}"])
            out = store / "ablation" / name
            made = connect(store, changed, name=name, out=out, device=flags.device)
            models = {variant: load_connection(made.path)}
            wanted = {variant}
            if not values:  # what has no seed is measured once
                models = baselines(store, made.record) | models
                wanted = {"chance", *models}
            for ranking in rank_both_ways(models, query, gallery):
                row = ranking.row
                if row["model"] in wanted:
                    _collect(values, row["model"], row["query"], row["metrics"])
    print(table(values))


def table(values: Values) -> str:
    """A Markdown table: a line for each model and direction, a column for each metric."""
    lines = [
        f"| query | model | {' | '.join(METRICS)} |",
        f"|---|---|{'---|' * len(METRICS)}",
    ]
    for query, model in sorted(dict.fromkeys(key[:2] for key in values), key=lambda key: key[0]):
        cells = [_cell(values[query, model, metric]) for metric in METRICS]
        lines.append(f"| {query} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _items(store: Path, place: str) -> Items:
    space, modality, dataset = parse_place(place)
    return select(open_dataset(store, Key(space, modality, dataset or "")))


def _collect(values: Values, model: str, query: str, metrics: dict[str, float]) -> None:
    for metric in METRICS:
        values[query, model, metric].append(metrics[metric])


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


if __name__ == "__main__":
    main()
