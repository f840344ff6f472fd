"""Routing policies: beside a slow replica, over cached prefixes of a real trace, and what they cost a sender."""

from __future__ import annotations

from bench.rounds import Amount, Contender
from bench.rows import Row
from bench.sides import Subject
from bench.verdicts import Bar

ROUTING = Subject("fabric routes", "bench.ours.routing")
SENDS = Amount(seconds=1.0, least=1_280, most=64_000)
BUILT_IN = (
    "round_robin",
    "least_outstanding",
    "hash_key",
    "weighted",
    "locality",
    "failover",
    "deadline",
)


def routed(workload: str, policy: str | None) -> Contender:
    """Return the subject with a policy; None: without one."""
    return Contender(ROUTING, {"run": workload, "route": policy}, policy or "no policy")


def cost(policy: str, title: str, bar: float) -> Row:
    """Return a row of the CPU time a send takes with a policy, beside one without."""
    return Row(
        "transforms",
        f"CPU of a send, {title}",
        {"run": "send"},
        routed("send", policy),
        (),
        routed("send", None),
        (Bar("cpu_us", bar, "floor"),),
        SENDS,
        ("cpu_us",),
    )


ROUTES = (
    Row(
        "transforms",
        "one of 4 replicas slowed 10 ×, open loop at 60 %",
        {"run": "slow"},
        routed("slow", "least_outstanding"),
        (),
        routed("slow", "round_robin"),
        (Bar("slow_p99_us", 0.5, "floor"),),
        None,
        ("p50_us", "slow_p99_us", "recover_s"),
    ),
    Row(
        "transforms",
        "least_outstanding, when the slow replica is fast again",
        {"run": "slow"},
        routed("slow", "least_outstanding"),
        (),
        1.0,
        (Bar("recover_s", 1.0, "floor"),),
        None,
        ("recover_s",),
    ),
    Row(
        "transforms",
        "prefix_affinity on the conversation trace, 8 replicas",
        {"run": "prefix"},
        Contender(ROUTING, {"run": "prefix"}, "prefix_affinity"),
        (),
        1.0,
        (Bar("hit_share", 0.9, "floor"), Bar("imbalance", 1.25, "floor")),
        None,
        ("hit_share", "imbalance"),
        rounds=1,
        is_exact=True,
    ),
    *(cost(policy, policy, 1.15) for policy in BUILT_IN),
    cost("bench_cached", "a cached policy in Python", 1.25),
)
