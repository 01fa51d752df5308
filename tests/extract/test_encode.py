"""The device side of extraction: batches that do not fit, texts by length, cut texts, precision."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch

from cmcr.embeddings import Key, open_dataset
from cmcr.errors import EncoderError
from cmcr.extract import Encoder, extract, open_source
from cmcr.extract.engine.encode import find_autocast


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join("x" * (1 + n * 37 % 50) + "\n" for n in range(50)))
    return path


def small_device(encoder: Encoder, fits: int) -> list[int]:
    """Make `encoder` run out of memory on more than `fits` inputs; gives the sizes that ran."""
    whole, ran = encoder.encode, []

    def encode(modality: Any, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(len(batch))
        return whole(modality, batch)

    encoder.encode = encode  # type: ignore[method-assign]
    return ran


def test_a_batch_that_does_not_fit_is_halved_and_so_are_the_next(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    source = open_source("text", str(lines))
    extract(tmp_path / "whole", encoder, source, "t", workers=0, batch_size=20)
    ran = small_device(encoder, fits=6)
    extract(tmp_path / "halved", encoder, source, "t", workers=0, batch_size=20)
    assert ran == [5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    key = Key("bytes", "text", "t")
    whole, halved = (open_dataset(tmp_path / name, key) for name in ("whole", "halved"))
    assert whole.ids() == halved.ids()
    np.testing.assert_allclose(whole.embeddings(), halved.embeddings(), atol=1e-3)


def test_an_input_that_never_fits_ends_with_an_error(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    small_device(encoder, fits=0)
    with pytest.raises(EncoderError, match="too little memory to encode one text"):
        extract(tmp_path / "store", encoder, open_source("text", str(lines)), "t", workers=0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda vectors: vectors * 2.5, r"a vector of norm 2\.5 for text, not 1"),
        (lambda vectors: vectors * torch.tensor([[1.0]] + [[0.0]] * 9), "a vector of norm 0 "),
        (lambda vectors: vectors * 1e30, r"a vector of norm 1e\+30 for text"),
        (lambda vectors: vectors[:, :7], r"\(10, 7\) where \(10, 8\) belongs"),
        (lambda vectors: vectors[:9], r"\(9, 8\) where \(10, 8\) belongs"),
        (lambda vectors: vectors.numpy(), "a ndarray where a tensor belongs"),
        (lambda vectors: (vectors * 100).long(), "int64 where floats belong"),
        (lambda vectors: vectors * float("nan"), "only NaN or infinity for the first 10 text"),
    ],
    ids=[
        "norm 2.5",
        "norm 0",
        "huge",
        "wrong D",
        "too few rows",
        "an array",
        "integers",
        "only NaN",
    ],
)
def test_what_an_encoder_may_not_give_is_refused_by_its_name(
    tmp_path: Path, encoder: Encoder, lines: Path, broken: Callable[[Any], Any], message: str
) -> None:
    whole = encoder.encode
    encoder.encode = lambda modality, batch: broken(whole(modality, batch))  # type: ignore[method-assign]
    source = open_source("text", str(lines))
    with pytest.raises(EncoderError, match=f"^the encoder bytes gave .*{message}") as caught:
        extract(tmp_path / "store", encoder, source, "t", workers=0, batch_size=10)
    assert "conftest.Bytes.encode" in str(caught.value)
    assert not list((tmp_path / "store").glob("*/*/*/part-*"))


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (lambda _, text: torch.ones(len(text)), r"\d+ kinds, such as \(\d+,\) float32 and "),
        (
            lambda _, text: [1.0],
            "a list, where text inputs of one batch must become tensors of one shape",
        ),
    ],
)
def test_inputs_that_make_no_batch_are_refused_by_the_name_of_the_encoder(
    tmp_path: Path, encoder: Encoder, lines: Path, preprocess: Callable[..., Any], message: str
) -> None:
    encoder.preprocess = preprocess  # type: ignore[method-assign]
    source = open_source("text", str(lines))
    with pytest.raises(EncoderError, match=f"^the encoder bytes gave {message}") as caught:
        extract(tmp_path / "store", encoder, source, "t", workers=0, batch_size=10)
    assert "conftest.Bytes.preprocess" in str(caught.value)
    assert not list((tmp_path / "store").glob("*/*/*/part-*"))


def test_inputs_without_a_finite_vector_are_failures_once_others_have_one(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    whole, asked = encoder.encode, []

    def later(modality: Any, batch: torch.Tensor) -> torch.Tensor:
        asked.append(len(batch))
        return whole(modality, batch) * (float("nan") if len(asked) == 3 else 1.0)

    encoder.encode = later  # type: ignore[method-assign]
    source = open_source("text", str(lines))
    summary = extract(
        tmp_path / "store", encoder, source, "t", workers=0, batch_size=10, max_failures=0.5
    )
    assert (summary.rows, summary.failures) == (40, 10)


def test_a_fingerprint_with_a_tuple_is_itself_again(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    said = dict(encoder.fingerprint()) | {"preprocessing": {"size": (224, 224), 1: "one"}}
    encoder.fingerprint = lambda: said  # type: ignore[method-assign]
    source = open_source("text", str(lines))
    made = [extract(tmp_path / "store", encoder, source, "t", workers=0).made for _ in range(2)]
    assert made == [50, 0]


def test_texts_go_by_length_and_come_back_in_order(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    seen: list[int] = []
    preprocess = encoder.preprocess

    def measured(modality: Any, item: Any) -> torch.Tensor:
        seen.append(len(item))
        return preprocess(modality, item)

    encoder.preprocess = measured  # type: ignore[method-assign]
    extract(tmp_path / "store", encoder, open_source("text", str(lines)), "t", workers=0)
    assert seen == sorted(seen)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "text", "t"))
    assert dataset.table(["text"])["text"].to_pylist() == lines.read_text().splitlines()


def test_texts_that_were_cut_are_counted(tmp_path: Path, encoder: Encoder, lines: Path) -> None:
    encoder.count_truncated = lambda batch: int(len(batch) > 0) * 3  # type: ignore[attr-defined]
    source = open_source("text", str(lines))
    summary = extract(tmp_path / "store", encoder, source, "t", workers=0, batch_size=25)
    assert summary.truncated == 6
    assert "6 texts cut" in str(summary)


def test_what_a_modality_needs_is_looked_for_before_anything_is_written(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    def ready(modality: str) -> None:
        raise EncoderError(f"no tokenizer for {modality}")

    encoder.ready = ready  # type: ignore[attr-defined]
    with pytest.raises(EncoderError, match="no tokenizer for text"):
        extract(tmp_path / "store", encoder, open_source("text", str(lines)), "t", workers=0)
    assert not (tmp_path / "store").exists()


def test_mixed_precision_is_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert find_autocast("auto", cpu) is find_autocast("off", cuda) is None
    for supported, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert find_autocast("auto", cuda) == expected
    assert find_autocast("fp16", cuda) == "float16"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    from cmcr.extract import load_encoder

    source = open_source("audio", "builtin:digits/speech-test")
    key = Key("digits-clap", "audio", "t")
    vectors = []
    for device, amp in (("cpu", "off"), ("cuda", "off"), ("cuda", "auto")):
        store = tmp_path / f"{device}-{amp}"
        extract(store, load_encoder("digits-clap", device=device), source, "t", amp=amp)  # type: ignore[arg-type]
        vectors.append(open_dataset(store, key).embeddings().astype(np.float32))
    cosines = [(vectors[0] * other).sum(axis=1).min() for other in vectors[1:]]
    assert cosines[0] > 0.9999
    assert cosines[1] > 0.999


def test_a_decoder_that_kills_its_process_ends_with_an_error(tmp_path: Path, lines: Path) -> None:
    program = tmp_path / "killer.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, sys, torch
        from pathlib import Path
        from cmcr.errors import CmcrError
        from cmcr.extract import extract, load_encoder, open_source

        def kill(modality, item):
            os._exit(9)

        if __name__ == "__main__":
            encoder = load_encoder("digits-clip")
            encoder.preprocess = kill
            source = open_source("text", {str(lines)!r})
            try:
                extract(Path({str(tmp_path / "store")!r}), encoder, source, "t", workers=1)
            except CmcrError as error:
                print(error)
        """)
    )
    done = forked.run(program)
    assert "a process that decodes text was killed" in done.stdout, done.stderr
