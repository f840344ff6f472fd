"""A message type as JSON Schema (2020-12): messages as `fabricctl channel send` takes them. Pure."""

from __future__ import annotations

from typing import Any, Final

from fabric import limits
from fabric.messages.evolution import size_of, type_tree_of
from fabric.messages.scalars import Tree
from fabric.messages.schema import FieldSchema, Schema

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: Final[dict[str, dict[str, Any]]] = {
    "str": {"type": "string", "maxLength": limits.STRING_BYTES_MAX},
    "int": {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 64) - 1},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "lease": {"type": "array", "minItems": 9, "maxItems": 10},
    "raw": {"type": "string", "contentEncoding": "base64"},
}


def json_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON Schema of messages of a type.

    A tensor is an object of dtype and shape, with ``fill`` for one of a constant, or a nested list. What JSON Schema
    cannot say (dimensions that must agree) is in ``x-fabric``.
    """
    return {
        "$schema": DIALECT,
        "$id": f"fabric:{schema.label}",
        "title": schema.label,
        **_record(schema.fields),
        "x-fabric": {
            "name": schema.name,
            "version": schema.version,
            "fingerprint": schema.fingerprint,
        },
    }


def _record(fields: list[FieldSchema]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {field.name: _field(field) for field in fields},
        "required": [f.name for f in fields if not f.has_default and not f.type.endswith("| None")],
        "additionalProperties": False,
    }


def _field(field: FieldSchema) -> dict[str, Any]:
    found = _value(field, type_tree_of(field))
    if field.has_default and field.default is not None:
        found = {**found, "default": field.default}
    more: dict[str, Any] = {"alias": field.alias} if field.alias else {}
    if field.redacted:
        more["redacted"] = True
    return {**found, "x-fabric": {**found.get("x-fabric", {}), **more}} if more else found


def _value(field: FieldSchema, tree: Tree) -> dict[str, Any]:
    if isinstance(tree, str):
        return _leaf(field, tree)
    inner = _value(field, tree[-1])
    if tree[0] == "opt":
        return {"anyOf": [{"type": "null"}, inner]}
    if tree[0] == "list":
        return {"type": "array", "items": inner}
    names = {"propertyNames": {"pattern": "^-?[0-9]+$"}} if tree[1] == "int" else {}
    return {"type": "object", "additionalProperties": inner, **names}


def _leaf(field: FieldSchema, name: str) -> dict[str, Any]:
    if name == "enum":
        return {"enum": list(field.values or ())}
    if name == "record" and field.record is not None:
        return {
            **_record(field.record.fields),
            "title": f"{field.record.name}@{field.record.version}",
        }
    return _tensor(field) if name == "tensor" else dict(_SCALARS[name])


def _tensor(field: FieldSchema) -> dict[str, Any]:
    dims = field.dims or []
    count: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    if "..." not in dims:
        sizes = [size_of(dim) for dim in dims]
        each = [{"type": "integer", "minimum": 0} if n is None else {"const": n} for n in sizes]
        count = {"type": "array", "prefixItems": each, "minItems": len(dims), "maxItems": len(dims)}
    described = {
        "type": "object",
        "properties": {
            "dtype": {"enum": field.dtypes},
            "shape": count,
            "fill": {"type": ["number", "boolean"]},
        },
        "required": ["shape"],
    }
    return {
        "anyOf": [described, {"type": ["array", "number", "boolean"]}],
        "x-fabric": {"tensor": {"dims": dims, "dtypes": field.dtypes}},
    }
