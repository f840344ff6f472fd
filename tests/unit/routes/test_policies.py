from collections import Counter

from fabric_routes.failover import failover
from fabric_routes.hash_key import hash_key
from fabric_routes.least_outstanding import least_outstanding
from fabric_routes.round_robin import RoundRobin

from fabric.abc.route import Header, Target

NODE = 1 << 32
TARGETS = [Target(flow=i, endpoint=NODE + i, outstanding=9 - i) for i in range(3)]
KEYS = [Header("c", key=b"key-%d" % i) for i in range(300)]


def test_round_robin_gives_every_target_its_turn():
    policy = RoundRobin()
    chosen = [policy.select(Header("c"), TARGETS).flow for _ in range(6)]
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_round_robin_turns_per_channel():
    policy = RoundRobin()
    assert policy.select(Header("a"), TARGETS) == policy.select(Header("b"), TARGETS)


def test_round_robin_goes_on_after_a_target_was_lost():
    policy = RoundRobin()
    policy.select(Header("c"), TARGETS)
    policy.select(Header("c"), TARGETS)
    assert policy.select(Header("c"), [TARGETS[0], TARGETS[2]]) == TARGETS[2]


def test_least_outstanding_puts_the_least_loaded_first():
    assert [t.flow for t in least_outstanding(Header("c"), TARGETS)] == [2, 1, 0]


def test_hash_key_gives_one_key_one_target_whatever_the_order():
    for header in KEYS[:20]:
        assert hash_key(header, TARGETS)[0] == hash_key(header, TARGETS[::-1])[0]


def test_hash_key_spreads_keys():
    share = Counter(hash_key(header, TARGETS)[0].flow for header in KEYS)
    assert min(share[t.flow] for t in TARGETS) > len(KEYS) / 6


def test_hash_key_moves_only_the_keys_of_a_lost_target():
    for header in KEYS:
        before = hash_key(header, TARGETS)[0]
        after = hash_key(header, TARGETS[:2])[0]
        assert before == TARGETS[2] or after == before


def test_failover_keeps_to_the_first_opened_while_it_is_there():
    assert failover(Header("c"), TARGETS[::-1])[0] == TARGETS[0]
    assert failover(Header("c"), TARGETS[1:])[0] == TARGETS[1]
