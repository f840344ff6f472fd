"""What the demo found out: one question's fate, and the report. Nothing here is assumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Question:
    """One prompt on its way through the fabric."""

    index: int
    name: str
    tokens: list[int]
    max_new_tokens: int
    answer: list[int] = field(default_factory=list)
    ttft_ms: float | None = None
    last: Any = None
    error: str = ""
    expected: list[int] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Complete, and the same tokens as the single process produced."""
        return not self.error and bool(self.expected) and self.answer == self.expected

    @property
    def first_difference(self) -> int:
        """Index of the first token that differs."""
        pairs = zip(self.answer, self.expected, strict=False)
        shorter = min(len(self.answer), len(self.expected))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def channel_rows(topology: dict[str, Any], listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages, delivered bytes (both from the ledgers, replies included) and path of every channel."""
    paths = {
        c.get("name"): sorted({str(flow.get("path")) for flow in c.get("flows") or ()})
        for c in topology["channels"]
    }
    return [
        {
            "channel": row["name"],
            "messages": int(row["accepted"]),
            "paths": paths.get(row["name"], []),
            "bytes": int(row["delivered_bytes"]),
        }
        for row in listed
    ]


def build_report(
    questions: list[Question],
    channels: list[dict[str, Any]],
    audit: dict[str, Any],
    leftovers: list[str],
    nodes: list[str],
) -> dict[str, Any]:
    """Collect the facts; every value is measured or compared, none assumed."""
    last = [q.last for q in questions if q.last]
    longest = max(questions, key=lambda q: len(q.tokens), default=None)
    hidden = (
        longest.last["kv_hidden_bytes"] / longest.last["kv_bytes"]
        if longest and longest.last and longest.last["kv_bytes"]
        else 0.0
    )
    paths = next((row["paths"] for row in channels if row["channel"] == "kv"), [])
    return {
        "token_exact": bool(questions) and all(q.exact for q in questions),
        "prompts": len(questions),
        "prompt_tokens": [len(q.tokens) for q in questions],
        "tokens": sum(len(q.answer) for q in questions),
        "dtype": "float32",
        "kv_link": "+".join(paths),
        "kv_bytes": sum(item["kv_bytes"] for item in last),
        "kv_messages": sum(item["kv_messages"] for item in last),
        "ttft_ms": [q.ttft_ms for q in questions],
        "kv_hidden_fraction": round(hidden, 4),
        "audit_balanced": audit.get("verdict") == "balanced",
        "leftovers": leftovers,
        "nodes": nodes,
        "channels": channels,
        "differences": [
            f"{q.name}: {q.error or q.first_difference}" for q in questions if not q.exact
        ],
    }
