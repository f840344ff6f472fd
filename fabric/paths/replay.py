"""A trace replayed over many nodes: what each way to spread transfers over rails makes of it.

Half of the nodes send (prefill), half receive (decode). The rails of equal number are joined by a fabric of their own,
as in a rail-optimised fat tree: only the ports are narrow. Everything that is drawn is drawn from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fabric import _native, errors, limits
from fabric.paths.discovery.model import Kind, Topology
from fabric.paths.trace import Request

#: as they are called in results: ours, static hashing of flows (ECMP), equal parts on every rail
POLICIES = ("adaptive", "hashed", "striped")
DGX_RAILS = (50e9,) * 8  #: eight rails of 400 Gbit/s, bytes/s


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes that are alike, some of their rails slow.

    Attributes
    ----------
    rates : tuple of float
        bytes/s, by rail of a node.
    slow_one_in, slow_factor : int, float
        Of that many rails one runs at this share of its rate; 0: none.
    delay_s : float
        One way, between any two nodes.
    """

    nodes: int = 1000
    rates: tuple[float, ...] = DGX_RAILS
    slow_one_in: int = 50
    slow_factor: float = 0.1
    delay_s: float = 5e-6


@dataclass(frozen=True, slots=True)
class Load:
    """What a request becomes.

    Attributes
    ----------
    bytes_per_token : int
        Of KV cache (Llama-3.1-8B in bf16: 2 × 32 layers × 8 heads × 128 × 2 bytes = 128 KiB).
    share : float
        Offered bytes/s over what the sending nodes' rails carry: the trace's times are scaled to it. 0: as they are.
    flows : int
        That a hashed transfer is cut into.
    """

    bytes_per_token: int = 128 << 10
    share: float = 0.3
    flows: int = 8


@dataclass(frozen=True, slots=True)
class Replayed:
    """Completion times of one policy, seconds: sorted; `digest` is the same for the same seed."""

    policy: str
    took_s: tuple[float, ...]
    bytes: int
    chunks: int
    resent: int
    end_s: float
    digest: int

    def percentile(self, share: float) -> float:
        """Return the completion time that `share` (0 … 1) of the transfers do not exceed, in seconds."""
        last = len(self.took_s) - 1
        return self.took_s[min(last, int(share * len(self.took_s)))]


def rails_of(topology: Topology) -> tuple[float, ...]:
    """Return the rates of a machine's rails, bytes/s: its ports', or its network cards' on their buses.

    Raises
    ------
    ConfigError
        It names no network device whose rate is known.
    """
    rates = [port.rate for port in topology.of_kind(Kind.port) if port.rate]
    if not rates:
        links = [topology.uplinks.get(nic.id) for nic in topology.of_kind(Kind.nic)]
        rates = [link.rate for link in links if link is not None and link.rate]
    if not rates:
        raise errors.ConfigError(
            f"{topology.name} names no network device whose rate is known: give --rate and --rails"
        )
    return tuple(sorted(rates, reverse=True)[: limits.RAILS_PER_PEER_MAX])


def transfers(
    requests: Sequence[Request], cluster: Cluster, load: Load, seed: int
) -> list[tuple[int, int, int, int]]:
    """Return what a trace's requests move: (nanoseconds, bytes, source, target), drawn from the seed.

    Raises
    ------
    ConfigError
        A request names a node that there is not.
    """
    drawn = random.Random(seed)
    senders = cluster.nodes // 2
    sizes = [r.bytes or r.tokens * load.bytes_per_token for r in requests]
    scale = _time_scale(requests, sum(sizes), cluster, load)
    moved = []
    for request, size in zip(requests, sizes, strict=True):
        source, target = int(drawn.random() * senders), senders + int(drawn.random() * senders)
        source = source if request.source is None else request.source
        target = target if request.target is None else request.target
        if source == target or max(source, target) >= cluster.nodes:
            raise errors.ConfigError(
                f"a transfer from node {source} to {target} of {cluster.nodes} nodes"
            )
        moved.append((round(request.at_s * scale * 1e9), size, source, target))
    return moved


def _time_scale(requests: Sequence[Request], size: int, cluster: Cluster, load: Load) -> float:
    span_s = requests[-1].at_s
    if load.share <= 0 or span_s <= 0:
        return 1.0
    capacity = (cluster.nodes // 2) * sum(cluster.rates)
    return size / (load.share * capacity) / span_s


def slow_rails(cluster: Cluster, seed: int) -> list[tuple[int, int, float]]:
    """Return (node, rail, factor) of the slow rails, drawn from the seed."""
    if cluster.slow_one_in <= 0:
        return []
    every = [(node, rail) for node in range(cluster.nodes) for rail in range(len(cluster.rates))]
    drawn = random.Random(seed ^ 0x510).sample(every, len(every) // cluster.slow_one_in)
    return [(node, rail, cluster.slow_factor) for node, rail in sorted(drawn)]


def replay(
    requests: Sequence[Request], cluster: Cluster, load: Load, seed: int, policy: str
) -> Replayed:
    """Replay a trace with one policy.

    Raises
    ------
    ConfigError
        Nodes, rails or requests are out of bounds.
    InternalError
        A transfer was not delivered: a defect of the policy.
    """
    if not 2 <= cluster.nodes <= limits.SIMULATION_NODES_MAX:
        raise errors.ConfigError(
            f"{cluster.nodes} nodes: 2 to {limits.SIMULATION_NODES_MAX} can be simulated",
            limit="SIMULATION_NODES_MAX",
        )
    try:
        found = _native.simulate_cluster(
            policy,
            cluster.nodes,
            list(cluster.rates),
            round(cluster.delay_s * 1e9),
            transfers(requests, cluster, load, seed),
            slow_rails(cluster, seed),
            load.flows,
            seed,
        )
    except ValueError as error:
        raise errors.ConfigError(f"no replay: {error}", reason=str(error)) from error
    if found["violation"]:
        raise errors.InternalError(f"{policy}, seed {seed}: {found['violation']}")
    return Replayed(
        policy,
        tuple(sorted(ns / 1e9 for ns in found["took_ns"])),
        found["bytes"],
        found["chunks"],
        found["resent"],
        found["end_ns"] / 1e9,
        found["log"],
    )
