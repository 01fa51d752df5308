"""The paper's recipes from what publishers offer to tables, in miniature: `make recipes`.

    python tests/recipes.py [FOLDER] [--items 4]

Minutes on two cores. The recipes are those that ship, unedited; the data sets are made up in their
publishers' formats (miniatures.py), the weights random in their publishers' layouts (seeded.py), so
the numbers say nothing. What is checked is printed, a line each; the first that is not so ends it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniatures import MINIATURES, objaverse

WEIGHTS = {
    "clip": "clip-0.safetensors",
    "clap": "630k-fusion-best.pt",
    "ulip": "pointbert_ULIP-2.pt",
}
ENCODERS = {"clip-clap": ("clip", "clap"), "ulip-clip": ("clip", "ulip")}
# What is left of two runs that must be equal: not who held a lock, or when a log was written.
_PASSED_OVER = (".lock", ".locks", "training.jsonl", "inputs.parquet")
INCOMPLETE = 3


def main() -> None:
    """Everything, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--items", type=int, default=4, help="of each data set")
    given = parser.parse_args()
    if given.folder is not None:
        everything(given.folder.absolute(), given.items)
        return
    with tempfile.TemporaryDirectory() as folder:
        everything(Path(folder), given.items)


def everything(folder: Path, items: int) -> None:
    """All checks, in `folder`."""
    started = time.perf_counter()
    offer(folder, items)
    prepare(folder)
    weights(folder / "weights")
    whole = {}
    for recipe in ENCODERS:
        outlook = run(folder, recipe, "--check")
        expect(f"{recipe}: nothing is missing", not outlook["missing"], outlook["missing"])
        whole[recipe] = run(folder, recipe)
        expect(f"{recipe}: {len(tables(whole[recipe]))} tables", whole[recipe]["results"])
        before = state(folder / "stores")
        expect(f"{recipe}: again, the same tables", run(folder, recipe) == whole[recipe])
        after = state(folder / "stores")
        expect(f"{recipe}: and nothing done", before == after, differing(before, after))
    killed(folder, "ulip-clip")
    without(folder, "clip-clap", ("clotho", "flickr-extended"), whole["clip-clap"])
    print(f"ok: all of it in {time.perf_counter() - started:.0f} s")


# Making


def offer(folder: Path, items: int) -> None:
    """The data sets as publishers offer them, below `folder`/published."""
    for name, write in MINIATURES.items():
        if not (folder / "published" / name).exists():
            write(folder / "published" / name, items)
    if not (folder / "data/objaverse").exists():
        objaverse(folder / "data/objaverse", items)


def prepare(folder: Path) -> None:
    """`cmcr prepare` each; its summary is printed."""
    for name in MINIATURES:
        done = cmcr(folder, "prepare", name, "--from", f"published/{name}")
        expect(f"prepare {name}: {done['files']}", done["ready"] and not done["missing"], done)


def weights(folder: Path) -> None:
    """Random weights of the sizes that load, and a tokenizer where the hub's client looks."""
    import seeded

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / WEIGHTS["clip"]).exists():
        seeded.clip_checkpoint(folder, model="ViT-B-32")
    if not (folder / WEIGHTS["clap"]).exists():
        seeded.clap_checkpoint(folder)
    if not (folder / WEIGHTS["ulip"]).exists():
        seeded.ulip_checkpoint(folder)
    if not (folder / "hub").exists():
        seeded.cache_tokenizer(folder / "hub")


# Running


def flags(folder: Path, recipe: str) -> list[str]:
    """The weights of a recipe's encoders."""
    files = ((encoder, folder / "weights" / WEIGHTS[encoder]) for encoder in ENCODERS[recipe])
    return [word for encoder, file in files for word in ("--checkpoint", f"{encoder}={file}")]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cmcr", *words, "--json"]


def environment(folder: Path) -> Mapping[str, str]:
    own = {"HF_HUB_CACHE": str(folder / "weights/hub"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def cmcr(folder: Path, *words: str, code: int = 0) -> Any:
    """The document that a command prints; it must end with `code`."""
    done = subprocess.run(
        command(*words), cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    if done.returncode != code:
        sys.exit(f"FAILED: cmcr {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def run(folder: Path, recipe: str, *words: str, code: int = 0) -> Any:
    """`cmcr run` with the weights."""
    return cmcr(folder, "run", recipe, *flags(folder, recipe), *words, code=code)


def killed(folder: Path, recipe: str) -> None:
    """A run that is killed goes on, and ends with the bytes of one that was not."""
    store = folder / "stores/killed"
    shutil.rmtree(store, ignore_errors=True)
    words = ("run", recipe, *flags(folder, recipe), "--store", "stores/killed")
    process = subprocess.Popen(
        command(*words),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(store.glob("space=*/*/*/manifest.json")):
        if process.poll() is not None:
            sys.exit(f"FAILED: the run that was to be killed ended with {process.returncode}")
        time.sleep(0.05)
    time.sleep(2)  # into the next dataset
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = len(list(store.glob("space=*/*/*/manifest.json")))
    expect(f"{recipe}: killed with {left} datasets finished", process.returncode == -signal.SIGKILL)
    cmcr(folder, *words)
    name = "stores/" + recipe
    one, other = (content(folder / place) for place in (name, "stores/killed"))
    expect(f"{recipe}: gone on with to the same {len(one)} files", one == other,
           differing(one, other))  # fmt: skip


def without(folder: Path, recipe: str, names: Sequence[str], whole: Any) -> None:
    """A run of a recipe some of whose data sets were not prepared does all the rest."""
    for name in names:
        (folder / "data" / name).rename(folder / f"data/{name}-away")
    store = folder / "stores/without"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(folder / "stores" / recipe, store)
    for name in names:
        for made in (*store.glob(f"space=*/*/dataset={name}"),
                     *store.glob(f"space=*/*/dataset={name}-regions")):  # fmt: skip
            shutil.rmtree(made)
    shutil.rmtree(store / "results")
    partial = run(folder, recipe, "--store", "stores/without", code=INCOMPLETE)
    for name in names:
        (folder / f"data/{name}-away").rename(folder / "data" / name)
    lost = {table for table in tables(whole) if any(name in table for name in names)}
    expect(f"{recipe}: without {' and '.join(names)} all other tables",
           lost and tables(partial) == tables(whole) - lost, tables(partial))  # fmt: skip
    fixes = " ".join(lack["fix"] for lack in partial["missing"])
    expect(f"{recipe}: and how to get them", all(f"cmcr prepare {name}" in fixes for name in names))


# Looking


def tables(document: Any) -> set[str]:
    """What was measured, by task and places."""
    return {
        f"{row['task']} {row['dataset']} {row.get('query')} {row.get('gallery')}"
        for row in document["results"]
    }


def state(folder: Path) -> dict[str, int]:
    """Every file with its time of change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(store: Path) -> dict[str, bytes]:
    """Parts, manifests, indexes and weights of connections, by their place in the store."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for folder in ("space=*", "connections")
        for path in sorted(store.glob(f"{folder}/**/*"))
        if path.is_file() and not any(part in _PASSED_OVER for part in path.parts)
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which they differ."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def expect(what: str, so: object, seen: object = "") -> None:
    """Print what was checked; end where it is not so."""
    print(f"{'ok' if so else 'FAILED'}: {what}", flush=True)
    if not so:
        sys.exit(f"  seen: {seen}")


if __name__ == "__main__":
    main()
