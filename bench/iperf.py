"""iperf3 over loopback, for readers who know its figure. Printed only: it swings too much to hold anything against."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time

SECONDS = 2
DEADLINE_S = 15.0
RETRY_S = 0.05


def sentence() -> str:
    """Return one line: what iperf3 finds, or why it finds nothing."""
    program = shutil.which("iperf3")
    if program is None:
        return "iperf3: not installed (printed only)"
    try:
        return f"iperf3, one stream over loopback: {measure(program):.2f} GB/s (printed only)"
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        return f"iperf3: {type(error).__name__}: {error} (printed only)"


def measure(program: str) -> float:
    """Return GB/s that a client sent to a server of one connection."""
    port, until = str(free_port()), time.monotonic() + DEADLINE_S
    serve = [program, "--server", "--one-off", "--bind", "127.0.0.1", "--port", port]
    ask = [program, "--client", "127.0.0.1", "--port", port, "--time", str(SECONDS), "--json"]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            left = max(0.0, until - time.monotonic())
            done = subprocess.run(ask, capture_output=True, timeout=left, check=False)
            if done.returncode == 0:
                return float(json.loads(done.stdout)["end"]["sum_sent"]["bits_per_second"]) / 8e9
            if server.poll() is not None:
                raise OSError("the server ended")
            time.sleep(RETRY_S)  # it does not listen yet
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
