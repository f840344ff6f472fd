"""Records within messages, enums, sized dimensions, places of tensors, former names, defaults and what is not shown."""

import enum
from typing import Literal

import msgspec
import numpy as np
import pytest

import fabric
from fabric.errors import CapacityError, TypeMismatchError
from fabric.messages import Schema, class_from_schema, message_type
from fabric.messages.json_schema import json_schema


class Native:
    """A received message over its own buffers."""

    def __init__(self, meta, buffers):
        self.meta, self._buffers = meta, buffers

    def tensor(self, index, dtype, shape):
        return np.asarray(self._buffers[index]).view(dtype).reshape(shape)


def through(message, cls=None):
    """Send and receive without a port; as `cls`, if given."""
    return message_type(cls or type(message)).decode(
        Native(*message_type(message).encode(message)), None
    )


class Colour(enum.Enum):
    red = "r"
    blue = "b"


@fabric.message("rc.point")
class Point:
    x: int
    y: int = 0


@fabric.message("rc.page")
class Page:
    label: str
    grid: fabric.Tensor["n m", "f32"]
    at: Point
    more: list[fabric.Tensor["n", "i8"]] = []
    mask: fabric.Tensor["n", "bool"] | None = None


@fabric.message("rc.book")
class Book:
    title: str
    cover: Page
    head: fabric.Tensor["n", "f32"]
    pages: list[Page]
    by_name: dict[str, Page]
    last: Page | None
    tail: fabric.Tensor["k", "i64"]
    colour: Colour = Colour.red
    mode: Literal["fast", "slow"] = "slow"


def page(n, items=0, mask=False):
    grid = np.full((1, n + 1), n, np.float32)
    return Page(
        f"p{n}",
        grid,
        Point(n, -n),
        [np.full(i, n, np.int8) for i in range(items)],
        np.ones(1, bool) if mask else None,
    )


def book():
    return Book(
        "b", page(1, 2), np.float32([5]), [page(2, 1, True), page(3)], {"x": page(4, 3)}, None,
        np.int64([6, 7]), Colour.blue,
    )  # fmt: skip


def said(page):
    items = [item.tolist() for item in page.more]
    return (
        page.label,
        page.at.x,
        page.grid.tolist(),
        items,
        None if page.mask is None else page.mask.tolist(),
    )


def test_records_with_tensors_come_back_whole_wherever_they_stand():
    sent, got = book(), through(book())
    assert (got.title, got.colour, got.mode) == ("b", Colour.blue, "slow") and got.last is None
    assert got.tail.tolist() == [6, 7] and got.head.tolist() == [5], "whatever varies before them"
    assert [said(p) for p in got.pages] == [said(p) for p in sent.pages]
    assert said(got.cover) == said(sent.cover) and said(got.by_name["x"]) == said(sent.by_name["x"])
    assert said(got.pages[1]) == said(page(3)), "and again"
    assert got.tensor_index("tail") == len(message_type(sent).encode(sent)[1]) - 1


def test_a_received_record_can_be_sent_on_alone_and_within_another():
    got = through(book())
    assert said(through(got.pages[0])) == said(page(2, 1, True))
    again = through(Book("c", got.cover, got.head, list(got.pages), {}, got.by_name["x"], got.tail))
    assert said(again.cover) == said(page(1, 2)) and said(again.last) == said(page(4, 3))


def test_who_knows_only_the_schema_reads_records_and_defaults_too():
    schema = Schema.parse(message_type(Book).schema.text)
    got = through(book(), class_from_schema(schema))
    assert said(got.pages[0]) == said(page(2, 1, True)) and got.colour == "b"
    made = class_from_schema(schema)("b", page(1), np.float32([5]), [], {}, None, np.int64([]))
    assert (made.colour, made.mode) == ("r", "slow")
    assert class_from_schema(Schema.parse(message_type(Point).schema.text))(3).y == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cover": None}, "'cover'"),
        ({"cover": Point(1)}, "'cover'"),
        ({"pages": [page(1), 5]}, "'pages'"),
        ({"pages": {"a": page(1)}}, "'pages'"),
        ({"cover": Page("p", np.zeros((2, 2), np.float64), Point(1))}, "'cover'.*'grid'"),
        ({"cover": Page("p", np.zeros((2, 2), np.float32), Point(1), [], np.ones(3, bool))}, "'cover'.*'n'"),
        ({"cover": Page("p", np.zeros((1, 1), np.float32), Point("x"))}, "'cover'"),
        ({"colour": "green"}, "'colour'"),
        ({"mode": "other"}, "'mode'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_record_or_an_enum_is_refused_by_field(change, field):
    broken = book()
    for name, value in change.items():
        setattr(broken, name, value)
    with pytest.raises(TypeMismatchError, match=field):
        message_type(Book).encode(broken)


def test_tensors_of_all_records_together_are_bounded():
    with pytest.raises(CapacityError, match="TENSORS_PER_MESSAGE_MAX"):
        message_type(Book).encode(
            Book("b", page(1), np.float32([1]), [page(1)] * 64, {}, None, np.int64([]))
        )


def test_a_named_dimension_with_a_size_is_checked_at_declaration_and_send():
    @fabric.message("rc.sized")
    class Sized:
        k: fabric.Tensor["tokens dim=4", "f32"]
        v: fabric.Tensor["tokens dim", "f32"]

    type_ = message_type(Sized)
    assert type_.schema.fields[0].dims == ["tokens", "dim=4"]
    through(Sized(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)))
    for k, v, why in (
        ((2, 5), (2, 5), "5 where 4"),
        ((2, 4), (2, 5), "'dim'"),
        ((2, 4), (3, 4), "'tokens'"),
    ):
        with pytest.raises(TypeMismatchError, match=why):
            type_.encode(Sized(np.zeros(k, np.float32), np.zeros(v, np.float32)))
    with pytest.raises(TypeMismatchError, match="5 where 4"):
        type_.plan_loan({"k": (2, 5), "v": (2, 5)})
    with pytest.raises(TypeMismatchError, match="'dim' is 5 here and 4 before"):
        annotations = {"k": fabric.Tensor["dim=4", "f32"], "v": fabric.Tensor["dim=5", "f32"]}
        fabric.message("rc.two")(type("Two", (), {"__annotations__": annotations}))
    with pytest.raises(TypeMismatchError, match="two sizes"):
        fabric.Tensor["n=1 n=2", "f32"]


