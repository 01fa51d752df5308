"""A server within the process, over the store that the main job left."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import Bytes
from fastapi.testclient import TestClient
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.search.store import open_store
from cmcr.serve.http.app import make_app
from cmcr.serve.limits import Limits
from cmcr.serve.service import Service

SOUNDS, PICTURES = "digits-clap/audio:speech-test", "digits-clip/image:handwriting-test"


def served(store: Path, **options: Any) -> Service:
    """Sounds, pictures and phrases of the digits world, loaded."""
    usual = {"spaces": ["digits-clap", "digits-clip"], "limits": Limits(), "workers": 1}
    service = Service(
        open_store(store),
        connections=["digits"],
        datasets=[SOUNDS, PICTURES, "digits-clip/text:phrases"],
        **usual | options,
    )
    service.load()
    return service


@contextmanager
def serving(store: Path, token: str | None = None, **options: Any) -> Iterator[TestClient]:
    """A client of a server of it, within this process."""
    service = served(store, **options)
    with TestClient(make_app(service, token, None)) as client:
        client.service = service  # type: ignore[attr-defined]
        yield client


class Moody(Bytes):
    """Three points decode; four hang, five end the process."""

    def preprocess(self, modality: Modality, item: Any) -> Tensor:
        if modality == "pointcloud":
            if len(item) == 4:
                time.sleep(3600)
            if len(item) == 5:
                ctypes.string_at(0)
        return super().preprocess(modality, item)
