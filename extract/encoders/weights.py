"""Published weights: found in the Hugging Face cache or fetched, and read without unpickling.

    path = find_weights("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    state = load_state_dict_file(path)  # name → tensor
    with explained(path):               # EncoderErrors, whatever the publisher's loader raises
        model.load_state_dict(state)

The cache is huggingface_hub's own (HF_HOME); HF_HUB_OFFLINE=1 keeps it from the network.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcr.errors import CmcrError, EncoderError


def find_weights(repo: str, filename: str) -> Path:
    """Where `filename` of the hub repository `repo` lies, fetched if it is not in the cache.

    The repository of a data set is named `datasets/OWNER/NAME`. Raises EncoderError when the
    file is neither in the cache nor to be had.
    """
    from huggingface_hub import hf_hub_download

    cached = _cached(repo, filename)
    if cached is not None:
        return cached
    name, kind = _repository(repo)
    try:
        return Path(hf_hub_download(name, filename, repo_type=kind))
    except Exception as error:  # the hub's and its HTTP client's errors share no other class
        raise EncoderError(
            f"the weights {filename} are not on this machine and could not be fetched "
            f"({type(error).__name__})",
            where=f"published as https://huggingface.co/{repo}/blob/main/{filename}",
            cure=f"fetch {filename} there and give the file to --checkpoint, or run once with "
            "network and without HF_HUB_OFFLINE",
        ) from error


def weights_cached(repo: str, filename: str) -> bool:
    """Whether `filename` of `repo` (as in `find_weights`) is in the cache."""
    return _cached(repo, filename) is not None


def _cached(repo: str, filename: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    name, kind = _repository(repo)
    found = try_to_load_from_cache(name, filename, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def _repository(repo: str) -> tuple[str, str]:
    """The hub's id and type of a repository."""
    if repo.startswith("datasets/"):
        return repo.removeprefix("datasets/"), "dataset"
    return repo, "model"


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch.save file, on the CPU, by name.

    A nested "state_dict" is taken out, and the prefix `module.` of data-parallel training is
    cut off. Wrap the call in `torch.serialization.safe_globals([...])` where a publisher's file
    holds harmless classes beside the tensors.

    Raises EncoderError for a file that cannot be read so.
    """
    with explained(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
        tensors = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if not tensors:
            raise ValueError("no tensors by name")
        return tensors


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever is raised while the weights in `path` are loaded into an EncoderError."""
    try:
        if is_torchscript(path):
            raise ValueError("this is a TorchScript archive, a program")
        yield
    except CmcrError:
        raise
    except Exception as error:  # a publisher's loader raises what it stumbles over
        raise EncoderError(_wrong(error), where=path, cure=_cure(error, path)) from error


def _cure(error: Exception, path: Path) -> str:
    whole = (
        "give --checkpoint the publisher's file of this very model, whole: a .safetensors file "
        "(with that suffix), or one that torch.save wrote of a state dict"
    )
    if not isinstance(error, pickle.UnpicklingError):
        return whole
    return (
        f"{whole}. A file that you trust with your account can be converted once: "
        f"python -c \"import torch; s = torch.load('{path.name}', 'cpu', weights_only=False); "
        "torch.save(s.get('state_dict', s), 'weights.pt')\""
    )


def _wrong(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, pickle.UnpicklingError):
        return "the checkpoint is damaged or holds more than weights; pickles are never loaded"
    if isinstance(error, OSError):
        return f"the checkpoint cannot be read: {error.strerror or lines[0]}"
    if lines[0].startswith("Error(s) in loading state_dict"):
        return f"the checkpoint is of another model: {lines[1].strip()[:200]}"
    return f"the checkpoint is damaged or is none: {lines[0][:200]}"


def is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote `path`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
