"""Which pattern, delivery and overflow go together: the whole product, against the table of docs/SEMANTICS.md."""

import itertools

import pytest

from fabric import config, errors, limits
from fabric.config.rules import check_channel
from fabric.controlplane.attach import channel_from

SCHEMA_FREE = {"channel": "c", "type": "t"}
PRODUCT = list(
    itertools.product(config.PATTERNS, config.DELIVERIES, config.OVERFLOWS, (False, True))
)


def refused_pair(pattern, delivery, overflow, idempotent):
    """The table of docs/SEMANTICS.md, written once more: the two words that do not go together, or None."""
    if pattern == "broadcast" and delivery == "at_least_once":
        return {"broadcast", "at_least_once"}
    if pattern == "request" and delivery == "at_least_once" and not idempotent:
        return {"request", "at_least_once"}
    if overflow.startswith("drop_"):
        if delivery == "at_least_once":
            return {overflow, "at_least_once"}
        if pattern in ("request", "scatter"):
            return {overflow, pattern}
    return None


def test_the_table_leaves_the_combinations_that_the_design_counts():
    legal = [combination for combination in PRODUCT if refused_pair(*combination) is None]
    # stream and queue 2·(4 + 2), broadcast 4, request 2 + 2 idempotent, scatter 2·2; all with idempotent said or not.
    assert len(legal) == 2 * 12 + 2 * 4 + (2 + 4) + 2 * 4


@pytest.mark.parametrize(("pattern", "delivery", "overflow", "idempotent"), PRODUCT)
def test_a_file_is_refused_exactly_where_the_table_says_and_names_the_pair_and_the_fix(
    pattern, delivery, overflow, idempotent
):
    pair = refused_pair(pattern, delivery, overflow, idempotent)
    text = (
        f"version: 1\nchannels:\n  c: {{type: t, pattern: {pattern}, delivery: {delivery}, "
        f"overflow: {overflow}, idempotent: {str(idempotent).lower()}}}\n"
    )
    problems = config.validate(config.parse(text, source="f.yaml"))
    assert bool(problems) is (pair is not None)
    if pair:
        assert all(word in problems[0].what for word in pair)
        assert problems[0].fix.startswith(("Use", "Say"))
        assert problems[0].place.startswith("f.yaml:3:")


@pytest.mark.parametrize(("pattern", "delivery", "overflow", "idempotent"), PRODUCT)
async def test_a_process_that_declares_meets_the_same_rules(
    pattern, delivery, overflow, idempotent
):
    pair = refused_pair(pattern, delivery, overflow, idempotent)
    fields = {
        **SCHEMA_FREE,
        "pattern": pattern,
        "delivery": delivery,
        "overflow": overflow,
        "idempotent": idempotent,
    }
    if pair is None:
        record = await channel_from(fields)
        assert (record.pattern, record.delivery, record.overflow) == (pattern, delivery, overflow)
        assert record.idempotent is idempotent
        return
    with pytest.raises(errors.ConfigError) as caught:
        await channel_from(fields)
    assert all(word in caught.value.message for word in pair)


@pytest.mark.parametrize(
    ("field", "word", "said"),
    [
        ("pattern", "gather", "answering half of scatter"),
        ("pattern", "strem", "did you mean 'stream'"),
        ("delivery", "exactly_once", "use one of at_most_once, at_least_once"),
        ("overflow", "drop", "use one of block"),
        ("klass", "bluk", "did you mean 'bulk'"),
        ("pattern", "x" * 10**6, "there is no pattern"),
        ("pattern", 7, "`$.pattern`"),
        ("deadline_s", -1.0, "deadline"),
        ("deadline_s", float("nan"), "deadline"),
        ("deadline_s", limits.DEADLINE_S_MAX * 1.01, "deadline"),
        ("deadline_s", "soon", "deadline"),
        ("weight", 0, "a weight of 0. Use 1 to 100"),
        ("weight", limits.CHANNEL_WEIGHT_MAX + 1, "a weight of 101"),
        ("weight", "much", "`$.weight`"),
    ],
)
async def test_a_declaration_with_an_unknown_word_names_it_and_what_there_is(field, word, said):
    with pytest.raises(errors.ConfigError) as caught:
        await channel_from({**SCHEMA_FREE, field: word})
    assert said.lower() in caught.value.message.lower()
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("channel", "where"),
    [
        ({"reply": "u"}, "reply"),
        ({"reply": "u", "pattern": "broadcast"}, "reply"),
        ({"pattern": "request", "transforms": ("x",)}, "transforms"),
        ({"pattern": "broadcast", "transforms": ("x",)}, "transforms"),
        ({"transforms": ("x", "y", "x")}, "transforms[2]"),
    ],
)
def test_what_a_pattern_has_no_room_for_is_refused(channel, where):
    found = [p.where for p in check_channel(config.ChannelSpec(name="c", type="t", **channel))]
    assert found == [f"channels.c.{where}"]


@pytest.mark.parametrize("pattern", ["request", "scatter"])
def test_a_pattern_with_answers_may_name_their_type(pattern):
    spec = config.ChannelSpec(name="c", type="t", reply="u", pattern=pattern)
    assert list(check_channel(spec)) == []
