"""One server for all tests of a file."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient
from served import served, serving
from shell import Demo

from cmcr.serve.http.app import make_app
from cmcr.serve.http.run import bind


@pytest.fixture(scope="module")
def client(demo: Demo) -> Iterator[TestClient]:
    with serving(demo.store) as client:
        yield client


@pytest.fixture(scope="session")
def url(demo: Demo) -> Iterator[str]:
    with bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(make_app(served(demo.store), None, None), log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=[[bound]])
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()
