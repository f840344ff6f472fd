"""What single policies are for, beyond the suite that all of them keep (tests/conformance/test_routes.py)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fabric_routes.content import Content
from fabric_routes.deadline import Deadline
from fabric_routes.expert_top_k import ExpertTopK, place, top_k
from fabric_routes.failover import Failover
from fabric_routes.least_outstanding import LeastOutstanding
from fabric_routes.locality import Locality
from fabric_routes.prefix_affinity import PrefixAffinity
from fabric_routes.round_robin import RoundRobin
from fabric_routes.weighted import Weighted

from fabric.abc.route import Header, Target

NODE = 1 << 32
NAMES = ("stable", "stable-1", "canary")
TARGETS = [Target(flow=i, endpoint=NODE + i, module=name) for i, name in enumerate(NAMES)]


def asked(policy, count, targets=TARGETS):
    return [policy.select(Header("c"), targets) for _ in range(count)]


def test_round_robin_goes_on_after_a_target_was_lost():
    policy = RoundRobin()
    assert [t.flow for t in asked(policy, 5)] == [0, 1, 2, 0, 1]
    assert policy.select(Header("c"), [TARGETS[0], TARGETS[2]]) == TARGETS[2]


def test_round_robin_turns_per_channel():
    policy = RoundRobin()
    assert policy.select(Header("a"), TARGETS) == policy.select(Header("b"), TARGETS)


def test_the_busiest_target_is_never_drawn_where_all_others_are_idle():
    busy = [Target(flow=i, endpoint=NODE + i, load=9 * (i == 1)) for i in range(3)]
    assert 1 not in {t.flow for t in asked(LeastOutstanding(), 200, targets=busy)}


def test_a_canary_gets_its_share_and_replicas_divide_theirs():
    shares = Counter(t.flow for t in asked(Weighted({"stable": 9, "canary": 1}), 1000))
    assert shares == {0: 450, 1: 450, 2: 100}


def test_who_has_no_weight_gets_nothing_until_nobody_else_is_there():
    policy = Weighted({"stable": 1})
    assert 2 not in {t.flow for t in asked(policy, 50)}
    assert policy.select(Header("c"), [TARGETS[2]]) == TARGETS[2]


def test_locality_leaves_the_node_only_when_the_near_ones_are_full():
    near = Target(flow=0, endpoint=NODE, outstanding=3)
    far = Target(flow=1, endpoint=2 * NODE, distance=1)
    assert Locality().select(Header("c"), [far, near])[0] == near
    assert Locality(spill=3).select(Header("c"), [far, near])[0] == far


def test_failover_follows_the_order_given_then_age():
    assert [t.flow for t in Failover().select(Header("c"), TARGETS[::-1])] == [0, 1, 2]
    assert [t.flow for t in Failover(["canary"]).select(Header("c"), TARGETS)] == [2, 0, 1]


def test_deadline_prefers_a_long_queue_of_a_fast_target_to_a_short_one_of_a_slow():
    fast = Target(flow=0, endpoint=1, outstanding=8, service_us=100)
    slow = Target(flow=1, endpoint=2, outstanding=1, service_us=1000)
    unknown = Target(flow=2, endpoint=3, outstanding=1)
    assert [t.flow for t in Deadline().select(Header("c"), [slow, fast])] == [0, 1]
    assert Deadline().select(Header("c"), [slow, fast, unknown])[0] == unknown


def test_content_sends_by_the_first_rule_that_matches():
    policy = Content(
        [
            {"when": {"tier": ["gold", "silver"]}, "to": "canary"},
            {"when": {"n": 3}, "to": ["stable"]},
        ]
    )
    assert policy.reads == ("tier", "n")

    def to(**fields):
        return {t.flow for t in policy.select(Header("c", fields=fields), TARGETS)}

    assert to(tier="gold") == {2} and to(tier="lead", n=3) == {0, 1} and to() == {0, 1, 2}
    assert {t.flow for t in policy.select(Header("c", fields={"tier": "gold"}), TARGETS[:2])} == {
        0,
        1,
    }


@pytest.mark.parametrize("rule", [{}, {"when": {}, "to": "a"}, {"when": {"x": 1}, "too": "a"}])
def test_content_refuses_a_rule_that_says_nothing(rule):
    with pytest.raises(ValueError, match="rule 1 is not"):
        Content([rule])


def prompt(*blocks):
    return Header("c", fields={"block_hashes": list(blocks)})


def test_a_prompt_goes_where_its_longest_prefix_is():
    policy = PrefixAffinity()
    homes = [policy.select(prompt(*range(100 * i, 100 * i + 8)), TARGETS) for i in range(3)]
    assert {t.flow for t in homes} == {0, 1, 2}, "prompts of nothing in common spread"
    for i in (2, 0, 1):
        assert policy.select(prompt(*range(100 * i, 100 * i + 8), 7777), TARGETS) == homes[i]


def test_a_prefix_that_everyone_shares_does_not_draw_everyone_to_one_target():
    policy = PrefixAffinity()
    shares = Counter(policy.select(prompt(1, 2, 3, 1000 + i), TARGETS).flow for i in range(300))
    assert max(shares.values()) <= 125


def test_what_a_target_no_longer_holds_draws_nobody():
    policy = PrefixAffinity(capacity_blocks=4)
    held = policy.select(prompt(1, 2, 3, 4), TARGETS[:1])
    policy.select(prompt(5, 6, 7, 8), TARGETS[:1])
    assert policy._prefix(held.endpoint, [1, 2, 3, 4]) == 0


def test_experts_live_in_even_runs():
    assert place(np.arange(8), 8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    chosen = [
        ExpertTopK(8).select(Header("c", fields={"expert": e}), TARGETS[::-1]).flow
        for e in range(8)
    ]
    assert chosen == [0, 0, 0, 1, 1, 1, 2, 2]


class Scatterer:
    """Answers every row as expert `e` would: row times (e + 1); counts rows by target."""

    def targets(self):
        return [11, 22]

    def call(self, message, index, targets=None, deadline=None):
        rows, experts = message
        self.sent = Counter(
            (targets[i], e // 2) for i, e in zip(index, experts.tolist(), strict=True)
        )
        return type("Answer", (), {"y": (rows * (experts[:, None] + 1)).astype(np.float32)})


def test_rows_meet_their_experts_and_come_back_weighted():
    x = np.arange(6.0).reshape(3, 2)
    experts, weights = [[3, 0], [1, 2], [0, 1]], [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]
    scatterer = Scatterer()
    found = top_k(
        scatterer, lambda rows, e: (x[rows], e), experts, weights, expert_count=4, fields=["y"]
    )
    factor = (np.asarray(weights) * (np.asarray(experts) + 1)).sum(1)
    np.testing.assert_allclose(found["y"], x * factor[:, None])
    assert set(scatterer.sent) == {(11, 0), (22, 1)}, "experts 0 and 1 live on the first"


@pytest.mark.parametrize(
    ("experts", "weights"), [([[4]], [[1.0]]), ([[0, 1]], [[1.0]]), ([0], [1.0])]
)
def test_experts_that_make_no_sense_are_refused_before_anything_is_sent(experts, weights):
    with pytest.raises(ValueError, match=r"expert"):
        top_k(None, lambda rows, e: None, experts, weights, expert_count=4, fields=["y"])