def test_where_and_how_a_tensor_may_lie_is_declared_and_nothing_is_copied_unseen():
    torch = pytest.importorskip("torch")

    @fabric.message("rc.placed")
    class Placed:
        host: fabric.Tensor["n m", "f32", "cpu contiguous"] | None = None
        card: fabric.Tensor["n m", "f32", "cuda"] | None = None

    array, type_ = np.zeros((2, 3), np.float32), message_type(Placed)
    assert str(type_.tensors[0].spec) == 'Tensor["n m", "f32", "cpu contiguous"] | None'
    assert through(Placed(array)).host.shape == through(Placed(torch.zeros(2, 3))).host.shape
    for value, why in (
        (array.T, "not contiguous"),
        (torch.zeros(2, 3).T, "not contiguous"),
        (torch.zeros(2, 3, device="meta"), "'host' lies on meta"),
    ):
        with pytest.raises(TypeMismatchError, match=why):
            type_.encode(Placed(value))
    for value in (array, torch.zeros(2, 3), array):
        with pytest.raises(TypeMismatchError, match="'card' lies on cpu"):
            type_.encode(Placed(card=value))
    with pytest.raises(TypeMismatchError, match="a loan lies on the host"):
        type_.plan_loan({"card": (2, 3)})
    with pytest.raises(TypeMismatchError, match="no device"):
        fabric.Tensor["n", "f32", "tpu"]


def test_redacted_fields_travel_and_are_not_shown():
    from fabric.cli.message_json import to_line

    @fabric.message("rc.secret")
    class Secret:
        user: str
        token: fabric.Redacted[str]
        face: fabric.Redacted[fabric.Tensor["n", "f32"]] | None
        note: fabric.Redacted[str] | None = None
        pin: int = fabric.field(default=7, redacted=True)

    got = through(Secret("u", "hush", np.float32([1]), pin=9))
    assert (got.token, got.pin, got.face.tolist()) == ("hush", 9, [1])
    shown = repr(got) + to_line(got)
    assert "hush" not in shown and "9" not in shown and shown.count("[redacted]") == 8
    known = through(
        Secret("u", "hush", np.float32([1])), class_from_schema(message_type(Secret).schema)
    )
    assert "hush" not in to_line(known), "also to who knows only the schema"


def test_fields_say_their_former_names_and_one_default():
    @fabric.message("rc.renamed", version=2)
    class Renamed:
        count: int = fabric.field(default_factory=lambda: 3, alias=("number", "n"))

    assert Renamed().count == 3
    assert message_type(Renamed).schema.fields[0].alias == ["number", "n"]
    with pytest.raises(TypeMismatchError, match="a default and a default_factory"):
        annotations = {
            "__annotations__": {"x": int},
            "x": fabric.field(default=1, default_factory=int),
        }
        fabric.message("rc.both")(type("Both", (), annotations))
    with pytest.raises(TypeMismatchError, match="names a field twice"):
        annotations = {"__annotations__": {"x": int, "y": int}, "y": fabric.field(alias="x")}
        fabric.message("rc.taken")(type("Taken", (), annotations))


def test_a_default_of_a_peers_schema_is_of_the_fields_type():
    text = {
        "name": "t",
        "version": 1,
        "fields": [{"name": "x", "type": "int", "has_default": True, "default": "no"}],
    }
    with pytest.raises(TypeMismatchError, match="'x': its default"):
        class_from_schema(Schema.parse(msgspec.json.encode(text)))


def test_records_do_not_lie_deeper_than_the_limit():
    cls = Point
    with pytest.raises(TypeMismatchError, match="RECORD_DEPTH_MAX"):
        for depth in range(8):
            cls = fabric.message(f"rc.deep{depth}")(
                type("Deep", (), {"__annotations__": {"inner": cls}})
            )


def test_json_schema_takes_what_channel_send_takes():
    fastjsonschema = pytest.importorskip("fastjsonschema")
    from fabric.cli.message_json import from_line

    made = json_schema(message_type(Book).schema)
    validate = fastjsonschema.compile(
        {**made, "$schema": "http://json-schema.org/draft-07/schema#"}
    )
    cover = {"label": "p", "grid": [[1.0]], "at": {"x": 1}}
    line = {
        "title": "b",
        "cover": cover,
        "head": {"shape": [1]},
        "pages": [cover],
        "by_name": {},
        "last": None,
        "tail": [],
    }
    validate(line)
    got = from_line(Book, msgspec.json.encode(line).decode(), "line 1")
    assert said(through(got).pages[0]) == ("p", 1, [[1.0]], [], None)
    for broken in ({"colour": "green"}, {"cover": {**cover, "at": {}}}, {"unknown": 1}):
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            validate({**line, **broken})
    assert made["properties"]["head"]["x-fabric"]["tensor"]["dims"] == ["n"]
