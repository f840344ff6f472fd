"""The JSON Schema of `fabric.yaml`, made from the same table that reads it. Pure; `fabricctl schema` prints it.

It refuses what one value can be wrong in, and the combinations of docs/SEMANTICS.md. What joins two places (names of
routes, transforms, nodes; types; cycles of credit) only the node can say.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from fabric.config.rules import ORDERED_FLOW, REPLYING
from fabric.config.schema import DOCUMENT
from fabric.config.spec import PATTERNS

DIALECT = "http://json-schema.org/draft-07/schema#"
TITLE = "fabric.yaml"
_DROPPING = ["drop_oldest", "drop_newest"]


def json_schema() -> dict[str, Any]:
    """Return the schema as plain values; the caller may change them."""
    document = copy.deepcopy(DOCUMENT.schema)
    channel = document["properties"]["channels"]["additionalProperties"]
    channel["allOf"] = [{"not": pair} for pair in _forbidden()]
    return {"$schema": DIALECT, "title": TITLE, **document}


def text() -> str:
    """Return the schema as it is published: `docs/fabric.schema.json`."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _forbidden() -> list[dict[str, Any]]:
    """Say each refusal of `rules.check_channel` as the keys that bring it about; a key left out has its default."""
    lasting = {"delivery": {"const": "at_least_once"}}
    unordered = [pattern for pattern in PATTERNS if pattern not in ORDERED_FLOW]
    return [
        _all({"pattern": {"const": "broadcast"}, **lasting}),
        {
            **_all({"pattern": {"const": "request"}, **lasting}),
            "not": _all({"idempotent": {"const": True}}),
        },
        _all({"overflow": {"enum": _DROPPING}, **lasting}),
        _all({"overflow": {"enum": _DROPPING}, "pattern": {"enum": list(REPLYING)}}),
        {
            **_all({"reply": {"type": "string"}}),
            "not": _all({"pattern": {"enum": list(REPLYING)}}),
        },
        _all({"pattern": {"enum": unordered}, "transforms": {"type": "array", "minItems": 1}}),
    ]


def _all(properties: dict[str, Any]) -> dict[str, Any]:
    return {"required": list(properties), "properties": properties}
