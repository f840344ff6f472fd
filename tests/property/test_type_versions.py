"""For any two declarations of a type: one is said to read the other exactly when every message of the other survives.

What a message is checked against is not the rules of evolution but the reader's own encoder and decoder.
"""

import itertools

import msgspec
import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fabric.errors import TypeMismatchError
from fabric.messages import FieldSchema, Schema, class_from_schema, message_type
from fabric.messages.convert import make_convert
from fabric.messages.evolution import sources, unreadable
from fabric.messages.schema import RecordSchema
from fabric.messages.tensor import DTYPE_CODES, DTYPES

DIMS = ["n", "m", "2", "n=2", "n n", "n m", "...", "... 2", "n ...", "2 ... m"]
SCALARS = {"int": [0, 5], "str": ["", "x"], "float": [0.5], "bool": [True], "bytes": [b"z"]}
ENUMS = [["x"], ["x", "y"]]
PRODUCTS_MAX = 4000


class Native:
    """A received message over its own buffers."""

    def __init__(self, meta, buffers):
        self.meta, self._buffers = meta, buffers

    def tensor(self, index, dtype, shape):
        return np.asarray(self._buffers[index]).view(dtype).reshape(shape)


def with_wrapper(leaf):
    return st.sampled_from([leaf, f"{leaf} | None", f"list[{leaf}]", f"dict[str, {leaf}]"])


@st.composite
def fields(draw, name, depth=0):
    kind = draw(st.sampled_from(["scalar", "enum", "tensor", "tensor"] + ["record"] * (depth < 1)))
    more = {}
    if kind == "scalar":
        type_ = draw(with_wrapper(draw(st.sampled_from(sorted(SCALARS)))))
    elif kind == "enum":
        type_, more = draw(with_wrapper("enum")), {"values": draw(st.sampled_from(ENUMS))}
    elif kind == "tensor":
        type_ = draw(st.sampled_from(["tensor", "tensor", "tensor | None", "list[tensor]"]))
        words = draw(st.sampled_from(DIMS)).split()
        more["dims"] = [int(word) if word.isdecimal() else word for word in words]
        more["dtypes"] = draw(st.sampled_from([["f32"], ["i8"], ["f32", "i8"]]))
    else:
        type_ = draw(with_wrapper("record"))
        more["record"] = RecordSchema("inner", 1, draw(members(depth + 1, ["p", "q"])))
    return FieldSchema(name, type_, **more)


@st.composite
def members(draw, depth=0, names=("a", "b", "c")):
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True))
    made = [draw(fields(name, depth)) for name in chosen]
    for index, field in enumerate(made):
        has_value = field.type.endswith("None") or field.type == "list[tensor]"
        if has_value and draw(st.booleans()):
            made[index] = msgspec.structs.replace(field, has_default=True)
        elif field.type == "int" and draw(st.booleans()):
            made[index] = msgspec.structs.replace(field, has_default=True, default=7)
    return sorted(made, key=lambda field: field.has_default)


@st.composite
def pairs(draw):
    """Two declarations, the second often the first with one field changed, dropped, added or renamed."""
    first = draw(members())
    if draw(st.booleans()):
        return Schema("t", 1, first), Schema("t", 2, draw(members()))
    second, at = list(first), draw(st.integers(0, len(first) - 1))
    change = draw(st.sampled_from(["replace", "drop", "add", "rename", "same"]))
    if change == "replace":
        second[at] = draw(fields(first[at].name))
    elif change == "drop" and len(second) > 1:
        del second[at]
    elif change == "add":
        added = draw(fields("z"))
        may_default = added.type.endswith("None") or added.type == "list[tensor]"
        second.append(
            msgspec.structs.replace(added, has_default=may_default and draw(st.booleans()))
        )
    elif change == "rename":
        alias = [first[at].name] if draw(st.booleans()) else None
        second[at] = msgspec.structs.replace(second[at], name="z", alias=alias)
    second.sort(key=lambda field: field.has_default)
    return Schema("t", 1, first), Schema("t", 2, second)


