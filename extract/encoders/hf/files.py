"""The files of a model of transformers: a folder, or a repository of the hub in the local cache.

    folder = find_folder("openai/clip-vit-base-patch32")   # or "./my-model", "OWNER/NAME@REVISION"
    weights_sha256(folder)

What is fetched are configurations, vocabularies and safetensors; pickles stay where they are.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from cmcr.embeddings.schema import canonical_json
from cmcr.errors import EncoderError, UsageError
from cmcr.files import sha256_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FETCHED = ("*.json", "*.txt", "*.model", "*.jinja", WEIGHTS, "model-*-of-*.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

# Of config.json: who wrote it and how the weights were stored, not what is computed.
_UNSAID = frozenset(["_name_or_path", "architectures", "dtype", "torch_dtype"])


def find_folder(place: str) -> Path:
    """The folder that `place` names: a folder, or OWNER/NAME[@REVISION] of the hub.

    A repository comes from the cache where it is there, else it is fetched. Raises UsageError for
    what can be neither, EncoderError for what is not there and cannot be fetched.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = place.partition("@")
    if not _REPOSITORY.fullmatch(repository) or repository.startswith("."):
        raise UsageError(
            f"hf:{place} is no folder, and no repository of the hub has such a name",
            where=folder.absolute(),
            fix="name a folder that save_pretrained wrote, or OWNER/NAME[@REVISION]",
        )
    return _snapshot(repository, revision or None)


def _snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    def fetch(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(FETCHED),
                local_files_only=local_files_only,
            )
        )

    try:
        cached = fetch(local_files_only=True)
    except FileNotFoundError:  # what the hub's client raises for an empty cache
        cached = None
    if cached is not None and (has_weights(cached) or pickled_weights(cached)):
        return cached
    named = f"{repository}@{revision}" if revision else repository
    download = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    try:
        return fetch(local_files_only=False)
    except Exception as error:  # the hub's and its HTTP client's errors share no other class
        raise EncoderError(
            f"the model {named} is not on this machine and could not be fetched "
            f"({type(error).__name__})",
            where=f"https://huggingface.co/{repository}; it is not in {HF_HUB_CACHE}, and there "
            "is no folder of that name",
            fix=f"`{download}` where there is network and without HF_HUB_OFFLINE, or give a copy "
            "of it as --encoder hf:./FOLDER",
        ) from error


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors under the names that transformers reads."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def pickled_weights(folder: Path) -> list[str]:
    """The names of the weights in `folder` that would have to be unpickled."""
    return sorted(path.name for path in folder.glob("*.bin") if "training" not in path.name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, one or the shards that its index names.

    Raises EncoderError when there are none, only pickled ones, or not all.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise EncoderError(
                f"{len(missing)} of the {len(files)} files of weights are not there: "
                f"{', '.join(missing[:3])}",
                where=folder / INDEX,
                fix="bring the whole model; `hf download` completes a repository in the cache",
            )
        return files
    if pickled := pickled_weights(folder):
        raise EncoderError(
            f"the weights are only there as a pickle ({', '.join(pickled[:3])}), and pickles are "
            "never loaded",
            where=folder,
            fix='convert a model that you trust once: python -c "from transformers import '
            f"AutoModel, AutoProcessor; m = '{folder}'; AutoModel.from_pretrained(m)"
            ".save_pretrained('converted'); AutoProcessor.from_pretrained(m)"
            ".save_pretrained('converted')\", then --encoder hf:./converted; of a repository a "
            "revision with model.safetensors may exist: hf:OWNER/NAME@refs/pr/N",
        )
    raise EncoderError(
        f"there are no weights here, neither {WEIGHTS} nor {INDEX}",
        where=folder,
        fix="name the folder that save_pretrained wrote; a repository that has only "
        "pytorch_model.bin must be converted first",
    )


def weights_sha256(folder: Path) -> str:
    """The hash of the weights: of the file, or of the names and hashes of the shards."""
    files = weight_files(folder)
    if len(files) == 1:
        return sha256_file(files[0])
    hashes = canonical_json({file.name: sha256_file(file) for file in files})
    return hashlib.sha256(hashes.encode()).hexdigest()


def config_sha256(folder: Path) -> str:
    """The hash of what config.json says about the computation (activations, epsilons, layers)."""
    return hashlib.sha256(
        canonical_json(_said(read_json(folder / "config.json"))).encode()
    ).hexdigest()


def _said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _said(one)
            for key, one in value.items()
            if key not in _UNSAID and not key.endswith("transformers_version")
        }
    return [_said(one) for one in value] if isinstance(value, list) else value


def tokenizer_sha256(folder: Path, vocabulary: Mapping[str, str]) -> str:
    """The hash of tokenizer.json, else of the files of `vocabulary` (kind → file name) there."""
    if (folder / "tokenizer.json").is_file():
        return sha256_file(folder / "tokenizer.json")
    names = sorted(name for name in vocabulary.values() if (folder / name).is_file())
    hashes = canonical_json({name: sha256_file(folder / name) for name in names})
    return hashlib.sha256(hashes.encode()).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises EncoderError when there is none."""
    try:
        value = json.loads(file.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError as error:
        raise EncoderError(
            f"this is no model of transformers: it has no {file.name}",
            where=file.parent,
            fix="name a folder that save_pretrained wrote, or OWNER/NAME of the hub",
        ) from error
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{file.name} cannot be read: {error}", where=file, fix="bring the file again"
        ) from error
    return value


def first_line(error: Exception) -> str:
    """What an error of transformers says, short enough for ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor warnings of transformers: what matters becomes an error here."""
    logging: Any = import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
