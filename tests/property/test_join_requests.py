"""Every request of a join ends exactly once, whatever comes: in any order, twice, late, not at all, over kills.

The machine plays the channels and the host: what was delivered and not ended comes again, flagged, after a kill. A kill
may come before an output was accepted, between that and its note, and between the acknowledgements of its parts.
"""

from __future__ import annotations

import itertools
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.abc.join import JoinRules
from fabric.worker import join_journal
from fabric.worker.join_journal import Journal, journal_bytes
from fabric.worker.join_matcher import (
    Dropped,
    Fuse,
    Matcher,
    Part,
    PartEnded,
    Repeated,
    Replaced,
)

INPUTS = ("image", "sound", "prompt")
RULES = st.builds(
    JoinRules,
    window_s=st.sampled_from([0.1, 1.0]),
    late=st.sampled_from(["wait", "partial", "drop"]),
    partial=st.sampled_from([("image",), ("image", "sound")]),
    deadline_s=st.just(2.0),
    max_entries=st.integers(1, 4),
    max_bytes=st.sampled_from([50, 1000]),
    overflow=st.sampled_from(["drop_oldest", "drop_newest"]),
)
KILLS = ("", "before it is accepted", "before it is noted", "before the last is acknowledged")


class Killed(Exception):
    """The host is no more."""


class JoinMachine(RuleBasedStateMachine):
    @initialize(rules=RULES)
    def begin(self, rules):
        self.rules, self.now = rules, 1
        self.memory = bytearray(journal_bytes())
        self.tokens = itertools.count(1)
        self.under_way = {}  # token → part that was delivered and has not ended
        self.ended = Counter()  # token → ends
        self.outputs = Counter()  # request → accepted outputs
        self.included = {}  # request → inputs that are in its output
        self.dropped = Counter()
        self.accepted = 0
        self.kill = ""
        self._start()

    def _start(self):
        self.journal = Journal(self.memory, INPUTS)
        doubt = self.journal.in_doubt()
        if doubt is not None:
            self.journal.settle(self.accepted > doubt.accepted_before)
        self.matcher = Matcher(self.rules, INPUTS, self.journal)

    def _killed(self):
        """What is under way comes again, in the order in which it was sent."""
        self.kill = ""
        left, self.under_way = self.under_way, {}
        self._start()
        for part in left.values():
            self._deliver(part._replace(redelivered=True))

    def _deliver(self, part):
        self.under_way[part.token] = part
        self._decide(lambda: self.matcher.add(part, self.now))

    def _decide(self, decide):
        try:
            for decision in decide():
                self._carry_out(decision)
        except Killed:
            self._killed()

    def _end(self, part):
        self.ended[part.token] += 1
        assert self.under_way.pop(part.token, None) is not None, "a part ended twice"

    def _carry_out(self, decision):
        if isinstance(decision, Fuse):
            self._fuse(decision)
        elif isinstance(decision, Dropped):
            self.dropped[decision.key] += 1
            for part in decision.parts:
                self._end(part)
        elif isinstance(decision, PartEnded | Repeated):
            part = decision.part
            is_put_out = part.redelivered and part.input in self.included.get(part.key, ())
            assert isinstance(decision, Repeated) == is_put_out, (
                "acknowledged if, and only if, it was put out"
            )
            self._end(part)
        else:
            assert isinstance(decision, Replaced)

    def _fuse(self, fuse):
        assert set(fuse.missing) <= set(self.rules.partial)
        assert set(fuse.parts) | set(fuse.missing) == set(INPUTS)
        self.journal.begin(fuse.key, frozenset(fuse.parts), 1, self.accepted)
        if self.kill == "before it is accepted":
            raise Killed
        self.accepted += 1
        self.outputs[fuse.key] += 1
        self.included[fuse.key] = set(fuse.parts)
        if self.kill == "before it is noted":
            raise Killed
        self.matcher.put_out(fuse)
        self.journal.end()
        for left, part in reversed(list(enumerate(fuse.parts.values()))):
            if left == 0 and self.kill == "before the last is acknowledged":
                raise Killed
            self._end(part)

    @rule(
        key=st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"]),
        name=st.sampled_from(INPUTS),
        size=st.sampled_from([0, 10, 60]),
        life_s=st.sampled_from([0, 0, 0, 0.05, 1.5]),
        kill=st.sampled_from((*KILLS, "", "")),
    )
    def part_comes(self, key, name, size, life_s, kill):
        self.kill = kill
        expires = self.now + int(life_s * 1e9) if life_s else 0
        self._deliver(Part(key, name, size, expires, False, next(self.tokens)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def a_copy_comes_while_the_first_is_held(self, data):
        """The flow was lost: the sender gives the same message again, and the first copy's end is void."""
        token = data.draw(st.sampled_from(sorted(self.under_way)))
        part = self.under_way.pop(token)
        self._deliver(part._replace(redelivered=True, token=next(self.tokens)))

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0]), kill=st.sampled_from(KILLS))
    def time_passes(self, seconds, kill):
        self.now += int(seconds * 1e9)
        self.kill = kill
        self._until_nothing_is_due()

    def _until_nothing_is_due(self):
        due = True
        while due:
            due = self.matcher.tick(self.now)
            self._decide(lambda due=due: due)

    @rule()
    def host_is_killed(self):
        self._killed()

    @invariant()
    def nothing_is_put_out_twice(self):
        if hasattr(self, "outputs"):
            assert all(count == 1 for count in self.outputs.values()), self.outputs

    @invariant()
    def what_waits_is_bounded_and_counted(self):
        if not hasattr(self, "matcher"):
            return
        assert self.matcher.waiting <= self.rules.max_entries
        assert self.matcher.waiting_bytes <= self.rules.max_bytes
        assert self.matcher.waiting_bytes == sum(p.size_bytes for p in self.under_way.values())
        assert self.matcher.waiting == len({p.key for p in self.under_way.values()})

    @invariant()
    def what_waits_is_looked_at_again(self):
        if hasattr(self, "matcher"):
            assert (self.matcher.next_ns() is None) == (not self.under_way)

    def teardown(self):
        """In the end nothing is left, each part has ended once, and each request in one way."""
        if not hasattr(self, "matcher"):
            return
        self.kill = ""
        self.now += int(10e9)
        self._until_nothing_is_due()
        assert not self.under_way
        assert self.matcher.waiting == self.matcher.waiting_bytes == 0
        assert all(count == 1 for count in self.ended.values())
        for key, count in self.outputs.items():
            assert count == 1 and not self.dropped[key], key
        assert all(count == 1 for count in self.dropped.values())
        counters = join_journal.read_counters(bytes(self.memory[: join_journal.HEAD_BYTES]))
        assert counters["fused"] + counters["partial"] == len(self.outputs)


TestJoinMachine = JoinMachine.TestCase
TestJoinMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
