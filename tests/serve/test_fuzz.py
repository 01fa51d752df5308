"""Requests that its own description allows, and some that it does not: no 500, nothing unsaid."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from served import PICTURES

MODELS = ("digits-clip", "digits-clap@digits")
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", ["embeddings", "embeddings/upload", "search"])
def test_nothing_comes_that_is_not_described(
    described: schemathesis.BaseSchema, path: str, mode: GenerationMode
) -> None:
    """Names of models and datasets are made right, or all that is behind them would be a 404."""
    seen = set()

    @given(described[f"/v1/{path}"]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            model = MODELS[len(str(case.body)) % 2]
            for name, right in (("model", model), ("datasets", [PICTURES])):
                if isinstance(case.body.get(name), type(right)):
                    case.body[name] = right
        seen.add(case.call_and_validate(checks=CHECKS).status_code)

    send()
    assert seen & {200, 400, 422}
