"""What the routing policies in Python cost on this node: decisions, time, what was cached, what failed. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fabric import limits


@dataclass
class RouteCost:
    """Of one policy, since its plugin was loaded or this daemon started."""

    name: str
    decisions: int = 0  #: asked of the stage host and answered
    messages: int = (
        0  #: that those answers were about; more than `decisions` where batches were asked for
    )
    policy_us: float = 0.0  #: in the policy itself, summed
    policy_us_max: float = 0.0
    ask_us: float = 0.0  #: from the sender's question here to the answer, summed
    ask_us_max: float = 0.0
    fallbacks: int = 0
    last_error: str = ""
    paused_until: float = 0.0  #: loop time; it did not answer
    _hits: dict[int, int] = field(default_factory=dict)  # by sender, as each last said

    def decided(self, answer: dict[str, Any], messages: int, ask_us: float) -> None:
        """Count an answer."""
        self.decisions += 1
        self.messages += messages
        took = float(answer.get("us") or 0.0)
        self.policy_us += took
        self.policy_us_max = max(self.policy_us_max, took)
        self.ask_us += ask_us
        self.ask_us_max = max(self.ask_us_max, ask_us)

    def failed(self, error: str) -> None:
        """Count a decision that the fallback made."""
        self.fallbacks += 1
        self.last_error = error[:400]

    def cached(self, sender: int, hits: int) -> None:
        """Note how many messages of a sender went where the policy had sent their key before."""
        if sender not in self._hits and len(self._hits) >= limits.CHANNELS_MAX:
            self._hits.pop(next(iter(self._hits)))
        self._hits[sender] = hits

    def row(self) -> dict[str, Any]:
        """Return what is listed."""
        count = max(self.decisions, 1)
        return {
            "name": self.name,
            "decisions": self.decisions,
            "messages": self.messages,
            "policy_us_mean": round(self.policy_us / count, 1),
            "policy_us_max": round(self.policy_us_max, 1),
            "ask_us_mean": round(self.ask_us / count, 1),
            "ask_us_max": round(self.ask_us_max, 1),
            "cache_hits": sum(self._hits.values()),
            "fallbacks": self.fallbacks,
            "last_error": self.last_error,
        }
