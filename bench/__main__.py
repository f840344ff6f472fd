"""``python -m bench GROUP``: run one group of measurements."""

from __future__ import annotations

import importlib
import sys

GROUPS = ("isolation", "latency")


def main(arguments: list[str]) -> int:
    """Run the group; its exit status is whether every gate held."""
    if len(arguments) != 1 or arguments[0] not in GROUPS:
        sys.stderr.write(f"usage: python -m bench {{{','.join(GROUPS)}}}\n")
        return 2
    status: int = importlib.import_module(f"bench.{arguments[0]}").run()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
