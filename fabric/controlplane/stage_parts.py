"""What the three tables of the stages share: the node's parts, the loaded plugins, and the way to a stage host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fabric.controlplane.context import Context
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable
from fabric.controlplane.modules import ModuleTable, Process
from fabric.controlplane.plugins import Plugin
from fabric.controlplane.ports import PortTable
from fabric.registry.client import RegistryClient

Push = Callable[[Process, str, dict[str, Any], float], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class StageParts:
    """`plugins` lists what is loaded; `push` asks a stage host and waits for its answer."""

    context: Context
    ports: PortTable
    flows: FlowTable
    endpoints: EndpointTable
    registry: RegistryClient
    modules: ModuleTable
    plugins: Callable[[], list[Plugin]]
    push: Push
