"""Who is compared: ours, the peers and the floors, by the name that tables and the report use.

A peer runs under the interpreter of ``build/bench-venv``, unless it needs no more than Python and numpy: then it runs
under ours and is never missing.
"""

from __future__ import annotations

from bench.sides import Subject


def peer(name: str, module: str, interpreter: str = "peers", **options: object) -> Subject:
    """Return a subject of ``bench.peers``."""
    return Subject(name, f"bench.peers.{module}", options, interpreter)


def floor(name: str, **options: object) -> Subject:
    """Return a floor: a name that the executable of ``bench/floor`` takes."""
    title = " ".join(("floor", name, *(key for key, value in options.items() if value)))
    return Subject(title, name, options, "floor")


POLL = Subject("fabric polling", "bench.ours.lane", {"wait": "poll"})
DEFAULT = Subject("fabric", "bench.ours.lane")
SLEEP = Subject("fabric sleeping", "bench.ours.lane", {"wait": "sleep"})
NODES = Subject("fabric two nodes", "bench.ours.nodes", {"checksums": True})
NODES_PLAIN = Subject("fabric two nodes, no checksums", "bench.ours.nodes", {"checksums": False})
ALONE = Subject("fabric alone", "bench.ours.growth")
FOOTPRINT = Subject("fabric footprint", "bench.ours.footprint")
FUSION = Subject("fabric fusion", "bench.ours.fusion")
BROADCAST = Subject("fabric broadcast", "bench.ours.broadcast")


def with_channels(count: int) -> Subject:
    """Return ours with so many channels open."""
    return Subject(f"fabric, {count} channels", "bench.ours.growth", {"channels": count})


def with_ports(count: int) -> Subject:
    """Return ours with so many ports attached."""
    return Subject(f"fabric, {count} ports", "bench.ours.growth", {"ports": count})


def with_nodes(count: int) -> Subject:
    """Return ours with so many nodes joined."""
    return Subject(f"fabric, {count} nodes", "bench.ours.footprint", {"nodes": count})


UNIX_SOCKET = peer("unix socket", "unix_socket", "own")
MULTIPROCESSING = peer("multiprocessing", "multiprocessing_pipe", "own")
PYZMQ = peer("pyzmq", "zmq_pair", transport="ipc")
UCXX_POLL = peer("ucxx polling", "ucxx_core", tls="shm", progress="polling")
UCXX_SLEEP = peer("ucxx blocking", "ucxx_core", tls="shm", progress="blocking")
UCXX_ASYNCIO = peer("ucxx asyncio", "ucxx_asyncio", tls="shm", progress="blocking")
ICEORYX2_POLL = peer("iceoryx2 polling", "iceoryx2_ipc", wait="polling")
ICEORYX2_SLEEP = peer("iceoryx2 events", "iceoryx2_ipc", wait="event")
ZENOH = peer("zenoh", "zenoh_session", shm=False)
ZENOH_SHM = peer("zenoh shared memory", "zenoh_session", shm=True)
GRPC_UNARY = peer("gRPC unary", "grpc_unary")
GRPC_STREAM = peer("gRPC stream", "grpc_stream")
NIXL_WRITE = peer("NIXL write", "nixl_agent", op="write", tls="shm")
NIXL_READ = peer("NIXL read", "nixl_agent", op="read", tls="shm")
GLOO = peer("torch gloo", "torch_gloo")

TCP_SOCKET = peer("tcp socket", "tcp_socket", "own")
PYZMQ_TCP = peer("pyzmq tcp", "zmq_pair", transport="tcp")
UCXX_TCP = peer("ucxx tcp", "ucxx_core", tls="tcp", progress="polling")
NIXL_TCP = peer("NIXL tcp", "nixl_agent", op="write", tls="tcp")
MOONCAKE = peer("Mooncake tcp", "mooncake_tcp")

RING_SPIN = floor("ring_spin")
RING_FUTEX = floor("ring_futex")
MEMCPY = floor("memcpy")
CHAIN = floor("two_engines")
TCP_BULK = floor("tcp_bulk", crc=False)
TCP_BULK_CRC = floor("tcp_bulk", crc=True)
