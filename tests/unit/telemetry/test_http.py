"""The server of the metrics bears slow readers, nonsense and crowds, and says no in time."""

import asyncio
import time

import pytest

from fabric import errors, limits
from fabric.telemetry.http import MetricsServer

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def served(monkeypatch):
    monkeypatch.setattr(limits, "METRICS_S", 0.5)
    server = MetricsServer(lambda: b"fabric_info 1\n", "text/plain")
    await server.start("127.0.0.1", 0)
    yield server
    await server.close()


async def ask(server, request, wait_s=5.0):
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), wait_s)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_scrape_gets_the_document(served):
    answer = await ask(served, GET)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 14\r\n" in head
    assert body == b"fabric_info 1\n"
    assert served.served == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\x00\xff garbage\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
    ],
)
async def test_nonsense_gets_a_status(served, request_, status):
    assert (await ask(served, request_)).split(b" ")[1] == status


@pytest.mark.promise("P8")
async def test_a_request_without_an_end_is_cut_off_by_bytes_and_by_time(served):
    assert await ask(served, b"G" * (limits.METRICS_REQUEST_BYTES_MAX * 4)) == b""
    began = time.monotonic()
    assert await ask(served, b"GET /metr") == b""
    assert time.monotonic() - began < 3
    assert await ask(served, GET)  # and the next is served


async def test_a_reader_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "METRICS_S", 0.5)
    server = MetricsServer(lambda: b"x" * (64 << 20), "text/plain")
    await server.start("127.0.0.1", 0)
    host, _, port = server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(GET)
    deadline = time.monotonic() + 10
    while not server.refused and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert server.refused == 1
    writer.close()
    await server.close()


@pytest.mark.promise("P8")
async def test_a_hundred_silent_connections_keep_nobody_out_for_longer_than_the_limit(served):
    host, _, port = served.address.rpartition(":")
    crowd = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    turned_away = await asyncio.wait_for(crowd[-1][0].read(), 5)
    assert turned_away.startswith(b"HTTP/1.1 503 ")
    deadline = time.monotonic() + 10
    while b" 200 OK" not in await ask(served, GET) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert served.served == 1
    for _, writer in crowd:
        writer.close()


async def test_an_address_that_is_taken_is_said(served):
    host, _, port = served.address.rpartition(":")
    with pytest.raises(errors.BusyError, match="give --metrics another, or off"):
        await MetricsServer(lambda: b"", "x").start(host, int(port))
    with pytest.raises(errors.ConfigError):
        await MetricsServer(lambda: b"", "x").start("192.0.2.1", 0)
