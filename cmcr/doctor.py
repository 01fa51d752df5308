"""`cmcr doctor`: what this machine can run, and what to do about what is missing.

for finding in examine(): print(finding.what, finding.state, finding.cure)
"""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from cmcr.errors import CmcrError

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
    """One thing looked at; `cure` is None where nothing is to be done."""

    what: str
    state: str
    cure: str | None = None


def examine() -> Iterator[Finding]:
    """Everything that decides what can be run here: device, memory, packages, weights."""
    yield from _devices()
    yield from _packages()
    yield from _weights()


def _devices() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding("cpu", f"{cores} cores, {memory:.0f} GiB of memory")
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


def _weights() -> Iterator[Finding]:
    from cmcr.extract import encoder_spec, registered

    for name in registered():
        try:
            spec = encoder_spec(name)
        except CmcrError as problem:
            yield Finding(f"encoder {name}", problem.what, problem.cure)
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
                "--checkpoint",
            )
        for missing in spec.lacks():
            yield Finding(f"encoder {name}", missing.what, missing.cure)
