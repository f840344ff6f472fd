"""The routing policies of a stage host: made once for a channel, asked one at a time, timed, their answers checked."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

from fabric import limits
from fabric.abc.route import Header, Policy, RouteExport, Target, decide, make_policy
from fabric.config import routes
from fabric.errors import DeadlineExceeded, PluginError

_TARGET_FIELDS: Final = tuple(f.name for f in dataclasses.fields(Target))


class Policies:
    """Belongs to one load of a plugin. Thread-safe: who comes while another is asked waits, bounded.

    Raises
    ------
    PluginError
        A policy cannot be made.
    """

    def __init__(self, exports: Mapping[str, RouteExport]) -> None:
        self._exports = dict(exports)
        self._made: dict[tuple[str, str], Policy] = {}
        self._locks = {name: threading.Lock() for name in self._exports}
        for export in self._exports.values():
            _made(export, {})  # what cannot be made at all is refused when it is loaded

    def decide(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Ask ``{policy, header, targets}``, or ``{policy, header, batch: [header], targets}``.

        Returns
        -------
        dict
            ``flow``, the first choice; ``flows`` in order of preference, or one for each header of the batch; ``per``
            and ``reads`` as declared; ``us``, microseconds that the policy took.
        """
        text = str(fields["policy"])
        export = self._exports.get(routes.name_of(text))
        if export is None:
            raise PluginError(f"no policy {text!r} here: load the plugin that declares it")
        headers = [header_from(h) for h in fields.get("batch") or [fields["header"]]]
        targets = [target_from(target) for target in fields["targets"]]
        lock = self._locks[export.name]  # one that hangs holds up no other
        if not lock.acquire(timeout=limits.ROUTE_DECIDE_S / 2):
            raise DeadlineExceeded(f"route {export.name!r} is still busy with an earlier decision")
        try:
            policy = self._policy(export, text, headers[0].channel)
            began = time.perf_counter()
            flows = self._ask(export.name, policy, headers, targets)
            took_us = (time.perf_counter() - began) * 1e6
        except Exception:
            where = f"route {export.name!r} on {headers[0].channel!r}"
            print(f"{where}:\n{traceback.format_exc()}", file=sys.stderr)
            raise
        finally:
            lock.release()
        about = {"per": export.per, "reads": list(_reads(policy, export))}
        return {"flow": flows[0], "flows": flows, "us": took_us, **about}

    def _policy(self, export: RouteExport, text: str, channel: str) -> Policy:
        key = (channel, text)
        if key not in self._made:
            while len(self._made) >= limits.CHANNELS_MAX:
                self._made.pop(next(iter(self._made)))
            self._made[key] = _made(export, routes.parse(text).params)
        return self._made[key]

    @staticmethod
    def _ask(name: str, policy: Policy, headers: list[Header], targets: list[Target]) -> list[int]:
        if len(headers) == 1:
            return [target.flow for target in decide(name, policy, headers[0], targets)]
        flows = []
        for header in headers:  # each sees what those before it were given
            chosen = decide(name, policy, header, targets)[0]
            flows.append(chosen.flow)
            at = targets.index(chosen)
            targets[at] = dataclasses.replace(chosen, outstanding=chosen.outstanding + 1)
        return flows


def _reads(policy: Policy, export: RouteExport) -> tuple[str, ...]:
    """Return the fields that an answer depends on: those the policy was given with its parameters, else as declared."""
    return tuple(getattr(getattr(policy, "__self__", None), "reads", export.reads))


def _made(export: RouteExport, parameters: Mapping[str, Any]) -> Policy:
    try:
        return make_policy(export, parameters)
    except Exception as error:
        raise PluginError(
            f"{export.name!r} cannot be made: {type(error).__name__}: {error}"
        ) from error


def header_from(fields: Mapping[str, Any]) -> Header:
    """Build the header that a policy sees from a push."""
    return Header(
        fields["channel"],
        fields.get("key"),
        fields.get("class", "token"),
        int(fields.get("size", 0)),
        fields.get("fields") or {},
    )


def target_from(fields: Mapping[str, Any]) -> Target:
    """Build one target from a push; unknown fields are left out."""
    return Target(**{key: fields[key] for key in _TARGET_FIELDS if key in fields})
