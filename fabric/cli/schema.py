"""`fabricctl schema`: the JSON Schema of fabric.yaml, for editors and for whoever writes one by program."""

from __future__ import annotations

import sys


def schema() -> None:
    """Print the JSON Schema of fabric.yaml (docs/fabric.schema.json)."""
    from fabric.config import json_schema

    sys.stdout.write(json_schema.text())