def shapes(dims):
    sizes = [
        [int(str(dim).partition("=")[2])]
        if "=" in str(dim)
        else [dim]
        if type(dim) is int
        else [1, 2]
        for dim in dims
    ]
    found = []
    for rest in ([], [1], [2]) if "..." in dims else ([],):
        at = dims.index("...") if "..." in dims else len(dims)
        parts = [*sizes[:at], *[[n] for n in rest], *sizes[at + 1 :]]
        found += list(itertools.product(*parts))
    return found


def values(field, type_=None):
    """Every kind of value that a field may hold, few of each."""
    text = field.type if type_ is None else type_
    if text.endswith(" | None"):
        return [None, *values(field, text.removesuffix(" | None"))]
    if text.startswith("list["):
        return [[], *([item] for item in values(field, text[5:-1]))]
    if text.startswith("dict["):
        return [{}, *({"k": item} for item in values(field, text.partition(", ")[2][:-1]))]
    if text == "enum":
        return field.values
    if text == "tensor":
        dtypes = [DTYPES[DTYPE_CODES[name]][1] for name in field.dtypes]
        return [np.ones(shape, dtype) for shape in shapes(field.dims) for dtype in dtypes]
    if text == "record":
        inner = Schema(field.record.name, field.record.version, field.record.fields)
        return list(messages(class_from_schema(inner), inner, 60))
    return SCALARS[text]


def messages(cls, schema, most=PRODUCTS_MAX):
    every = itertools.product(*(values(field) for field in schema.fields))
    for each in itertools.islice(every, most):
        yield cls(*each)


def plain(value):
    """A value as what compares by kind and content."""
    if isinstance(value, np.ndarray):
        return ("tensor", value.dtype.name, value.shape, value.tobytes())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "__fabric_type__"):
        return {name: plain(getattr(value, name)) for name in value.__fabric_type__.names}
    return (type(value).__name__, value)


def naive(message, writer, reader_type):
    """Rebuild a message by names alone and let the reader's own type judge it; None: it does not hold."""
    built = rebuilt(message, writer.fields, reader_type)
    if built is None:
        return None
    try:
        again = reader_type.decode(Native(*reader_type.encode(built)), None)
    except TypeMismatchError:
        return None
    return again if plain(again) == plain(built) else None


def rebuilt(message, written, type_):
    matched, found = sources(written, type_.schema.fields), {}
    for field in type_.schema.fields:
        source = matched[field.name]
        if source is None:
            if not field.has_default:
                return None
            continue
        value, record = getattr(message, source.name), type_.records.get(field.name)
        if record is not None and source.record is not None:
            value = deep(
                value, lambda leaf, s=source, r=record: rebuilt(leaf, s.record.fields, r.type)
            )
            if "lost" in str(plain(value)):
                return None
        found[field.name] = value
    return type_.cls(**found)


def deep(value, make):
    if isinstance(value, list):
        return [deep(item, make) for item in value]
    if isinstance(value, dict):
        return {key: deep(item, make) for key, item in value.items()}
    if value is None:
        return None
    made = make(value)
    return "lost" if made is None else made


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs())
def test_one_version_reads_another_exactly_when_every_message_of_it_survives(pair):
    writer, reader = pair
    sending, reading = (message_type(class_from_schema(schema)) for schema in pair)
    finding = unreadable(writer, reader)
    event("read" if finding is None else f"not: {finding.what.split()[0]}")
    sent = []
    for message in messages(sending.cls, writer):
        try:
            sent.append((message, sending.encode(message)))
        except TypeMismatchError:
            continue  # dimensions of one name that differ
    assert sent, (writer.text, reader.text)
    if finding is not None:
        assert any(naive(message, writer, reading) is None for message, _ in sent), (
            finding,
            writer.text,
            reader.text,
        )
        return
    decode = make_convert(writer, reading)
    for message, (meta, buffers) in sent:
        got = decode(Native(meta, buffers), None)
        expected = naive(message, writer, reading)
        assert expected is not None and plain(got) == plain(expected), (writer.text, reader.text)
        reading.encode(got)
