"""Move the cluster from one plan to the next: verify → begin → prepare → switch → converge → finish, or roll back.

Runs on the registry's node, one plan at a time, in a task of its own: who asked may leave. *Begin* stores the intent;
*switch* stores the channels in one transaction; what fails between them and *finish* is rolled back to the last good
plan, here and on every node. A registry killed in between rolls back when it is there again, and nodes that were away
are told what is in force as soon as they are back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits, steps
from fabric.config.routes import name_of
from fabric.controlplane import plan_diff
from fabric.controlplane.live_generations import LiveGenerations
from fabric.controlplane.node_calls import plain
from fabric.controlplane.plan_verify import PlanVerifier
from fabric.registry.declare import unknown_channel
from fabric.registry.planbook import PlanBook
from fabric.registry.plans import Plan, check_size

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

log = logging.getLogger("fabricd.apply")

CONVERGE_S = limits.MODULE_READY_S + limits.DRAIN_S + limits.VERIFY_S


class PlanApplier:
    """Belongs to the daemon's loop; idle on nodes that are not the registry's."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._verifier = PlanVerifier(daemon)
        self._live = LiveGenerations(daemon)
        self._applying: Plan | None = None
        self._told: dict[tuple[int, int], int] = {}  # (node, incarnation) → generation it has
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve one verb, asked on any node."""
        book = self._book()
        if op == "plan_history":
            rows = [plan.row() for plan in book.history()]
            return {"generation": book.generation, "live": list(book.live()), "rows": rows}
        if op == "plan_show":
            changes = await self._changes(msgspec.convert(fields["plan"], Plan))
            return {"generation": book.generation, "changes": [c.row() for c in changes]}
        if op == "plan_diff":
            return self._diff(book, fields)
        if op == "plan_rollback":
            wanted = fields.get("generation")
            known = book.get(wanted) if wanted else book.before(book.generation)
            if known.outcome != "committed":
                raise errors.ConfigError(
                    f"generation {known.generation} was {known.outcome.replace('_', ' ')}: {known.why};"
                    " choose one that was committed, see fabricctl history",
                    generation=known.generation,
                )
            note = f"rollback to generation {known.generation}"
            plan = msgspec.structs.replace(
                known, by=fields["by"], note=note, when_s=fields["when_s"]
            )
        elif op == "plan_attach":
            plan = self._attached(book, fields)
        elif op == "plan_detach":
            plan = self._detached(book, fields)
        else:
            plan = msgspec.convert(fields["plan"], Plan)
        return await self._alone(plan)

    def _attached(self, book: PlanBook, fields: dict[str, Any]) -> Plan:
        """Return the plan in force with one more transform, or another policy, on one channel."""
        name, what = fields["channel"], fields["name"]
        view = self._daemon.registry.view
        known = view.channel(name)
        if known is None:
            raise unknown_channel(name, [c.name for c in view.channels])
        spec = plan_diff.spec_of(known)
        if fields["kind"] == "route":
            spec = msgspec.structs.replace(spec, route=what)
        elif what not in spec.transforms:
            spec = msgspec.structs.replace(spec, transforms=(*spec.transforms, what))
        good = book.current or Plan()
        others = tuple(c for c in good.channels if c.name != name)
        reply = next((c.reply for c in good.channels if c.name == name), None)
        return msgspec.structs.replace(
            good,
            by=fields["by"],
            when_s=fields["when_s"],
            note=f"{fields['kind']} {what} on channel {name}",
            channels=(*others, msgspec.structs.replace(spec, reply=reply)),
        )

    def _detached(self, book: PlanBook, fields: dict[str, Any]) -> Plan:
        """Return the plan in force without a plugin: off its channels, and no longer a plugin of the plan."""
        transforms, routes = set(fields["transforms"]), set(fields["routes"])
        good = book.current or Plan()
        specs = {c.name: c for c in good.channels}
        for record in self._daemon.registry.view.channels:
            if transforms.intersection(record.transforms) or name_of(record.route) in routes:
                known = plan_diff.spec_of(record)
                before = specs.get(record.name)
                specs[record.name] = msgspec.structs.replace(
                    known,
                    transforms=tuple(t for t in known.transforms if t not in transforms),
                    route=None if name_of(known.route) in routes else known.route,
                    reply=before.reply if before is not None else None,
                )
        return msgspec.structs.replace(
            good,
            by=fields["by"],
            when_s=fields["when_s"],
            note=f"plugin {fields['name']} unloaded",
            channels=tuple(specs.values()),
            plugins=tuple(p for p in good.plugins if p.name != fields["name"]),
        )

    def _book(self) -> PlanBook:
        registry = self._daemon.registry.local
        if registry is None:
            raise errors.ConfigError("this node is not the registry; ask the first node")
        return registry.plans

    def _diff(self, book: PlanBook, fields: dict[str, Any]) -> dict[str, Any]:
        newest = book.current.generation if book.current else 0
        new = fields.get("to") or newest
        plan = msgspec.convert(fields["plan"], Plan) if fields.get("plan") else None
        old = fields.get("from") or (newest if plan else None)
        before = book.get(old) if old else book.older(new)
        after = plan or (book.get(new) if new else None)
        changes = plan_diff.compare(plan_diff.content(before), plan_diff.content(after))
        return {
            "from": before.generation if before else 0,
            "to": None if plan else new,
            "changes": [c.row() for c in changes],
        }

    # ---------------------------------------------------------------- one at a time
    async def _alone(self, plan: Plan) -> dict[str, Any]:
        if self._applying is not None:
            raise errors.BusyError(
                f"{self._applying.by} is applying a plan; try again when it is done",
                by=self._applying.by,
            )
        self._applying = plan
        task = self._spawn(self._apply(plan))
        return await asyncio.shield(task)

    async def _apply(self, plan: Plan) -> dict[str, Any]:
        try:
            changes = await self._changes(plan)
            book = self._book()
            if not plan_diff.is_different(changes):
                return {"generation": book.generation, "changes": [c.row() for c in changes]}
            plan = await self._verifier.verify(plan, book.current, self._alive())
            if plan.records:
                await self._live.room_for_one_more(book)
            check_size(plan)
            steps.at("apply.verified")
            done = await self._carry_out(book, book.begin(plan))
            return {"generation": done.generation, "changes": [c.row() for c in changes]}
        finally:
            self._applying = None
            self.look()

    async def _changes(self, plan: Plan) -> list[plan_diff.Change]:
        book = self._book()
        channels = self._daemon.registry.view.channels
        old = plan_diff.live_content(book.current, plan, channels)
        return plan_diff.compare(old, plan_diff.content(plan))

    # ---------------------------------------------------------------- effects, each of which can be taken back
    async def _carry_out(self, book: PlanBook, plan: Plan) -> Plan:
        steps.at("apply.begun")
        self._told.clear()
        try:
            await self._prepare(plan)
            steps.at("apply.prepared")
            book.switch()
            steps.at("apply.switched")
            await self._converge(plan)
            steps.at("apply.converged")
            done = book.finish()
        except Exception as error:
            raise await self._roll_back(book, plan, error) from error
        steps.at("apply.committed")
        self._daemon.context.events.add(
            "plan applied", severity="info", generation=plan.generation, by=plan.by
        )
        return done

    async def _prepare(self, plan: Plan) -> None:
        """Load what is new and run the chains of channels that exist, on every node."""
        view = self._daemon.registry.view
        chains = [
            {"channel": r.name, "transforms": list(r.transforms), "settings": r.settings}
            for r in plan.records
            if r.transforms and view.channel(r.name) is not None
        ]
        rows = await self._daemon.control.ls("plugin")
        known = {e["name"] for row in rows for e in row["exports"]}
        named = {t for r in plan.records for t in r.transforms}
        answers = await asyncio.gather(*(
            self._call(number, "plan_prepare", {
                "generation": plan.generation,
                "plugins": [plain(p) for p in plan.plugins if p.node == name],
                "installed": self._to_install(plan, name, named - known),
                "chains": chains,
            }, CONVERGE_S)
            for name, number in self._alive().items()
        ))  # fmt: skip
        for chain in chains:
            ran = sum(answer["ran"].get(chain["channel"], 0) for answer in answers)
            if ran < len(chain["transforms"]):
                raise errors.PluginError(
                    f"channel {chain['channel']!r}: only {ran} of its {len(chain['transforms'])} transforms run",
                    channel=chain["channel"],
                )

    def _to_install(self, plan: Plan, node: str, names: set[str]) -> list[str]:
        """Installed transforms are loaded on the registry's node, where `_installed` has seen them."""
        if node != self._daemon.context.name:
            return []
        planned = {p.name for p in plan.plugins}
        from importlib.metadata import entry_points

        found = {point.name for point in entry_points(group="fabric.transforms")}
        return sorted((names & found) - planned)

    async def _converge(self, plan: Plan) -> None:
        """Have every node be as the plan says; raises the first that cannot."""
        self._see()
        nodes = self._alive()
        missing = {m.node for m in plan.modules} | {p.node for p in plan.plugins}
        for node in sorted(n for n in missing if n and n not in nodes):
            raise errors.PeerLostError(f"node {node!r} went away in the middle", node=node)
        await asyncio.gather(
            *(self._converge_one(name, number, plan) for name, number in nodes.items())
        )

    async def _converge_one(self, name: str, number: int, plan: Plan) -> None:
        node = self._daemon.registry.view.node(number)
        try:
            epoch = self._daemon.registry.view.epoch
            fields = {"plan": plain(_bare(plan, name)), "epoch": epoch}
            await self._call(number, "plan_converge", fields, CONVERGE_S)
        except errors.FabricError as error:
            raise errors.from_wire(
                {**error.to_wire(), "message": f"node {name!r}: {error}"}
            ) from error
        if node is not None:
            self._told[number, node.incarnation] = plan.generation

    async def _roll_back(self, book: PlanBook, plan: Plan, error: Exception) -> errors.FabricError:
        """Be as before: the registry at once, the nodes as far as they answer; returns what to tell who asked."""
        fields = errors.to_wire(error)
        why = f"{fields['message']}"
        pause = limits.FLOW_RETRY_S
        while True:
            try:
                book.roll_back(why)
                break
            except errors.StorageError as full:  # it stays pending until the disk takes it
                log.error("roll back waits for the disk", extra={"reason": str(full)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
        steps.at("apply.rolled_back")
        good = book.current or Plan()
        self._daemon.context.events.add("plan rolled back", generation=plan.generation, reason=why)
        self._see()
        results = await asyncio.gather(
            *(self._converge_one(name, number, good) for name, number in self._alive().items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                log.warning("a node is not rolled back yet", extra={"reason": str(result)})
        said = f"{why}; generation {plan.generation} was rolled back, generation {good.generation} is in force"
        context = {**fields["context"], "rolled_back": plan.generation, "in_force": good.generation}
        return errors.from_wire({"code": fields["code"], "message": said, "context": context})

    # ---------------------------------------------------------------- in the background
    def look(self) -> None:
        """Something changed: tell nodes that do not know the plan in force, close generations that are empty."""
        if self._daemon.registry.local is not None and (self._watch is None or self._watch.done()):
            self._watch = self._spawn(self._keep_looking())

    def stop(self) -> None:
        """End the background work."""
        for task in list(self._tasks):
            task.cancel()

    async def _keep_looking(self) -> None:
        pause, longest = limits.GENERATION_POLL_S
        await self._daemon.plan_node.ready.wait()
        while self._has_work():
            try:
                book = self._book()
                if len(book.live()) > 1:
                    await self._live.close_empty(book)
                if self._applying is None:
                    await self._tell_late(book)
            except errors.FabricError as error:
                log.info("plans not looked at", extra={"reason": str(error)})
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _has_work(self) -> bool:
        book = self._book()
        return len(book.live()) > 1 or (self._applying is None and bool(self._late(book)))

    def _late(self, book: PlanBook) -> dict[str, int]:
        good = book.current.generation if book.current else 0
        nodes = self._daemon.registry.view.nodes
        return {
            n.name: n.number
            for n in nodes
            if n.state == "alive" and self._told.get((n.number, n.incarnation), -1) != good
        }

    async def _tell_late(self, book: PlanBook) -> None:
        """Tell nodes that were away, one after the other; one that fails is told again."""
        good = book.current or Plan()
        for name, number in self._late(book).items():
            try:
                await self._converge_one(name, number, good)
            except errors.FabricError as error:
                extra = {"node": name, "generation": good.generation, "reason": str(error)}
                log.warning("node not as the plan says", extra=extra)

    def _see(self) -> None:
        """Take what the registry has just stored into this node's own view; the others wait for its epoch."""
        if self._daemon.registry.local is not None:
            self._daemon.on_view(self._daemon.registry.local.view())

    def _alive(self) -> dict[str, int]:
        return {n.name: n.number for n in self._daemon.registry.view.nodes if n.state == "alive"}

    async def _call(
        self, number: int, op: str, fields: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        return await self._daemon.calls.call(number, op, fields, timeout_s)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.INFO if isinstance(error, errors.FabricError) else logging.ERROR
            log.log(
                level,
                "plan work ended",
                extra={"reason": str(error)},
                exc_info=level > logging.INFO,
            )


def _bare(plan: Plan, node: str) -> Plan:
    """Return a plan with what one node needs of it."""
    return msgspec.structs.replace(
        plan,
        plugins=tuple(p for p in plan.plugins if p.node == node),
        modules=tuple(m for m in plan.modules if m.node == node),
        channels=(),
        before=(),
        records=(),
    )
