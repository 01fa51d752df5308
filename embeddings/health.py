"""Whether a dataset's embeddings can tell its rows apart: numbers from a bounded sample.

    health = measure(dataset)
    health.mean_cosine, health.effective_rank, health.duplicates
    health.problem            # None, or why searching these embeddings cannot work

A tower whose outputs are all alike (mean cosine 0.999) trains, connects and gives numbers like any
other; only these say so. The mean cosine of a sound one is not 0: the vectors of one modality lie
in a cone, https://arxiv.org/abs/2203.02053, the narrower the more the inputs are of one kind.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cmcr.embeddings.dataset import Dataset

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

    @property
    def warning(self) -> str:
        """`problem` as a line to put behind another; nothing where there is none."""
        return f"\n  warning: {self.problem}" if self.problem else ""

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
    texts = dataset.table(["text"])["text"].take(chosen).to_pylist()
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
