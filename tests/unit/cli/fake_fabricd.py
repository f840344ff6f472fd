"""A stand-in for fabricd, started by `fabricctl up` in tests: serves a fake Control until it is told to stop.

FAKE_FABRICD chooses how it behaves: serve, die (at start), hang (never serves), linger (ignores down).
"""

import argparse
import asyncio
import os
import signal
import sys


async def run(options):
    # Only who serves pays for these imports: the others are there at once, also on a busy machine.
    from fabric.controlplane.api import server
    from fabric.testing.fake_control import STATUS, FakeControl

    control = FakeControl()
    control.status_answer = STATUS | {
        "node": options.name, "pid": os.getpid(), "keeper_pid": os.getpid(), "log": "the log", "listen": options.listen,
    }  # fmt: skip
    control.down_answer = {"pids": [os.getpid()]}
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    serving = await server.serve(control, f"{options.socket}.ctl")
    while not stop.is_set():
        if os.environ["FAKE_FABRICD"] != "linger" and ("down",) in control.calls:
            break
        await asyncio.sleep(0.01)
    await serving.close(0.1)


def main():
    parser = argparse.ArgumentParser()
    for flag in ("name", "socket", "state", "listen", "join", "secret-file"):
        parser.add_argument(f"--{flag}")
    options = parser.parse_args()
    if os.environ["FAKE_FABRICD"] == "die":
        print(f"the address {options.listen} is taken", file=sys.stderr)
        sys.exit(78)
    if os.environ["FAKE_FABRICD"] == "hang":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("waiting for nothing", flush=True)
        signal.pause()
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
