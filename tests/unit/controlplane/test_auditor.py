"""The auditor's verdict over the cuts that it got: what is no consistent cut is no difference."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric.controlplane import auditor
from fabric.controlplane.auditor import Auditor
from tests.unit.controlplane.test_audit import snapshot

pytestmark = pytest.mark.promise("P1")


def verdict(monkeypatch: pytest.MonkeyPatch, cuts: list[dict[str, Any]]) -> dict[str, Any]:
    """Audit a node whose cuts are these, one after another."""

    async def archived() -> list[Any]:
        return []

    async def cut(_: Auditor) -> list[dict[str, Any]]:
        return [cuts.pop(0)]

    view = SimpleNamespace(channels=())
    daemon: Any = SimpleNamespace(registry=SimpleNamespace(archived=archived, view=view))
    monkeypatch.setattr(Auditor, "_cut", cut)
    monkeypatch.setattr(auditor.limits, "AUDIT_TRIES", len(cuts))
    return asyncio.run(Auditor(daemon).run())


def torn(unsettled: int) -> dict[str, Any]:
    """A message that is held nowhere, in a cut beside so many deaths that are being settled."""
    seen = snapshot()
    seen["ports"][1]["held"] = []
    seen["ports"][1]["flows"] = []
    return {**seen, "unsettled": unsettled}


def test_difference_beside_a_death_that_is_being_settled_is_looked_at_again(monkeypatch):
    found = verdict(monkeypatch, [torn(1), snapshot()])
    assert found["verdict"] == "balanced"


def test_difference_that_was_only_seen_beside_unsettled_deaths_is_no_verdict(monkeypatch):
    found = verdict(monkeypatch, [torn(1), torn(2)])
    assert found["verdict"] == "indeterminate" and "settled" in found["reason"]


def test_difference_in_a_settled_cut_is_told(monkeypatch):
    found = verdict(monkeypatch, [torn(1), torn(0)])
    assert found["verdict"] == "unbalanced" and found["differences"]
