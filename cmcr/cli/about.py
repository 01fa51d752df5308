"""What is installed, and in what formats: `cmcr encoders`, `doctor`, `pipelines`, `upgrade`."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from cmcr.cli.terminal.console import answer, print_table, say
from cmcr.cli.terminal.options import Json
from cmcr.errors import CmcrError, UsageError


def encoders(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Try on this encoder what extraction promises, a line a check."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights for --check, in the publisher's own layout.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the encoders that are installed, cmcr's own and other packages', or check one."""
    from cmcr.extract import encoder_spec, registered

    if check is not None:
        _check(check, checkpoint, as_json)
        return
    if checkpoint is not None:
        raise UsageError("--checkpoint goes with --check", fix="name an encoder: --check NAME")
    lines: list[dict[str, Any]] = []
    for name, entry in registered().items():
        package = entry.dist.name if entry.dist else "?"
        try:
            spec = encoder_spec(name)
        except CmcrError as problem:
            lines.append({"encoder": name, "package": package, "problem": problem.what})
            continue
        lines.append(
            {
                "encoder": name,
                "modalities": ", ".join(spec.modalities),
                "dim": spec.dim,
                "licence": spec.licence,
                "weights": _weights(spec.weights_present),
                "package": package,
            }
        )
    answer({"encoders": lines}) if as_json else print_table(lines)


def _check(name: str, checkpoint: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from cmcr.extract import check_encoder

    checks = []
    for done in check_encoder(name, checkpoint=checkpoint):
        checks.append(done)
        if not as_json:
            state = "ok    " if done.problem is None else "FAILED"
            print(f"{state}  {done.name}: {done.problem or done.seen}", flush=True)
    if as_json:
        answer({"encoder": name, "checks": [asdict(done) for done in checks]})
    if any(done.problem for done in checks):
        raise typer.Exit(1)


def _weights(present: Callable[[], bool] | None) -> str:
    if present is None:
        return "named after the colon"
    return "present" if present() else "not here"


def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, and what to do about what is missing."""

    lines = [finding._asdict() for finding in examine()]
    answer({"findings": lines}) if as_json else print_table(lines)


def pipelines(as_json: Json = False) -> None:
    """List the recipes that `cmcr run` knows, and say which do not fit."""
    from cmcr.cli.recipes.pipelines import load_pipelines

    loaded = load_pipelines()
    lines: list[dict[str, Any]] = [
        {
            "pipeline": f"{name} (default)" if name == loaded.default else name,
            "encoders": ", ".join(section.encoder for section in recipe.extract),
            "via": ", ".join(one.via or "" for one in recipe.connect),
            "store": str(recipe.store),
            "what": recipe.description,
        }
        for name, recipe in loaded.pipelines.items()
    ]
    lines += [{"pipeline": name, "problem": why.what} for name, why in loaded.problems.items()]
    answer({"pipelines": lines}) if as_json else print_table(lines)


PACKAGES = (
    "torch",
    "open_clip_torch",
    "laion_clap",
    "faiss-gpu",
    "pyarrow",
    "typer",
    "pydantic",
)


class Finding(NamedTuple):
    """One thing looked at; `fix` is None where nothing is to be done."""

    what: str
    state: str
    fix: str | None = None


def examine() -> Iterator[Finding]:
    """Everything that decides what can be run here: device, memory, packages, weights."""
    yield from _devices()
    yield from _packages()
    yield from _weights_here()


def _devices() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding("cpu", f"{cores} cores, {memory:.0f} GiB of memory")
    with suppress(OSError):
        shared = os.statvfs("/dev/shm")
        free = shared.f_bavail * shared.f_frsize / 2**20
        yield Finding(
            "shared memory",
            f"{free:,.0f} MiB free in /dev/shm; decoding processes need none of it",
            "several GPUs in a container do (NCCL): docker run --shm-size 1g"
            if free < 512
            else None,
        )
    if not torch.cuda.is_available():
        yield Finding(
            "cuda",
            "no GPU that PyTorch can use",
            "everything runs on the CPU; for a GPU, a driver for CUDA "
            f"{torch.version.cuda or '(this PyTorch is built without it)'} is needed",
        )
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        total = properties.total_memory / 2**30
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        yield Finding(f"cuda:{number}", f"{properties.name}, {total:.0f} GiB, autocast {half}")


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            if package == "faiss-gpu":
                yield from _faiss_for_the_cpu()
            else:
                yield Finding(package, "not installed", "pip install cmcr")


def _faiss_for_the_cpu() -> Iterator[Finding]:
    try:
        yield Finding("faiss-cpu", version("faiss-cpu"))
    except PackageNotFoundError:
        yield Finding("faiss", "not installed", "pip install cmcr")


def _weights_here() -> Iterator[Finding]:
    from cmcr.extract import encoder_spec, registered

    for name in registered():
        try:
            spec = encoder_spec(name)
        except CmcrError as problem:
            yield Finding(f"encoder {name}", problem.what, problem.fix)
            continue
        if spec.weights_present is None:
            continue
        if spec.weights_present():
            yield Finding(f"encoder {name}", "weights on this machine")
        else:
            yield Finding(
                f"encoder {name}",
                "weights not on this machine",
                "fetched at first use where there is network; else give the publisher's file to "
                f"--checkpoint, to `cmcr run` as --checkpoint {name}=FILE",
            )
        if spec.tokenizer:
            yield Finding(f"encoder {name}", f"tokenizer: {spec.tokenizer}")
        for missing in spec.lacks():
            yield Finding(f"encoder {name}", missing.what, missing.fix)


def upgrade(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """List the formats that a store is written in, and upgrade what is older and can be."""
    from cmcr.connect import upgrade_store

    found = list(upgrade_store(store))
    lines = [{"kind": one.kind, "name": one.name, "format": one.format, "state": one.state}
             for one in found]  # fmt: skip
    if as_json:
        problems = [None if one.problem is None else vars(one.problem) for one in found]
        answer({"found": [line | {"problem": problem}
                          for line, problem in zip(lines, problems, strict=True)]})  # fmt: skip
    else:
        print_table(lines)
    for one in found:
        if one.problem is not None:
            say(f"{one.kind} {one.name}: {one.problem}")
    if not all(one.done for one in found):
        sys.exit(1)
