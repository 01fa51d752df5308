"""The JSON schema of pipelines.yaml, which editors read for completion and checks.

python -m cmcr.cli.recipes.schema > pipelines.schema.json
"""

import json
from typing import Any

from cmcr.cli.recipes.pipelines import PipelinesFile
from cmcr.connect import ConnectConfig

FILE = "pipelines.schema.json"


def schema() -> dict[str, Any]:
    """The schema, with the fields of `ConnectConfig` in the `connect` section."""
    document = PipelinesFile.model_json_schema()
    config = ConnectConfig.model_json_schema()
    parts = document["$defs"] | config.get("$defs", {})
    section = parts["ConnectSection"]
    section["properties"] = config["properties"] | section["properties"]
    section["additionalProperties"] = False
    one = {"$ref": "#/$defs/ConnectSection"}
    parts["Pipeline"]["properties"]["connect"] = {
        "anyOf": [one, {"type": "array", "items": one, "minItems": 1}],
        "title": "Connect",
    }
    return document | {"$defs": parts, "title": "pipelines.yaml of cmcr"}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
