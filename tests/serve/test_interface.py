"""Embeddings, search and errors, as a client sees them."""

import asyncio
import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from openai import OpenAI
from PIL import Image
from served import PICTURES, SOUNDS, serving
from shell import Demo, succeed

from cmcr.connect import load_connection
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import EncoderError
from cmcr.extract import load_encoder
from cmcr.serve.http.guard import OPEN
from cmcr.serve.limits import Limits


def stored(demo: Demo, place: str) -> Dataset:
    return open_dataset(demo.store, Key.parse(place))


def vectors(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    return np.asarray((one * other).sum(axis=1))


def png(width: int = 8, height: int = 8) -> str:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_texts_are_embedded_as_the_store_has_them_whoever_shares_the_batch(
    client: TestClient, demo: Demo
) -> None:
    phrases = stored(demo, "digits-clip/text:phrases")
    texts = phrases.table(["text"])["text"].to_pylist()[:9]
    there = phrases.embeddings()[:9].astype(np.float32)
    body = {"model": "digits-clip", "input": texts}
    together = vectors(client.post("/v1/embeddings", json=body))
    alone = [vectors(client.post("/v1/embeddings", json=body | {"input": text})) for text in texts]
    assert cosines(together, there).min() > 0.99999
    assert cosines(np.concatenate(alone), there).min() > 0.99999
    joint = load_connection(demo.store / "connections" / "digits")
    projected = joint.project("digits-clip", there, "text").numpy()
    answer = client.post("/v1/embeddings", json=body | {"model": "digits-clip@digits"})
    assert cosines(vectors(answer), projected).min() > 0.99999
    assert not any(row["truncated"] for row in answer.json()["data"])


def test_openais_client_works_as_it_is(client: TestClient) -> None:
    openai = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
    assert "digits-clap@digits" in [model.id for model in openai.models.list()]
    texts = ["a seven", "nine"]
    packed = openai.embeddings.create(model="digits-clap", input=texts)  # base64, its default
    plain = openai.embeddings.create(model="digits-clap", input=texts, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)


def test_a_connection_takes_the_modalities_of_both_its_spaces(client: TestClient) -> None:
    """As `@digits`; and messages are inputs, of several parts the mean."""
    sound = base64.b64encode(client.get(f"/v1/media/{SOUNDS}/0").content).decode()
    parts = [
        {"type": "text", "text": "seven"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png()}"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}},
    ]
    talks = [[{"role": "user", "content": chosen}] for chosen in (*([p] for p in parts), parts)]
    body = {"model": "@digits"}
    each = vectors(client.post("/v1/embeddings", json=body | {"messages": talks}))
    plain = ["seven", {"image": png()}, {"audio": sound}]
    inputs = vectors(client.post("/v1/embeddings", json=body | {"input": plain}))
    np.testing.assert_allclose(each[:3], inputs, atol=1e-6)
    mean = each[:3].mean(axis=0)
    np.testing.assert_allclose(each[3], mean / np.linalg.norm(mean), atol=1e-6)
    alone = vectors(client.post("/v1/embeddings", json=body | {"messages": talks[3]}))
    np.testing.assert_allclose(alone, each[3:], atol=1e-6)
    for one, space in enumerate(("digits-clip", "digits-clip", "digits-clap")):
        asked = {"model": f"{space}@digits", "input": plain[one]}
        np.testing.assert_allclose(
            vectors(client.post("/v1/embeddings", json=asked)), inputs[one : one + 1], atol=1e-6
        )


@pytest.mark.parametrize("given", [{}, {"input": "a", "messages": [{"content": "a"}]}])
def test_a_request_has_input_or_messages(client: TestClient, given: dict[str, Any]) -> None:
    answer = client.post("/v1/embeddings", json={"model": "digits-clip"} | given)
    assert answer.status_code in (400, 422)
    assert "one of input and messages" in answer.json()["error"]["message"]


def test_no_address_of_a_message_is_fetched(client: TestClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    body = {"model": "@digits", "messages": [{"role": "user", "content": [part]}]}
    answer = client.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def test_media_are_embedded_as_they_were(client: TestClient, demo: Demo) -> None:
    """A sound of the store, sent back in three ways."""
    there = stored(demo, SOUNDS).embeddings()[:1].astype(np.float32)
    answer = client.get(f"/v1/media/{SOUNDS}/0")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    packed = base64.b64encode(answer.content).decode()
    for sent in ({"audio": f"data:audio/wav;base64,{packed}"}, {"audio": packed, "format": "wav"}):
        body = {"model": "digits-clap", "input": [sent]}
        assert cosines(vectors(client.post("/v1/embeddings", json=body)), there) > 0.9999
    files = [("files", ("x.wav", answer.content)), ("files", ("y.WAV", answer.content))]
    answer = client.post("/v1/embeddings/upload", data={"model": "digits-clap"}, files=files)
    assert cosines(vectors(answer), np.repeat(there, 2, axis=0)).min() > 0.9999
    mixed = {"model": "digits-clip@digits", "input": ["a six", {"image": png()}, {"text": "two"}]}
    assert vectors(client.post("/v1/embeddings", json=mixed)).shape[0] == 3
    picture = client.get(f"/v1/media/{PICTURES}/0")
    assert picture.headers["content-type"] == "image/png"


def test_it_finds_what_the_command_finds(client: TestClient, demo: Demo) -> None:
    for words, places in (("a seven", [PICTURES]), ("a nine", [PICTURES, SOUNDS])):
        at = [f"--in={place}" for place in places]
        asked = succeed("search", words, *at, "--json", "-k", 5, "--connection", "digits",
                        "--store", demo.store, "--no-pipeline")  # fmt: skip
        hits = json.loads(asked.stdout)["queries"][0]["results"]
        own = found(client, query=words, datasets=places, top_k=5, connection="digits")
        assert [row["id"] for row in own] == [hit["id"] for hit in hits]
        np.testing.assert_allclose(
            [row["score"] for row in own], [hit["score"] for hit in hits], atol=1e-5
        )


def found(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/search", json=asked)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    return rows


def test_a_word_a_sound_a_vector_and_an_item_find_their_pictures(
    client: TestClient, demo: Demo
) -> None:
    by_word = found(client, query="a seven", datasets=[PICTURES], top_k=3)
    assert [row["label"] for row in by_word] == [["7"]] * 3
    sounds = stored(demo, SOUNDS)
    told = sounds.table(["id", "label"]).slice(0, 1).to_pylist()[0]
    item = {"dataset": SOUNDS, "id": told["id"]}
    by_item = found(client, query=item, datasets=[PICTURES], top_k=5)
    assert told["label"] in [row["label"] for row in by_item]
    vector = {"embedding": sounds.embeddings()[0].tolist(), "modality": "audio"}
    by_vector = found(client, query=vector, datasets=[PICTURES], top_k=5)
    assert [row["id"] for row in by_vector] == [row["id"] for row in by_item]
    by_cca = found(client, query=item, datasets=[PICTURES], top_k=5, baseline="cca")
    assert [row["score"] for row in by_cca] != [row["score"] for row in by_item]
    eights = found(client, query=item, datasets=[PICTURES], filter={"label": ["8"]}, hubness="nnn")
    assert {*(tuple(row["label"]) for row in eights)} == {("8",)}
    assert all(row["score"] != row["cosine"] for row in eights)
    both = found(client, query="a seven", datasets=[PICTURES, SOUNDS, SOUNDS])
    assert len({(row["dataset"], row["id"]) for row in both}) == len(both)
    assert {row["modality"] for row in both} == {"audio", "image"}
    assert found(client, query="a seven", datasets=[PICTURES], false_positives=0.01)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("embeddings", {"model": "nobody", "input": "x"}, 404, "there is no model 'nobody'"),
        ("embeddings", {"model": "digits-clip", "input": []}, 422, "at least 1 item"),
        ("embeddings", {"model": "digits-clip", "input": " "}, 400, "the text is empty"),
        ("embeddings", {"model": "digits-clip", "input": "x" * 10_001}, 400, "10,001 letters"),
        ("embeddings", {"model": "digits-clip", "input": ["x"] * 257}, 422, "at most 256"),
        ("embeddings", {"model": "digits-clip", "input": [1] * 200_000}, 422, "input"),
        ("embeddings", {"model": "digits-clip", "input": "\ud800"}, 422, "no text in Unicode"),
        ("embeddings", {"model": "digits-clip", "input": [[1, 2]]}, 422, "input"),
        ("embeddings", {"model": "digits-clip", "input": "x", "dimensions": 9}, 400, "64"),
        ("embeddings", {"model": "digits-clip", "input": {"audio": "AA=="}}, 400, "no audio"),
        ("embeddings", {"model": "digits-clip", "input": {"image": "AA=="}}, 400, "picture"),
        ("embeddings", {"model": "digits-clip", "input": {"image": "!"}}, 400, "base64"),
        ("embeddings", {"model": "digits-clip", "input": {"image": ""}}, 400, "empty"),
        ("embeddings", {"model": "digits-clip", "input": {}}, 422, "one of text"),
        (
            "embeddings",
            {"model": "digits-clip", "input": {"image": "http://localhost/x.png"}},
            400,
            "addresses are not fetched",
        ),
        (
            "embeddings",
            {"model": "digits-clip", "input": {"image": png(9_000, 9_000)}},
            413,
            "9000 x 9000 pixels",
        ),
        ("search", {"query": "x", "datasets": ["digits-clip/image:none"]}, 404, "no dataset"),
        ("search", {"query": "x", "datasets": []}, 422, "at least 1 item"),
        ("search", {"query": "x", "datasets": [PICTURES], "top_k": 0}, 422, "top_k"),
        ("search", {"query": "x", "datasets": [PICTURES], "top_k": 9_999}, 400, "1000"),
        ("search", {"query": "x", "datasets": [PICTURES], "nonsense": 1}, 422, "nonsense"),
        ("search", {"query": "x", "datasets": [PICTURES], "connection": "y"}, 404, "connection"),
        (
            "search",
            {"query": {"dataset": SOUNDS, "id": "none"}, "datasets": [PICTURES]},
            404,
            "no such item",
        ),
        (
            "search",
            {"query": {"embedding": [1.0], "modality": "audio"}, "datasets": [PICTURES]},
            400,
            "64 finite numbers",
        ),
        (
            "search",
            {"query": "x", "datasets": [PICTURES], "filter": {"colour": ["red"]}},
            400,
            "colour",
        ),
        ("search", {"query": "x", "datasets": [PICTURES], "filter": {"label": []}}, 422, "filter"),
        (
            "search",
            {"query": {"dataset": SOUNDS, "id": "\ud800"}, "datasets": [PICTURES]},
            422,
            "no text in Unicode",
        ),
        (
            "search",
            {"query": "x", "datasets": [PICTURES], "index": True, "filter": {"label": ["1"]}},
            400,
            "all rows",
        ),
        (
            "search",
            {"query": "x", "datasets": [PICTURES], "index": True, "hubness": "nnn"},
            400,
            "no correction",
        ),
        (
            "search",
            {"query": "x", "datasets": [SOUNDS, PICTURES], "index": True},
            400,
            "of its own space",
        ),
        ("search", {"query": "x", "datasets": [PICTURES], "baseline": "cca"}, 400, "no baseline"),
        (
            "search",
            {"query": {"embedding": [1.0] * 64, "modality": "smell"}, "datasets": [PICTURES]},
            400,
            "nothing connects",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_shape(
    client: TestClient, demo: Demo, path: str, body: Any, status: int, said: str
) -> None:
    sent, kind = json.dumps(body), {"Content-Type": "application/json"}
    answer = client.post(f"/v1/{path}", content=sent, headers=kind)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert str(demo.store) not in answer.text  # nothing of the server is shown


def test_what_is_no_json_and_no_route_is_said_in_the_same_shape(client: TestClient) -> None:
    answers = [
        client.post("/v1/embeddings", content=b"{", headers={"content-type": "application/json"}),
        client.get("/v1/nothing"),
        client.delete("/v1/models"),
        client.get(f"/v1/media/{PICTURES}/99999"),
        client.get(f"/v1/media/{PICTURES}/../../../etc/passwd"),
    ]
    assert [answer.status_code for answer in answers] == [422, 404, 405, 404, 404]
    assert all(set(answer.json()["error"]) for answer in answers)


def test_an_error_of_ours_is_counted_as_one_and_shows_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*about: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(client.service.searcher, "plan", fails)  # type: ignore[attr-defined]
    quiet = TestClient(client.app, raise_server_exceptions=False)
    answer = quiet.post("/v1/search", json={"query": "x", "datasets": [PICTURES]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'route="/v1/search",status="500"} 1.0' in client.get("/metrics").text


def test_a_token_is_asked_for_and_a_large_request_is_refused(demo: Demo) -> None:
    limits = Limits(body=2_000)
    with serving(demo.store, token="f" * 32, limits=limits) as client:
        assert client.get("/v1/models").status_code == 401
        wrong = {"Authorization": "Bearer " + "e" * 32}
        assert client.get("/v1/models", headers=wrong).status_code == 401
        assert client.get("/metrics").status_code == 401
        right = {"Authorization": "Bearer " + "f" * 32}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert [client.get(path).status_code for path in OPEN] == [200] * len(OPEN)
        body = {"model": "digits-clip", "input": "x" * 3_000}
        assert client.post("/v1/embeddings", json=body, headers=right).status_code == 413

        def streamed() -> Any:
            yield from [b"x" * 500] * 9

        answer = client.post("/v1/embeddings", content=streamed(), headers=right)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, None)


def test_too_many_inputs_and_a_slow_encoder(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request holds the encoder; what does not fit beside it is told when to come again."""
    limits = Limits(queue=4, deadline=0.6)
    with serving(demo.store, limits=limits) as client:
        encoder = client.service.encoders["digits-clip"]  # type: ignore[attr-defined]
        real = encoder.encode

        def slow(modality: str, batch: torch.Tensor) -> torch.Tensor:
            time.sleep(0.9)
            return real(modality, batch)  # type: ignore[no-any-return]

        monkeypatch.setattr(encoder, "encode", slow)

        async def ask() -> list[Any]:
            send = asyncio.to_thread
            body = {"model": "digits-clip", "input": ["x"] * 4}
            first = asyncio.create_task(send(client.post, "/v1/embeddings", json=body))
            await asyncio.sleep(0.3)
            return [await send(client.post, "/v1/embeddings", json=body), await first]

        busy, late = asyncio.run(ask())
        assert busy.status_code == 429
        assert 1 <= int(busy.headers["retry-after"]) <= 60
        assert late.status_code == 504
        monkeypatch.setattr(encoder, "encode", real)
        time.sleep(0.9)
        body = {"model": "digits-clip", "input": "x"}
        assert client.post("/v1/embeddings", json=body).status_code == 200
        told = client.get("/metrics").text
        assert "cmcr_inputs_waiting 0.0" in told
        assert 'cmcr_failures_total{reason="overloaded"} 1.0' in told


def test_what_an_encoder_lacks_is_not_served_and_the_rest_is(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ready(self: Any, modality: str) -> None:
        if modality == "text":
            raise EncoderError("there is no tokenizer")

    monkeypatch.setattr(type(load_encoder("digits-clap")), "ready", ready, raising=False)
    with serving(demo.store, spaces=["digits-clap"]) as client:
        assert "without text: there is no tokenizer" in caplog.text
        rows = client.get("/v1/models").json()["data"]
        assert {tuple(row["modalities"]) for row in rows} == {("audio",)}
        answer = client.post("/v1/embeddings", json={"model": "digits-clap", "input": "x"})
        assert answer.status_code == 400
        sound = client.get(f"/v1/media/{SOUNDS}/0").content
        files = [("files", ("x.wav", sound))]
        answer = client.post("/v1/embeddings/upload", data={"model": "digits-clap"}, files=files)
        assert vectors(answer).shape == (1, 64)


def test_media_leave_only_where_the_operator_allows_it(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "open", tmp_path / "shut"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(base64.b64decode(png()))
    (inside / "link.png").symlink_to(outside / "a.png")
    with serving(demo.store, media_roots=[inside]) as client:
        serves = client.service.searcher.serves  # type: ignore[attr-defined]
        assert serves(str(inside / "a.png"))
        assert not serves(str(outside / "a.png"))
        assert not serves(str(inside / "link.png"))
        assert not serves(f"{inside}/../shut/a.png")
        assert not serves(str(inside / "none.png"))
