"""What extraction promises of every encoder, tried on one: `cmcr encoders --check NAME`.

    for check in check_encoder("my-encoder", checkpoint=Path("weights.pt")):
        print(check.name, check.problem or check.seen)

Three tiny inputs a modality go through the encoder by themselves and through `extract`.
The promise about bytes: the same inputs, --part-rows and --batch-size give the same bytes, whoever
makes which part, with whatever --workers, and whatever was interrupted. Another --batch-size adds
numbers up in another order, so it gives the same vectors to a cosine of `COSINE`.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Key, Modality, open_dataset
from cmcr.embeddings.schema import as_json, canonical_json
from cmcr.errors import MismatchError
from cmcr.extract.contract_inputs import write_inputs
from cmcr.extract.embed import extract
from cmcr.extract.encoders.registry import Encoder, EncoderSpec, encoder_spec, load_encoder
from cmcr.extract.engine.encode import check_norms, check_shape
from cmcr.extract.engine.summary import Summary
from cmcr.extract.media.decode import decode
from cmcr.extract.media.readers import SUFFIXES, reader_of
from cmcr.extract.sources.open import open_source
from cmcr.extract.sources.source import Source

COSINE = 0.99999
PART_ROWS, BATCH = 2, 2  # of three inputs: two parts


@dataclass(frozen=True)
class Check:
    """One promise that was tried. `problem` says what is broken, `seen` what was measured."""

    name: str
    problem: str | None = None
    seen: str = ""


class BrokenPromiseError(Exception):
    """A promise that is not kept, in one sentence."""


@dataclass(frozen=True)
class Bench:
    """One modality of an encoder, loaded twice, with inputs and a folder for stores."""

    encoder: Encoder
    again: Encoder
    modality: Modality
    folder: Path

    @cached_property
    def source(self) -> Source:
        """The three inputs."""
        return open_source(self.modality, str(write_inputs(self.folder, self.modality)))

    @cached_property
    def inputs(self) -> Tensor:
        """They, preprocessed: (3, ...)."""
        return torch.stack(preprocessed(self.encoder.preprocess, self))

    def extract(self, store: str, encoder: Encoder | None = None, **options: Any) -> Summary:
        """`extract` the three into a store of this folder."""
        usual = {"part_rows": PART_ROWS, "batch_size": BATCH, "workers": 0, "index": None}
        return extract(
            self.folder / store,
            encoder or self.encoder,
            self.source,
            "three",
            **(usual | options),
        )

    def files(self, store: str) -> dict[str, bytes]:
        """What there is to see of that dataset, by name."""
        folder = self.key.folder(self.folder / store)
        return {
            path.name: path.read_bytes()
            for path in sorted(folder.glob("*"))
            if not path.name.startswith(".")
        }

    def vectors(self, store: str) -> np.ndarray:
        """The stored vectors, (3, D) float32."""
        return open_dataset(self.folder / store, self.key).embeddings().astype(np.float32)

    @property
    def key(self) -> Key:
        """The dataset."""
        return Key(self.encoder.name, self.modality, "three")

    def expect_undisturbed(self, store: str) -> str:
        """Raise BrokenPromiseError unless `store` holds the bytes of `whole`."""
        whole, other = self.files("whole"), self.files(store)
        differ = [
            name for name in whole.keys() | other.keys() if whole.get(name) != other.get(name)
        ]
        if differ:
            raise BrokenPromiseError(
                f"other bytes than an undisturbed run in {', '.join(sorted(differ))}"
            )
        return f"{len(whole)} files, the same bytes"


class Changed:
    """`encoder` with some of its attributes replaced."""

    def __init__(self, encoder: Encoder, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.original = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def changed(encoder: Encoder, **replaced: Any) -> Encoder:
    """`encoder`, with `replaced` instead of its own attributes."""
    return cast(Encoder, Changed(encoder, **replaced))


def check_encoder(spec: str, *, checkpoint: Path | None = None) -> Iterator[Check]:
    """Try every promise on the encoder that NAME or NAME:VARIANT names, one after another.

    A check that raises is one that failed, and the rest go on. Raises UsageError for an unknown
    name, EncoderError when the weights cannot be loaded.
    """
    said = encoder_spec(spec)
    encoder, again = (load_encoder(spec, checkpoint=checkpoint) for _ in range(2))
    given = ":" in spec or checkpoint is not None  # other weights may have other dimensions
    yield tried("is what its EncoderSpec says", partial(as_said, encoder, said, given))
    yield tried("fingerprint", partial(fingerprint, encoder, again))
    for modality in sorted(encoder.modalities):
        with TemporaryDirectory() as folder:
            bench = Bench(encoder, again, modality, Path(folder))
            for name, check in PROMISES.items():
                yield tried(f"{modality}: {name}", partial(check, bench))


def tried(name: str, check: Callable[[], str]) -> Check:
    """The outcome of one check."""
    try:
        return Check(name, seen=check())
    except BrokenPromiseError as broken:
        return Check(name, str(broken))
    except Exception as error:  # an encoder of somebody else's may raise what it likes
        return Check(name, f"{type(error).__name__}: {error}".replace("\n", " "))


def as_said(encoder: Encoder, said: EncoderSpec, given: bool) -> str:
    """Modalities and dimensions; where weights were `given` they may be others than the default."""
    if not encoder.modalities or not encoder.modalities <= set(said.modalities):
        raise BrokenPromiseError(
            f"it takes {set(encoder.modalities)}, the EncoderSpec says {said.modalities}"
        )
    if not given and (encoder.modalities, encoder.dim) != (frozenset(said.modalities), said.dim):
        raise BrokenPromiseError(
            f"it takes {set(encoder.modalities)} to {encoder.dim} values, the EncoderSpec says "
            f"{said.modalities} and {said.dim}"
        )
    Key(encoder.name, "text", "any")  # its name can be a space's
    for modality in said.modalities:
        if modality in SUFFIXES:
            if modality in said.readers:
                raise BrokenPromiseError(f"cmcr reads {modality} itself, not by a Reader")
        elif len(reader.examples if (reader := said.readers.get(modality)) else ()) < 3:
            raise BrokenPromiseError(
                f"the EncoderSpec's `readers` have no three examples of {modality}"
            )
    return f"{', '.join(sorted(encoder.modalities))}, {encoder.dim} values"


def fingerprint(encoder: Encoder, again: Encoder) -> str:
    """It is JSON, says which weights and which preprocessing, and says so again."""
    first, second = as_json(encoder.fingerprint()), as_json(again.fingerprint())
    for field in ("checkpoint_sha256", "preprocessing"):
        if not first.get(field):
            raise BrokenPromiseError(f"it does not say {field}")
    if canonical_json(first) != canonical_json(second):
        differ = [name for name in first | second if first.get(name) != second.get(name)]
        raise BrokenPromiseError(f"the encoder, loaded again, says another {', '.join(differ)}")
    return f"checkpoint {str(first['checkpoint_sha256'])[:8]}"


def preprocessed(preprocess: Callable[[Modality, Any], Tensor], bench: Bench) -> list[Tensor]:
    """Each of the three, decoded and preprocessed."""
    items = list(bench.source.items())
    reader = reader_of(bench.modality)
    return [preprocess(bench.modality, decode(bench.modality, item, reader)) for item in items]


def preprocesses(bench: Bench) -> str:
    """Tensors of one shape, the same each time and in a worker process."""
    first = preprocessed(bench.encoder.preprocess, bench)
    shapes = {(tuple(one.shape), one.dtype) for one in first}
    if len(shapes) > 1:
        raise BrokenPromiseError(f"inputs become tensors that cannot be stacked: {shapes}")
    sent = pickle.dumps(bench.encoder.preprocess)
    # These are the bytes of the line above, as a worker gets them.
    others = {"a second time": bench.encoder.preprocess, "once pickled": pickle.loads(sent)}
    for how, preprocess in others.items():
        for one, other in zip(first, preprocessed(preprocess, bench), strict=True):
            if not torch.equal(one.nan_to_num(), other.nan_to_num()):
                raise BrokenPromiseError(f"preprocessed {how}, an input is another tensor")
    kind = str(first[0].dtype).removeprefix("torch.")
    return f"{tuple(first[0].shape)} {kind}, {len(sent):,} bytes pickled"


def encode(bench: Bench, inputs: Tensor) -> np.ndarray:
    """`inputs` as float32 vectors, checked: (items, D)."""
    output = bench.encoder.encode(bench.modality, inputs)
    check_shape(bench.encoder, bench.modality, len(inputs), output)
    vectors: np.ndarray = output.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise BrokenPromiseError("a vector holds NaN or infinity")
    check_norms(bench.encoder, bench.modality, vectors)
    return vectors


def unit_rows(bench: Bench) -> str:
    """A finite unit row for each input, and not the same for all."""
    vectors = encode(bench, bench.inputs)
    if (vectors == vectors[0]).all():
        raise BrokenPromiseError("three different inputs have one vector")
    furthest = np.abs(np.linalg.norm(vectors, axis=1) - 1).max()
    return f"{vectors.shape}, norms to {furthest:.0e}"


def company(bench: Bench) -> str:
    """An input's vector does not depend on what else is in the batch."""
    together = encode(bench, bench.inputs)
    alone = np.concatenate([encode(bench, one[None]) for one in bench.inputs])
    return expect_near(together, alone)


