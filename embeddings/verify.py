"""Look at a whole store: what there is (`cmcr info`), and whether it is ok (`cmcr verify`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from cmcr.embeddings.index import ABOUT, INDEX, about_index
from cmcr.embeddings.parts import RELIST, read_failures
from cmcr.embeddings.reader import Dataset, check_part, list_datasets, open_dataset
from cmcr.embeddings.schema import FAILURES, Key
from cmcr.embeddings.writer import fresh_store
from cmcr.errors import CmcrError, StoreError, UsageError
from cmcr.files import sha256_file


class Verdict(NamedTuple):
    """One checked dataset; `problem` is None when it is ok."""

    key: Key
    rows: int
    problem: CmcrError | None


def check_store(store: Path) -> None:
    """Raise UsageError for a folder that is not there or holds nothing of a store."""
    if not store.is_dir():
        raise UsageError("there is no store", where=store, fix="`cmcr extract` makes one")
    if not _is_store(store):
        below = [str(folder) for folder in sorted(store.iterdir()) if _is_store(folder)]
        raise UsageError(
            "the folder is no store: it has no space=… in it, nor connections or results",
            where=store,
            fix=f"name one of: {', '.join(below)}" if below else "`cmcr extract` makes one",
        )


def _is_store(folder: Path) -> bool:
    return any(folder.glob("space=*")) or any(
        (folder / name).is_dir() for name in ("connections", "results")
    )


def describe_store(store: Path) -> list[dict[str, Any]]:
    """One line a dataset: space, modality, dataset, rows, failures, dim, encoder, checkpoint.

    One that cannot be read has its `problem` instead. Raises UsageError for what is no store.
    """
    check_store(store)
    lines: list[dict[str, Any]] = []
    for key in list_datasets(store):
        line: dict[str, Any] = {
            "space": key.space,
            "modality": key.modality,
            "dataset": key.dataset,
        }
        try:
            manifest = open_dataset(store, key, check=False).manifest
        except StoreError as error:
            lines.append(line | {"problem": error.what})
            continue
        lines.append(
            line
            | {
                "rows": manifest.rows,
                "failures": manifest.failures,
                "dim": manifest.dim,
                "encoder": manifest.encoder.get("encoder"),
                "checkpoint": manifest.encoder.get("checkpoint_sha256"),
            }
        )
    return lines


def verify_store(store: Path) -> Iterator[Verdict]:
    """Re-hash and check every dataset: parts, norms, failures, index. Stops at no damage.

    Ids may occur more than once: several captions of one image share its id. An update that was
    not finished is named, too.
    """
    check_store(store)
    for key in list_datasets(fresh_store(store)):
        yield Verdict(key, 0, _unfinished_update(store, key))
    for key in list_datasets(store):
        problems = list(_problems(store, key))
        yield from (Verdict(key, 0, problem) for problem in problems)
        if not problems:
            yield Verdict(key, open_dataset(store, key, check=False).rows, None)


def _problems(store: Path, key: Key) -> Iterator[CmcrError]:
    """Everything that is wrong with a dataset."""
    folder = key.folder(store)
    problem = _problem_of(folder, lambda: open_dataset(store, key))
    if problem is None:
        dataset = open_dataset(store, key, check=False)
        checks = [partial(_check_rows, dataset)]
    elif _problem_of(folder, lambda: open_dataset(store, key, check=False)) is not None:
        yield problem  # of the manifest: nothing else can be said
        return
    else:
        dataset = open_dataset(store, key, check=False)
        parts, manifest = dataset.manifest.parts, dataset.manifest
        checks = [partial(check_part, folder, part, manifest) for part in parts]
    for check in (*checks, partial(_check_failures, dataset), partial(_check_index, dataset)):
        if (problem := _problem_of(folder, check)) is not None:
            yield problem


def _problem_of(folder: Path, check: Callable[[], object]) -> CmcrError | None:
    """What goes wrong in a check, as an error that can be told."""
    try:
        check()
    except CmcrError as problem:
        return problem
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        return StoreError(f"it cannot be read: {what}", where=folder)
    return None


def _unfinished_update(store: Path, key: Key) -> StoreError:
    return StoreError(
        "an update was not finished; the dataset is as it was before",
        where=key.folder(fresh_store(store)),
        fix="run `cmcr extract` with --update again, or delete that folder",
    )


def _check_rows(dataset: Dataset) -> None:
    for part, block in zip(dataset.manifest.parts, dataset.parts(), strict=True):
        norms = np.linalg.norm(block.astype(np.float32), axis=1)  # (rows,)
        if np.abs(norms - 1).max(initial=0) > 1e-2:
            raise StoreError("an embedding is not a unit vector", where=dataset.folder / part.name)


def _check_failures(dataset: Dataset) -> None:
    path = dataset.folder / FAILURES
    recorded = len(read_failures(dataset.folder))
    if recorded != dataset.manifest.failures:
        raise StoreError(
            f"{recorded} failures are listed, the manifest counts {dataset.manifest.failures}",
            where=path,
            fix=RELIST,
        )


def _check_index(dataset: Dataset) -> None:
    about = about_index(dataset.folder)
    path = dataset.folder / INDEX
    if about is None:
        if path.exists():
            raise StoreError("an index without its description", where=path, fix=_REBUILD)
        return
    if about["manifest_sha256"] != dataset.fingerprint:
        raise StoreError("the index is of other rows", where=dataset.folder / ABOUT, fix=_REBUILD)
    if not path.exists() or sha256_file(path) != about["sha256"]:
        raise StoreError("the index is not the one that was built", where=path, fix=_REBUILD)


_REBUILD = "delete index.json and index.faiss and run the extract command again"

SAMPLE = 1_024  # rows, evenly spaced over the dataset
FEWEST = 10  # different inputs, below which nothing is concluded
ALIKE = 0.99  # mean cosine above which rows cannot be told apart
LINE = 2.0  # effective rank below which they lie on a line; half precision alone makes it 1.6
REPEATED = 0.9  # share of different inputs that have the vector of one before
ROUNDING = 1e-12  # squared singular values, a row, that are nothing but rounding


@dataclass(frozen=True)
class Health:
    """Of a sample of `rows`: mean cosine of two of them, effective rank, share of duplicates.

    The effective rank is that of Roy and Vetterli (EUSIPCO 2007), exp of the entropy of the
    normalised singular values, of the rows with their mean taken off: how many directions there
    are in which they differ. `duplicates` is the share of rows whose vector a row before has.
    `problem` says why no search can work on such vectors; None where nothing is wrong, or where
    there are too few different inputs to say.
    """

    rows: int
    mean_cosine: float
    effective_rank: float
    duplicates: float
    problem: str | None = None

    def __str__(self) -> str:
        return (
            f"mean cosine {self.mean_cosine:.3f}, effective rank {self.effective_rank:.1f}, "
            f"{self.duplicates:.0%} duplicates"
        )


def measure(dataset: Dataset) -> Health | None:
    """The health of `dataset`; None where it has less than two rows."""
    if dataset.rows < 2:
        return None
    chosen = np.unique(np.linspace(0, dataset.rows - 1, SAMPLE).astype(np.int64))  # (n,)
    vectors = _rows(dataset, chosen)
    numbers = _numbers(vectors)
    problem = _problem(vectors, numbers)
    if problem and dataset.key.modality == "text":
        vectors = vectors[_different_texts(dataset, chosen)]
        problem = _problem(vectors, _numbers(vectors))
    if problem:
        problem = (
            f"the embeddings of {dataset.key} {problem}, so nothing can be found among them; "
            "are these the right weights, and do the inputs differ?"
        )
    return Health(len(chosen), *numbers, problem)


def _rows(dataset: Dataset, chosen: np.ndarray) -> Float[np.ndarray, "rows dim"]:
    """Rows of these numbers, ascending, read from the parts."""
    picked, start = [], 0
    for block in dataset.parts():
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        picked.append(block[chosen[first:last] - start].astype(np.float32))
        start += len(block)
    return np.concatenate(picked)


def _different_texts(dataset: Dataset, chosen: np.ndarray) -> np.ndarray:
    """Which of the chosen have a text that none before has; all where texts are not known."""
    texts = [line["text"] for line in dataset.lines(["text"], chosen)]
    first = {text: row for row, text in reversed([*enumerate(texts)])}
    return np.arange(len(chosen)) if None in first else np.sort([*first.values()])


def _numbers(vectors: Float[np.ndarray, "rows dim"]) -> tuple[float, float, float]:
    """Mean cosine of two rows, effective rank, share of duplicates; of one row 1, 0 and 0."""
    count = len(vectors)
    if count < 2:
        return 1.0, 0.0, 0.0
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    # |sum of rows|² holds every pair twice, and each row with itself.
    cosine = (np.square(exact.sum(axis=0)).sum() - count) / (count * (count - 1))
    centred = exact - exact.mean(axis=0)
    gram = centred.T @ centred if centred.shape[1] < count else centred @ centred.T
    squares = np.linalg.eigvalsh(gram)
    singular = np.sqrt(squares[squares > ROUNDING * count])
    share = singular / singular.sum()
    rank = float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
    return float(cosine), rank, 1 - len(np.unique(vectors, axis=0)) / count


def _problem(
    vectors: Float[np.ndarray, "rows dim"], numbers: tuple[float, float, float]
) -> str | None:
    """What is wrong with vectors of different inputs; None where nothing is, or they are few."""
    cosine, rank, duplicates = numbers
    if len(vectors) < FEWEST:
        return None
    if cosine > ALIKE:
        return f"are nearly all alike (mean cosine {cosine:.4f})"
    if duplicates > REPEATED:
        return f"repeat ({duplicates:.0%} of the inputs have the vector of one before)"
    if rank < LINE and vectors.shape[1] > 2:
        return f"lie on a line (effective rank {rank:.2f})"
    return None
