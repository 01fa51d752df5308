"""laion_clap's HTSAT: which one a checkpoint holds, and its class.

    architecture = architecture_of(state)     # None for other weights than CLAP's
    branch = untrained(architecture)

The package `laion_clap` is never imported: its __init__ puts a folder on sys.path and imports
hook.py and training/data.py, which ask a hub for three tokenizers. The one file that is needed,
clap_module/htsat.py, imports its neighbours relatively, so its folder is given to Python as a
package of another name.
"""

import importlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from cmcr.errors import EncoderError
from cmcr.extract.encoders.models.clap_audio import HIGH_HZ, HOP, LOW_HZ, MELS, N_FFT, SAMPLE_RATE


@dataclass(frozen=True)
class Architecture:
    """Which of laion_clap's HTSAT a checkpoint has: by its size, and with feature fusion or not."""

    size: str
    fusion: bool

    def __str__(self) -> str:
        return f"HTSAT-{self.size} {'with' if self.fusion else 'without'} fusion"


SIZES: Mapping[int, str] = {96: "tiny", 128: "base", 256: "large"}  # by the width of a patch


def architecture_of(state: Mapping[str, Tensor]) -> Architecture | None:
    """What CLAP's weights were trained as; None for other weights."""
    patch = state.get("audio_branch.patch_embed.proj.weight")
    size = None if patch is None else SIZES.get(len(patch))
    if size is None:
        return None
    return Architecture(size, fusion="audio_branch.patch_embed.mel_conv2d.weight" in state)


def untrained(architecture: Architecture) -> Any:
    """laion_clap's HTSAT, untrained."""
    configuration = SimpleNamespace(
        model_name=architecture.size,
        class_num=527,
        sample_rate=SAMPLE_RATE,
        window_size=N_FFT,
        hop_size=HOP,
        mel_bins=MELS,
        fmin=LOW_HZ,
        fmax=HIGH_HZ,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid")  # its window attention builds indices
        return clap_module("htsat").create_htsat_model(
            configuration,
            enable_fusion=architecture.fusion,
            fusion_type="aff_2d" if architecture.fusion else "None",
        )


def clap_module(name: str) -> ModuleType:
    """A file of laion_clap/clap_module, without what laion_clap does when it is imported."""
    package = f"{__package__}._clap_module"
    if package not in sys.modules:
        found = find_spec("laion_clap")
        if found is None or not found.submodule_search_locations:
            raise EncoderError(
                "the package laion_clap, which defines CLAP's audio model, is not installed",
                fix="pip install laion_clap",
            )
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [
            str(Path(folder, "clap_module")) for folder in found.submodule_search_locations
        ]
        sys.modules[package] = module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")
