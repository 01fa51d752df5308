"""A connection under mteb's own evaluation, on digits, without network.

pytest tests/mteb
"""

import base64
import io
from functools import partial
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
import soundfile
import torch
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper
from PIL import Image
from served import serving
from shell import Demo

import cmcr
from cmcr.connect import load_connection
from cmcr.embeddings import Key, open_dataset
from cmcr.errors import MismatchError, UsageError
from cmcr.extract import load_encoder, open_source
from cmcr.extract.media.decode import decode
from cmcr.mteb import CmcrModel

SPACES = ("digits-clap", "digits-clip")


@pytest.fixture(scope="module")
def model(demo: Demo) -> CmcrModel:
    folder = demo.store / "connections" / "digits"
    return CmcrModel(folder, {space: space for space in SPACES}, device="cpu")


def media(modality: Any, name: str, count: int) -> list[Any]:
    items = list(open_source(modality, f"builtin:digits/{name}").items())[:: 700 // count][:count]
    return [(item.id, item.label[0], decode(modality, item)) for item in items]


@pytest.fixture(scope="module")
def task() -> Any:
    """Each spoken digit's pictures."""
    sounds, pictures = media("audio", "speech-test", 40), media("image", "handwriting-test", 60)

    class SpokenDigits(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="SpokenDigits", description="Pictures of the digit that is spoken.",
            reference=None, type="Any2AnyRetrieval", category="a2i", modalities=["audio", "image"],
            dataset={"path": "none", "revision": "none"}, eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        )  # fmt: skip

        def load_data(self, **_: Any) -> None:
            queries = datasets.Dataset.from_dict(
                {
                    "id": [one[0] for one in sounds],
                    "audio": [
                        {"array": sound.samples[0], "sampling_rate": sound.sample_rate}
                        for _, _, sound in sounds
                    ],
                }
            )
            corpus = datasets.Dataset.from_dict(
                {"id": [one[0] for one in pictures], "image": [one[2] for one in pictures]}
            )
            relevant = {
                query: {name: 1 for name, label, _ in pictures if label == spoken}
                for query, spoken, _ in sounds
            }
            self.dataset = {"default": {"test": {
                "queries": queries, "corpus": corpus, "relevant_docs": relevant,
                "top_ranked": None,
            }}}  # fmt: skip
            self.data_loaded = True

    return SpokenDigits()


def test_mteb_and_we_measure_the_same(model: CmcrModel, task: Any) -> None:
    found = mteb.evaluate(model, task, cache=None)
    scores = found.task_results[0].scores["test"][0]
    task.load_data()  # it is let go
    split = task.dataset["default"]["test"]
    sounds, pictures = (
        model.encode([{column: list(split[which][column])}])
        for which, column in (("queries", "audio"), ("corpus", "image"))
    )
    relevant = split["relevant_docs"]
    spoken = [",".join(sorted(relevant[query])) for query in split["queries"]["id"]]
    shown = {name: label for label in spoken for name in label.split(",")}
    labels = (spoken, [shown.get(name, name) for name in split["corpus"]["id"]])
    ours = cmcr.evaluate(sounds, pictures, labels=labels)[-1]["metrics"]
    for name, theirs in (("nDCG@10", "ndcg_at_10"), ("mAP@10", "map_at_10")):
        assert ours[name] == pytest.approx(scores[theirs], abs=6e-6)  # theirs has five digits
    assert scores["ndcg_at_10"] > 0.9


def test_mtebs_client_of_a_server_measures_it_too(
    demo: Demo, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and sounds as messages, to `@CONNECTION`, which takes those of both spaces."""
    with serving(demo.store) as client:
        for method in ("get", "post"):
            ours = partial(_asked, getattr(client, method))
            monkeypatch.setattr(f"mteb.models.openai_wrappers.requests.{method}", ours)
        # mteb writes WAV by torchcodec, which wants FFmpeg's libraries.
        monkeypatch.setattr("mteb.models.openai_wrappers._audio_to_data_url", _wav)
        model = OpenAIAPIEncodeWrapper("http://localhost", "@digits", modalities=["audio", "image"])
        scores = mteb.evaluate(model, task, cache=None).task_results[0].scores["test"][0]
    assert scores["ndcg_at_10"] > 0.9


def _wav(sound: Any) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(sound["array"]).ravel(), sound["sampling_rate"], format="WAV")
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def _asked(method: Any, url: str, json: Any = None, **_: Any) -> Any:
    return method(url, **({} if json is None else {"json": json}))


def test_vectors_are_those_of_the_store(model: CmcrModel, demo: Demo) -> None:
    connection = load_connection(demo.store / "connections" / "digits")
    for modality, space, name in (
        ("audio", "digits-clap", "speech-test"), ("image", "digits-clip", "handwriting-test"),
    ):  # fmt: skip
        dataset = open_dataset(demo.store, Key(space, modality, name))
        items = open_source(modality, f"builtin:digits/{name}").items()
        some = [decode(modality, item) for item, _ in zip(items, range(5), strict=False)]
        if modality == "audio":
            some = [{"array": one.samples, "sampling_rate": one.sample_rate} for one in some]
        given = model.encode([{modality: some[:2]}, {modality: some[2:]}])
        stored = connection.project(space, dataset.embeddings()[:5], modality).numpy()
        assert (given * stored).sum(axis=1).min() > 0.99999


def test_several_modalities_of_an_input_are_their_mean(model: CmcrModel) -> None:
    picture = Image.new("RGB", (8, 8))
    alone = model.encode([{"text": ["three"]}]) + model.encode([{"image": [picture]}])
    both = model.encode([{"text": ["three", None], "image": [picture, picture]}])
    assert both[0] == pytest.approx(alone[0] / np.linalg.norm(alone[0]), abs=1e-6)
    assert model.similarity(both, both)[0, 0] == pytest.approx(1)
    assert model.similarity_pairwise(both, torch.from_numpy(both)).tolist() == pytest.approx([1, 1])


def test_what_cannot_be_embedded_is_refused(model: CmcrModel, demo: Demo) -> None:
    with pytest.raises(MismatchError, match="video"):
        model.encode([{"video": [object()]}])
    with pytest.raises(MismatchError, match="1 of 2 inputs"):
        model.encode([{"text": ["three", None]}])
    folder = demo.store / "connections" / "digits"
    with pytest.raises(UsageError, match="no encoder"):
        CmcrModel(folder, {})
    with pytest.raises(MismatchError, match="not of clip"):
        CmcrModel(folder, {"clip": load_encoder("digits-clip")})
    with pytest.raises(MismatchError, match="digits-clip"):
        CmcrModel(folder, {"digits-clip": load_encoder("digits-clap")})
