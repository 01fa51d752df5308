"""Published weights: found in the Hugging Face cache or fetched, and loaded.

    path = find_weights("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    state = load_state_dict_file(path)  # name → tensor
    with explained(path):               # EncoderErrors, whatever the publisher's loader raises
        model.load_state_dict(state)

The cache is huggingface_hub's own (HF_HOME); HF_HUB_OFFLINE=1 keeps it from the network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from cmcr.errors import CmcrError, EncoderError
from cmcr.weights import WeightsError, read_weights

FIX = (
    "give --checkpoint the publisher's file of this very model, whole: a .safetensors file (with "
    "that suffix), or one that torch.save wrote"
)


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
            fix=f"fetch {filename} there and give the file to --checkpoint, or run once with "
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
    """The tensors of a .safetensors or torch.save file, on the CPU, by name (`read_weights`).

    Raises EncoderError for a file that holds none.
    """
    with explained(path):
        return read_weights(path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever is raised while the weights in `path` are loaded into an EncoderError."""
    try:
        yield
    except CmcrError:
        raise
    except Exception as error:  # a publisher's loader raises what it stumbles over
        raise EncoderError(_wrong(error), where=path, fix=FIX) from error


def _wrong(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, WeightsError):
        return lines[0]
    if isinstance(error, OSError):
        return f"the checkpoint cannot be read: {error.strerror or lines[0]}"
    if isinstance(error, AssertionError):  # open_clip's, for positions of another width
        return f"the checkpoint is of another model: {lines[0][:200]}"
    if lines[0].startswith("Error(s) in loading state_dict"):
        return f"the checkpoint is of another model: {lines[1].strip()[:200]}"
    return f"the checkpoint is damaged or is none: {lines[0][:200]}"
