"""Run the subjects of a row in turn, round by round, and compare them.

A round runs every subject once, in an order that is turned round each time, so that whatever else the machine does
falls on all of them. What comes first warms up, says how much fits the row's time, and is thrown away. A ratio is
formed within a round and only then summarised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from bench.figures import figures, spent_ns
from bench.sides import Pair, Placement, Subject, SubjectFailed

ROUNDS = 5
ROUNDS_AGAIN = 9
ATTEMPTS = 3
ORDER_S = 60.0
FAILURES_MAX = 2  # of a subject, after which it counts as missing for the rest of the run
VERIFIED_BYTES = 64 << 20  # in one order; at least one message is verified
VERIFIED_MESSAGES = 5
NEEDS = {
    "round_trips": "send",
    "one_way": "send",
    "idle": "send",
    "typed": "send_typed",
    "bulk": "send_array",
    "loaned": "loan",
    "hand_over": "loan",
}


class Half(Protocol):
    """What the rounds ask of a pair."""

    can: frozenset[str]

    def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
        """Run one workload and return both answers."""

    def stop(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Contender:
    """A subject, what it is asked to do where that differs from the row's order, and what it is called then."""

    subject: Subject
    order: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        """The subject's, unless it has another here."""
        return self.title or self.subject.name


@dataclass(frozen=True)
class Amount:
    """How much one round is.

    Attributes
    ----------
    seconds : float
        What the timed part of a subject may take in one round.
    least, most : int
        Bounds of the count that is chosen to fill it.
    """

    seconds: float
    least: int
    most: int


@dataclass
class Attempt:
    """The rounds of one attempt: figures by contender, one mapping a round, and why others have none."""

    rounds: int
    values: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def series(self, name: str, figure: str) -> list[float] | None:
        """Return one figure of one contender, round by round; None where it has none."""
        rounds = self.values.get(name)
        if not rounds or any(figure not in values for values in rounds):
            return None
        return [values[figure] for values in rounds]


class Pairs:
    """The pairs that are alive, by subject; each is started when first asked for."""

    def __init__(
        self, placement: Placement, start: Callable[[Subject, Placement], Half] = Pair
    ) -> None:
        self.placement = placement
        self._start = start
        self._alive: dict[str, Half] = {}
        self._verified: set[tuple[str, Any]] = set()
        self._failures: dict[str, list[str]] = {}

    def get(self, subject: Subject) -> Half:
        """Return the pair of a subject.

        Raises
        ------
        SubjectFailed
            It does not start, or has failed too often.
        """
        reasons = self._failures.get(subject.name, [])
        if len(reasons) >= FAILURES_MAX:
            raise SubjectFailed(reasons[-1])
        if subject.name not in self._alive:
            try:
                self._alive[subject.name] = self._start(subject, self.placement)
            except SubjectFailed as error:
                self.failed(subject, str(error))
                raise
        return self._alive[subject.name]

    def failed(self, subject: Subject, reason: str) -> None:
        """Forget a pair that has failed."""
        self._failures.setdefault(subject.name, []).append(reason)
        self._verified = {each for each in self._verified if each[0] != subject.name}
        pair = self._alive.pop(subject.name, None)
        if pair is not None:
            pair.stop()

    def is_first(self, subject: Subject, what: Any) -> bool:
        """Whether this was not verified yet."""
        key = (subject.name, what)
        is_new = key not in self._verified
        self._verified.add(key)
        return is_new

    def keep(self, subjects: Iterable[Subject]) -> None:
        """Stop the pairs of all others."""
        names = {subject.name for subject in subjects}
        for name in [name for name in self._alive if name not in names]:
            self._alive.pop(name).stop()

    def close(self) -> None:
        """Stop every pair."""
        self.keep([])


