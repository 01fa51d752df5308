"""Ten seconds of what benchmarks/service_load.py does for longer: broken media, clients that go."""

import asyncio
import base64
import json
import random
import re
from collections import Counter

import httpx
import numpy as np
from served import PICTURES


def test_each_good_input_is_answered_right_beside_broken_ones_and_clients_that_go(
    url: str,
) -> None:
    chance = random.Random(0)
    codes: Counter[int] = Counter()

    async def run() -> tuple[float, str]:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
            media = [await client.get(f"/v1/media/{PICTURES}/{row}") for row in range(10)]

            async def ask(content: bytes) -> np.ndarray | None:
                answer = await client.post(
                    "/v1/embeddings",
                    content=body(content),
                    headers={"Content-Type": "application/json"},
                )
                codes[answer.status_code] += 1
                if answer.status_code != 200:
                    return None
                return np.array(answer.json()["data"][0]["embedding"])

            async def go(content: bytes) -> None:
                host, port = url.removeprefix("http://").split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                sent = body(content)
                head = (
                    f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(sent)}"
                )
                whole = f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + sent
                writer.write(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
                await writer.drain()
                writer.transport.abort()

            alone = [await ask(one.content) for one in media]
            broken = [one.content[: chance.randrange(1, 40)] for one in media]
            found, *_ = await asyncio.gather(
                asyncio.gather(*(ask(media[number % 10].content) for number in range(180))),
                asyncio.gather(*map(ask, broken)),
                asyncio.gather(*(go(media[number % 10].content) for number in range(60))),
            )
            right = [one @ alone[number % 10] for number, one in enumerate(found)]
            norms = [one @ one for one in found]
            await asyncio.sleep(0.2)
            told = (await client.get("/metrics")).text
            return float(np.min(np.array(right) / norms)), told

    least, told = asyncio.run(run())
    assert codes == Counter({200: 190, 400: 10})
    assert least > 0.99999
    assert re.findall(r"^cmcr_inputs_waiting (.*)$", told, re.MULTILINE) == ["0.0"]


def body(picture: bytes) -> bytes:
    given = {"image": base64.b64encode(picture).decode(), "format": "png"}
    return json.dumps({"model": "digits-clip", "input": given}).encode()
