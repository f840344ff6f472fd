"""The calls of `fabricctl path` and `bench path`: request fields → `Control` → reply fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from google.protobuf.message import Message

from fabric.controlplane.api.answer import Answer, answer
from fabric.controlplane.api.v1 import control_pb2 as pb
from fabric.controlplane.rail_probe import Wish
from fabric.worker.probe_plan import Budget


class PathsLike(Protocol):
    """What these calls need of the daemon."""

    async def path_ls(self, source: str) -> list[dict[str, Any]]: ...
    async def path_show(
        self, peer: str, rail: int | None, size_bytes: int, source: str
    ) -> Answer: ...
    async def path_why(self, source: str, target: str, size_bytes: int, klass: str) -> Answer: ...
    async def codec_why(self, channel: str) -> list[dict[str, Any]]: ...
    async def codec_bench(
        self, channel: str, codecs: Sequence[str], seconds: float
    ) -> list[dict[str, Any]]: ...
    async def path_probe(self, peer: str, rail: int | None, wish: Wish, source: str) -> Answer: ...
    async def path_pin(self, peer: str, rails: Sequence[int]) -> Answer: ...
    async def bench_path(self, peer: str, budget: Budget) -> Answer: ...


class PathServicer:
    """A part of `ControlServicer`."""

    _paths: PathsLike

    async def PathList(self, request: pb.PathListRequest, context: Any) -> Message:
        async def rows() -> Answer:
            return {"rows": await self._paths.path_ls(request.source)}

        return await answer(context, pb.ListReply, rows)

    async def PathShow(self, request: pb.PathShowRequest, context: Any) -> Message:
        async def show() -> Answer:
            return await self._paths.path_show(
                request.peer, _rail(request), request.size_bytes, request.source
            )

        return await answer(context, pb.PathReply, show)

    async def PathWhy(self, request: pb.PathWhyRequest, context: Any) -> Message:
        async def why() -> Answer:
            return await self._paths.path_why(
                request.source, request.target, request.size_bytes, request.klass
            )

        return await answer(context, pb.PathReply, why)

    async def Codec(self, request: pb.CodecRequest, context: Any) -> Message:
        async def rows() -> Answer:
            if not request.is_measured:
                return {"rows": await self._paths.codec_why(request.channel)}
            measured = self._paths.codec_bench(
                request.channel, list(request.codecs), request.seconds
            )
            return {"rows": await measured}

        return await answer(context, pb.ListReply, rows)

    async def PathProbe(self, request: pb.PathProbeRequest, context: Any) -> Message:
        async def probe() -> Answer:
            wish = Wish(request.trips, request.size_bytes, request.seconds)
            return await self._paths.path_probe(request.peer, _rail(request), wish, request.source)

        return await answer(context, pb.PathReply, probe)

    async def PathPin(self, request: pb.PathPinRequest, context: Any) -> Message:
        async def pin() -> Answer:
            return await self._paths.path_pin(request.peer, list(request.rails))

        return await answer(context, pb.PathReply, pin)

    async def BenchPath(self, request: pb.BenchPathRequest, context: Any) -> Message:
        async def bench() -> Answer:
            budget = Budget(request.seconds, request.size_bytes, request.memory_bytes)
            return await self._paths.bench_path(request.peer, budget)

        return await answer(context, pb.PathReply, bench)


def _rail(request: Any) -> int | None:
    return request.rail if request.HasField("rail") else None