def expect_near(expected: np.ndarray, other: np.ndarray) -> str:
    """Raise BrokenPromiseError where the cosine of two rows of one input is less than COSINE."""
    cosine = cosines(expected, other).min()
    if not cosine >= COSINE:
        raise BrokenPromiseError(
            f"cosine {cosine:.6f} with the same input elsewhere, less than {COSINE}"
        )
    return "the same" if np.array_equal(expected, other) else f"cosine {min(cosine, 1):.7f}"


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each row with its partner, (rows,), of unit rows in whatever precision."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / norms)


def twice(bench: Bench) -> str:
    """The same command again, the encoder loaded anew, decodes nothing and changes no byte."""

    def refuse(modality: Modality, item: Any) -> Tensor:
        raise BrokenPromiseError("the second run decodes an input again")

    bench.extract("whole")
    before = bench.files("whole")
    summary = bench.extract("whole", changed(bench.again, preprocess=refuse))
    if summary.made or bench.files("whole") != before:
        raise BrokenPromiseError(f"the second run made {summary.made} rows again")
    return f"{summary.rows} rows, up to date"


def interrupted(bench: Bench) -> str:
    """Stopped behind the first part, the same command goes on and ends with the same bytes."""
    calls = 0

    def stopped(modality: Modality, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # the batch of the second part
            raise KeyboardInterrupt
        return bench.encoder.encode(modality, batch)

    try:
        bench.extract("stopped", changed(bench.encoder, encode=stopped))
    except KeyboardInterrupt:
        bench.extract("stopped", bench.again)
    else:
        raise BrokenPromiseError("extract did not encode batch by batch")
    return bench.expect_undisturbed("stopped")


def sharded(bench: Bench) -> str:
    """Two shards, the last one first, end with the same bytes."""
    for shard in (1, 0):
        bench.extract("sharded", shard_index=shard, num_shards=2)
    return bench.expect_undisturbed("sharded")


def with_worker(bench: Bench) -> str:
    """A process that decodes gives the same bytes."""
    bench.extract("worker", workers=1)
    return bench.expect_undisturbed("worker")


def other_batches(bench: Bench) -> str:
    """Another batch size gives the same vectors, but for the order in which numbers add up."""
    bench.extract("batches", batch_size=1)
    return expect_near(bench.vectors("whole"), bench.vectors("batches"))


def other_weights(bench: Bench) -> str:
    """Rows of another checkpoint are refused, whatever else is equal."""
    said: Mapping[str, Any] = bench.encoder.fingerprint()
    other = {**said, "checkpoint_sha256": f"not {said['checkpoint_sha256']}"}
    try:
        bench.extract("whole", changed(bench.encoder, fingerprint=lambda: other))
    except MismatchError:
        return "refused"
    raise BrokenPromiseError("they are taken for its own")


PROMISES: Mapping[str, Callable[[Bench], str]] = {
    "preprocess is deterministic and pickles": preprocesses,
    "encode gives finite unit rows": unit_rows,
    "a vector does not depend on its batch": company,
    "the same command twice": twice,
    "stopped and run again": interrupted,
    "two shards": sharded,
    "a worker process": with_worker,
    "another batch size": other_batches,
    "another checkpoint is refused": other_weights,
}
