"""A simulated network of rails between two hosts: rates, delays, queues, losses, failures on a schedule.

Deterministic: nothing waits in real time, and the same calls give the same run. The native simulator drives the very
scheduler that the engine drives. A run that does not hold raises with its seed and the schedule to keep.
"""

from __future__ import annotations

from fabric.paths import simulation
from fabric.paths.simulation import Outcome


class BrokenRun(AssertionError):
    """Something did not hold in a simulated run; the text has the seed and the schedule."""


class Network:
    """Rails between two hosts, and what is sent over them.

    Parameters
    ----------
    seed : int
        Decides what is left to chance: which segments are lost, which chunks are corrupted, which answers come late.
    slots : int
        Transfers that the receiver has room for at once.
    hold_s : float
        The receiving application keeps a message at most this long.
    """

    def __init__(self, seed: int = 1, *, slots: int = 4, hold_s: float = 0.0) -> None:
        self.seed = seed
        self._head = f"slots={slots} hold_us={_us(hold_s)}"
        self._rails: list[str] = []
        self._changes: list[str] = []

    def rail(
        self,
        rate: float = 125e6,
        *,
        delay_s: float = 50e-6,
        queue_bytes: int = 1 << 20,
        burst_bytes: int = 0,
        loss: float = 0.0,
        corrupt: float = 0.0,
        late_acks: float = 0.0,
        repeated_acks: float = 0.0,
        shares: int | None = None,
        switch_s: float = 0.0,
        alone_at_s: float = 0.0,
    ) -> int:
        """Add a rail and return its number.

        Parameters
        ----------
        rate : float
            bytes/s.
        delay_s : float
            One way.
        queue_bytes, burst_bytes : int
            What waits before more is dropped; what passes at once after a pause.
        loss, corrupt, late_acks, repeated_acks : float
            Chances, 0 … 1: of a segment, of a chunk, of an acknowledgement.
        shares : int, optional
            The rail whose rate and queue it uses: a shared bottleneck.
        switch_s : float
            What the bottleneck loses whenever it serves this rail after another.
        alone_at_s : float
            From then on it has its own rate and queue to itself; 0: never.
        """
        number = len(self._rails)
        wire = number if shares is None else shares
        self._rails.append(
            f"rail rate={round(rate)} delay_us={_us(delay_s)} queue={queue_bytes} burst={burst_bytes}"
            f" wire={wire} loss={_ppm(loss)} corrupt={_ppm(corrupt)}"
            f" late_acks={_ppm(late_acks)} repeated_acks={_ppm(repeated_acks)}"
            f" switch_us={_us(switch_s)} split_us={_us(alone_at_s)}"
        )
        return number

    def rate_at(self, rail: int, at_s: float, rate: float) -> None:
        """Change a rail's rate (bytes/s; 0: it stands still and loses nothing) at a time."""
        self._changes.append(f"rate rail={rail} at_us={_us(at_s)} rate={round(rate)}")

    def outage(self, rail: int, from_s: float, to_s: float, *, told: bool = False) -> None:
        """Take a rail away for a while; `told`: the interface says so, otherwise what is sent vanishes."""
        self._changes.append(
            f"outage rail={rail} from_us={_us(from_s)} to_us={_us(to_s)} told={int(told)}"
        )

    def pause(self, from_s: float, to_s: float) -> None:
        """Let the sender's process stand still for a while."""
        self._changes.append(f"pause from_us={_us(from_s)} to_us={_us(to_s)}")

    def transfer(self, size: int, *, at_s: float = 0.0, klass: int = 3, count: int = 1) -> None:
        """Send `count` messages of `size` bytes in a class (0 control … 3 bulk) at a time."""
        self._changes.append(f"transfer at_us={_us(at_s)} bytes={size} class={klass} count={count}")

    def plan(self, stop_s: float = 0.0) -> str:
        """Return the schedule as text; `stop_s`: it ends then, delivered or not."""
        head = f"run seed={self.seed} {self._head} stop_us={_us(stop_s)}"
        return "\n".join([head, *self._rails, *self._changes, ""])

    def run(self, *, stop_s: float = 0.0, bucket_s: float = 0.05) -> Outcome:
        """Run to the end, or to `stop_s`.

        Raises
        ------
        BrokenRun
            Something did not hold.
        ConfigError
            The network cannot be; names the line of its schedule.
        """
        return must_hold(self.plan(stop_s), bucket_s)


def must_hold(plan: str, bucket_s: float = 0.05) -> Outcome:
    """Run a schedule; raise `BrokenRun` with what to keep when something does not hold."""
    outcome = simulation.run(plan, bucket_s)
    if outcome.violation:
        raise BrokenRun(
            f"at {outcome.at_s:.6f} s: {outcome.violation}\n"
            f"keep it as tests/simulation/plans/NAME.plan:\n{plan}"
        )
    return outcome


def must_hold_seed(seed: int) -> Outcome:
    """Run the schedule that a seed draws; raise `BrokenRun` with the seed when something does not hold."""
    try:
        return must_hold(simulation.drawn(seed))
    except BrokenRun as broken:
        raise BrokenRun(f"seed {seed} {broken}") from None


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _ppm(chance: float) -> int:
    return round(chance * 1e6)
