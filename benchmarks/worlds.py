"""Synthetic worlds in which the truth is known: what `benchmarks/methods.py` measures methods on.

    world = WORLDS["classes"](pairs=900, seed=0)
    world.captions, world.memory, world.test      # of space 1 and space 2 each, (n, D)

Only `captions` are paired. Test row i of space 1 is searched among those of space 2 and back; rows
of the same number in `kinds` match.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

Both = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class World:
    """Embeddings of two spaces; rows are not normalised."""

    captions: Both  # (pairs, D) each: row i of both is one text
    memory: Both  # of the other modality of each space, never paired
    test: Both
    kinds: Both  # what each test row shows, (n,)
    test_modality: tuple[bool, bool] = (True, True)  # False: the test rows of a space are texts


LATENT, HIDDEN, DIM = 12, 512, 128
UNPAIRED, TEST = 10_000, 2_000
BEND, OWN, GAP, NOISE = 1.5, 0.3, 0.7, 0.5  # of the views


@dataclass(frozen=True)
class View:
    """How one modality of one space shows a concept; random, but the same for the same seed."""

    space: int
    modality: int
    seed: int

    def __call__(self, latent: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        """(n, LATENT) → (n, DIM), not normalised."""
        shared = np.random.default_rng((self.seed, self.space))
        own = np.random.default_rng((self.seed, self.space, self.modality))
        seen = bent(latent, shared) + OWN * bent(latent, own)
        offset = own.normal(size=DIM)
        return seen + GAP * offset + NOISE * noise.normal(size=seen.shape)


def bent(latent: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random network with one hidden layer: (n, LATENT) → (n, DIM), variance about 1."""
    first = random.normal(size=(LATENT, HIDDEN)) / np.sqrt(LATENT)
    second = random.normal(size=(HIDDEN, DIM)) / np.sqrt(HIDDEN)
    return np.sin(BEND * latent @ first + random.uniform(0, 6.3, HIDDEN)) @ second * np.sqrt(2)


def smooth(pairs: int, seed: int) -> World:
    """Concepts that fill 12 dimensions evenly, seen through random nonlinear maps.

    Each modality has a map of its own besides its space's, an offset and noise.
    """
    random = np.random.default_rng((pairs, seed))
    concepts, test = random.normal(size=(pairs, LATENT)), random.normal(size=(TEST, LATENT))
    captions, memory, found = [], [], []
    for space in (0, 1):
        captions.append(View(space, 0, seed)(concepts, random))
        memory.append(View(space, 1, seed)(random.normal(size=(UNPAIRED, LATENT)), random))
        found.append(View(space, 1, seed)(test, random))
    kinds = np.arange(TEST)
    return World(_both(captions), _both(memory), _both(found), (kinds, kinds))


def classes(
    pairs: int,
    seed: int,
    dims: tuple[int, int] = (512, 768),
    phrases: int = 1,
    shifted: bool = False,
) -> World:
    """Named classes in two models of different width; what is searched are classes never seen.

    Spectra fall as a power of their rank, each modality has a covariance of its own and lies far
    from the other. `phrases` texts say the same in almost the same way; with `shifted` the memory
    shows other things, more of some than of others, than those that have names.
    """
    random = np.random.default_rng((7, seed))
    latent = 96
    spread = np.arange(1, latent + 1) ** -0.5  # standard deviations: a spectrum of 1/k
    named, unseen, unnamed = (
        random.standard_t(5, size=(count, latent)) * spread
        for count in (-(-pairs // phrases), 400, 400)
    )
    seen, memory, captions, test, kinds = np.repeat(named, phrases, axis=0)[:pairs], [], [], [], []
    shared = [random.normal(size=(latent, dim)) for dim in dims]
    for space, dim in enumerate(dims):
        text, image = (_Modality(shared[space], random) for _ in range(2))
        captions.append(text(seen, 0.15 if phrases > 1 else 0.6))
        shown = unnamed if shifted else np.concatenate([named, unnamed])
        often = random.zipf(1.5, size=len(shown)).clip(max=50) if shifted else np.ones(len(shown))
        drawn = random.choice(len(shown), 6_000, p=often / often.sum())
        memory.append(image(shown[drawn], 2.2))
        if space == 0:
            numbers = np.repeat(np.arange(len(unseen)), 5)
            test.append(image(unseen[numbers], 2.2))
            kinds.append(numbers)
        else:
            test.append(text(unseen, 0.6))
            kinds.append(np.arange(len(unseen)))
        assert dim == captions[-1].shape[1]
    return World(
        _both(captions), _both(memory), _both(test), _both(kinds), test_modality=(True, False)
    )


class _Modality:
    """How a modality of a space shows concepts: mostly as the space does, and in its own way."""

    def __init__(self, shared: np.ndarray, random: np.random.Generator) -> None:
        latent, dim = shared.shape
        self.random = random
        own = random.normal(size=shared.shape)
        stress = np.exp(0.4 * random.normal(size=(latent, 1)))  # of what this modality makes more
        self.map = (stress * (shared + 0.5 * own)) / np.sqrt(dim)
        turn = np.linalg.qr(random.normal(size=(dim, dim)))[0]
        noise = np.arange(1, dim + 1) ** -0.4
        self.noise = turn * (noise / np.linalg.norm(noise))
        self.place = random.normal(size=dim) / np.sqrt(dim)

    def __call__(self, concepts: np.ndarray, noise: float) -> np.ndarray:
        """(n, latent) → (n, dim), not normalised."""
        clean = concepts @ self.map
        length = np.sqrt((clean**2).sum(axis=1).mean())
        disturbed = self.random.normal(size=clean.shape) @ self.noise.T
        return clean + noise * length * disturbed + 2 * length * self.place


def _both(found: list[np.ndarray]) -> Both:
    one, two = found
    return one, two


WORLDS: dict[str, Callable[..., World]] = {
    "synthetic": smooth,
    "classes": classes,
    "phrases": partial(classes, dims=(256, 256), phrases=8),
    "shifted": partial(classes, dims=(384, 256), shifted=True),
}
