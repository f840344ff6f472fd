"""The routing seam, one suite over every first-party policy, the native built-in ones, and policies that break it.

What each must keep: it answers offered targets only, the same state gives the same answer, no input of its own is
changed, targets may come and go, a key may be empty. What it is for (spread, keys that stay, order) is asked of those
that promise it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fabric_routes.broadcast import broadcast
from fabric_routes.content import Content
from fabric_routes.deadline import Deadline
from fabric_routes.expert_top_k import ExpertTopK
from fabric_routes.failover import Failover
from fabric_routes.hash_key import HashKey
from fabric_routes.least_outstanding import LeastOutstanding
from fabric_routes.locality import Locality
from fabric_routes.prefix_affinity import PrefixAffinity
from fabric_routes.round_robin import RoundRobin
from fabric_routes.weighted import Weighted
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import _native
from fabric.abc.route import Header, Policy, Target, decide, route
from fabric.config.routes import BUILT_IN
from fabric.errors import ContractError

NODE = 1 << 32
Make = Callable[[], Policy]


class Native:
    """A built-in policy as a sender runs it, behind the same seam."""

    def __init__(self, name: str, **options: Any) -> None:
        self._kernel = _native.RouteKernel(name, **options)

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        rows = [
            (t.endpoint, t.outstanding, t.load, int(t.service_us * 1000), 1.0, 0, t.distance)
            for t in targets
        ]
        return targets[self._kernel.choose(rows, header.key or b"")]


@dataclass(frozen=True)
class Case:
    """A policy, and what it promises beside the contract."""

    name: str
    make: Make
    spreads: bool = True  #: messages without a key, of even load, go to all targets alike
    keeps_keys: bool = False
    fields: dict[str, Any] = field(default_factory=lambda: {"expert": 3, "block_hashes": [1, 2, 3]})


def native(name: str) -> Make:
    return lambda: Native(name).select


CASES = [
    Case("round_robin", lambda: RoundRobin().select),
    Case("least_outstanding", lambda: LeastOutstanding().select),
    Case("hash_key", lambda: HashKey().select, spreads=False, keeps_keys=True),
    Case("weighted", lambda: Weighted().select),
    Case("locality", lambda: Locality().select),
    Case("failover", lambda: Failover().select, spreads=False),
    Case("deadline", lambda: Deadline().select),
    Case("broadcast", lambda: broadcast, spreads=False),
    Case("content", lambda: Content([]).select, keeps_keys=True),
    Case("expert_top_k", lambda: ExpertTopK(experts=8).select, spreads=False),
    Case("prefix_affinity", lambda: PrefixAffinity().select, fields={}),
    *(
        Case(
            f"native {name}", native(name), name not in ("hash_key", "failover"), name == "hash_key"
        )
        for name in BUILT_IN
        if name != "broadcast"
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
rows = st.lists(
    st.tuples(
        st.integers(1, 1 << 40), st.integers(0, 300), st.integers(0, 300), st.integers(0, 50_000), st.integers(0, 1)
    ),
    min_size=1, max_size=12, unique_by=lambda row: row[0],
)  # fmt: skip
keys = st.one_of(st.none(), st.binary(max_size=40))


def targets_of(drawn: list[tuple[int, int, int, int, int]]) -> list[Target]:
    return [
        Target(
            flow=i, endpoint=e, module=f"m-{i % 3}", outstanding=o, load=l, service_us=float(s), distance=d
        )
        for i, (e, o, l, s, d) in enumerate(drawn)
    ]  # fmt: skip


def even(count: int) -> list[Target]:
    return [Target(flow=i, endpoint=NODE + i, module=f"m-{i}") for i in range(count)]


def first(case: Case, policy: Policy, header: Header, targets: Sequence[Target]) -> Target:
    return decide(case.name, policy, header, targets)[0]


@every
@settings(max_examples=40)
@given(drawn=rows, asked=st.lists(keys, min_size=1, max_size=6))
def test_it_answers_offered_targets_only_and_the_same_state_gives_the_same(case, drawn, asked):
    targets = targets_of(drawn)
    before = list(targets)
    one, other = case.make(), case.make()
    for key in asked:
        header = Header("c", key=key, fields=case.fields)
        assert decide(case.name, one, header, targets) == decide(case.name, other, header, targets)
    assert targets == before, "what it was given is as it was"


@every
@settings(max_examples=40)
@given(changes=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=12), key=keys)
def test_targets_come_and_go(case, changes, key):
    targets, policy = even(8), case.make()
    for present in changes:
        offered = [targets[i] for i in sorted(present)]
        chosen = first(case, policy, Header("c", key=key, fields=case.fields), offered)
        assert chosen in offered


@every
def test_an_empty_key_and_none_are_keys_like_others(case):
    for key in (None, b"", b"\0" * 200):
        assert first(case, case.make(), Header("c", key=key, fields=case.fields), even(3))


@pytest.mark.parametrize("case", [c for c in CASES if c.spreads], ids=lambda case: case.name)
def test_even_targets_get_even_shares(case):
    policy, targets = case.make(), even(5)
    shares: Counter[int] = Counter()
    for _ in range(1000):
        chosen = first(case, policy, Header("c", fields=case.fields), targets)
        shares[chosen.flow] += 1
        at = chosen.flow
        targets[at] = replace(targets[at], outstanding=targets[at].outstanding + 1)
    assert max(shares.values()) <= 1.25 * 200 and min(shares.values()) >= 0.75 * 200


@pytest.mark.parametrize("case", [c for c in CASES if c.keeps_keys], ids=lambda case: case.name)
@given(
    names=st.sets(st.binary(min_size=1, max_size=20), min_size=1, max_size=40),
    gone=st.integers(0, 5),
)
def test_a_lost_target_moves_only_its_own_keys(case, names, gone):
    targets, policy = even(6), case.make()
    for name in names:
        header = Header("c", key=name)
        before = first(case, policy, header, targets)
        assert first(case, policy, header, targets[::-1]) == before, "whatever the order"
        after = first(case, policy, header, [t for t in targets if t.flow != gone])
        assert before.flow == gone or after == before


@pytest.mark.parametrize("case", [c for c in CASES if "hash_key" in c.name], ids=lambda c: c.name)
@given(names=st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=300))
def test_hash_key_gives_no_target_more_than_its_bound(case, names):
    policy, targets = case.make(), even(4)
    for count, name in enumerate(names, 1):
        chosen = first(case, policy, Header("c", key=name), targets)
        targets[chosen.flow] = replace(chosen, outstanding=chosen.outstanding + 1)
        assert max(t.outstanding for t in targets) <= math.ceil(1.25 * count / 4)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "broadcast"])
@settings(max_examples=60)
@given(drawn=st.lists(rows, min_size=1, max_size=8), key=keys)
def test_the_native_policy_says_what_the_one_in_python_says(name, drawn, key):
    python = next(case.make() for case in CASES if case.name == name)
    kernel = Native(name).select
    for one in drawn:
        targets, header = targets_of(one), Header("c", key=key)
        assert kernel(header, targets) == decide(name, python, header, targets)[0]


# ------------------------------------------------------------------ policies that break the contract
def endless(header: Header, targets: Sequence[Target]) -> Any:
    while True:
        yield targets[0]


FAKES: dict[str, Callable[[Header, Sequence[Target]], Any]] = {
    "nothing": lambda header, targets: None,
    "an empty list": lambda header, targets: [],
    "a number": lambda header, targets: 3,
    "a flow instead of a target": lambda header, targets: targets[0].flow,
    "a target that was not offered": lambda header, targets: Target(flow=99, endpoint=99),
    "an offered flow with another endpoint": lambda h, t: replace(t[0], endpoint=12345),
    "a target and rubbish": lambda header, targets: [targets[0], "x"],
}


@pytest.mark.parametrize("answer", FAKES.values(), ids=FAKES)
def test_nonsense_is_refused_by_name(answer):
    with pytest.raises(ContractError, match="route 'fake' answered"):
        decide("fake", answer, Header("c"), even(3))


def test_an_endless_answer_is_cut_off():
    assert len(decide("fake", endless, Header("c"), even(3))) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"per": "message"}, "use one of flow, batch"),
        ({"fallback": "round_robbin"}, "did you mean 'round_robin'"),
        ({"fallback": "broadcast"}, "use a built-in policy"),
    ],
)
def test_a_declaration_with_an_unknown_word_is_refused(options, said):
    with pytest.raises(ContractError, match=said):
        route("fake", **options)(lambda header, targets: targets[0])