class Contest:
    """One row in one placement: contenders that do the same work."""

    def __init__(
        self,
        pairs: Pairs,
        order: Mapping[str, Any],
        amount: Amount | None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._pairs, self._order, self._amount, self._report = pairs, order, amount, report

    def attempt(
        self, contenders: list[tuple[str, Contender]], rounds: int, essential: str = ""
    ) -> Attempt:
        """Warm up, then run all contenders, given by a label, for a number of rounds.

        Where the `essential` one does not get through its warm-up, nothing is left to be measured.
        """
        found = Attempt(rounds)
        orders: dict[str, dict[str, Any]] = {}
        for label, contender in contenders:
            self._report(f"warm-up of {label}")
            self._guard(found, label, partial(self._prepare, contender), orders)
            if label == essential and label in found.failed:
                return found
        for number in range(rounds):
            self._report(f"round {number + 1} of {rounds}")
            for label, contender in contenders if number % 2 == 0 else contenders[::-1]:
                if label in found.failed:
                    continue
                values: dict[str, tuple[dict[str, float], int]] = {}
                if self._guard(found, label, partial(self._run, contender, orders[label]), values):
                    found.values.setdefault(label, []).append(values[label][0])
        for label in found.failed:
            found.values.pop(label, None)
        return found

    def _guard(
        self,
        found: Attempt,
        label: str,
        act: Callable[[], Any],
        results: dict[str, Any],
    ) -> bool:
        """Do something with a contender; one that fails is out of this attempt, and the others go on."""
        try:
            results[label] = act()
        except SubjectFailed as error:
            found.failed[label] = str(error)
            return False
        return True

    def _prepare(self, contender: Contender) -> dict[str, Any]:
        """Verify what arrives, find the count that fills the time, warm up; return the order of a round."""
        order = fit(self._pairs.get(contender.subject).can, {**self._order, **contender.order})
        if order is None:
            raise SubjectFailed(f"{contender.name} offers nothing for {self._order['run']}")
        self._verify(contender, order)
        if self._amount is None:
            return order
        order["count"] = whole(self._amount.least, order)
        _, took_ns = self._run(contender, order)
        order["count"] = count_for(self._amount, order["count"], took_ns, order)
        return order

    def _verify(self, contender: Contender, order: Mapping[str, Any]) -> None:
        """Send random contents there and compare checksums."""
        check = verification(order)
        pair = self._pairs.get(contender.subject)
        if check is None or not {"verify", "send", "send_array"} & pair.can:
            return
        if self._pairs.is_first(contender.subject, tuple(sorted(check.items()))):
            near, far = self._ask(contender, check)
            if near["crc"] != far["crc"]:
                reason = f"{contender.name}: what arrived is not what was sent ({check})"
                self._pairs.failed(contender.subject, reason)
                raise SubjectFailed(reason)

    def _run(self, contender: Contender, order: Mapping[str, Any]) -> tuple[dict[str, float], int]:
        """Return the figures of one order, and what its timed part took in nanoseconds."""
        start = time.perf_counter_ns()
        near, far = self._ask(contender, order)
        wall_ns = time.perf_counter_ns() - start
        return figures(order, near, far, wall_ns), spent_ns(near, wall_ns)

    def _ask(self, contender: Contender, order: Mapping[str, Any]) -> tuple[Any, Any]:
        pair = self._pairs.get(contender.subject)
        try:
            return pair.order(order, ORDER_S)
        except SubjectFailed as error:
            self._pairs.failed(contender.subject, str(error))
            raise


def fit(can: frozenset[str], order: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the order as a subject does that work best, None where it cannot.

    Where it has no batches it is called once a message, where it lends no memory it sends an array.
    """
    fitted = dict(order)
    run = order["run"]
    if run in can:
        return fitted
    if "batch" in order and "send_many" not in can:
        del fitted["batch"]
    if run == "loaned" and "loan" not in can:
        return fit(can, {**order, "run": "bulk"})
    return fitted if NEEDS.get(run, run) in can else None


def verification(order: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the order that verifies the contents of another; None where that has no contents of its own."""
    run = order["run"]
    if run not in ("round_trips", "one_way", "bulk", "loaned", "hand_over"):
        return None
    count = max(1, min(VERIFIED_MESSAGES, VERIFIED_BYTES // order["size"]))
    check = {"run": "verify", "size": order["size"], "count": count, "seed": 7}
    if run in ("round_trips", "one_way"):
        return check
    return {**check, "as_array": True, "loaned": run != "bulk"}


def count_for(amount: Amount, count: int, took_ns: int, order: Mapping[str, Any]) -> int:
    """Return the count that fills the row's time, from what `count` took."""
    fits = int(amount.seconds * 1e9 * count / max(1, took_ns))
    return whole(max(amount.least, min(amount.most, fits)), order)


def whole(count: int, order: Mapping[str, Any]) -> int:
    """Round up to whole batches."""
    batch = int(order.get("batch", 1))
    return -(-count // batch) * batch
