"""One server for all tests of a file."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from served import serving
from shell import Demo


@pytest.fixture(scope="module")
def client(demo: Demo) -> Iterator[TestClient]:
    with serving(demo.store) as client:
        yield client
