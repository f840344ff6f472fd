"""``python -m bench.paths.offloads DEVICE``: what the kernel's network stack takes off a device's processor, in words.

Run inside the namespace of the device. The requests are those of ``linux/ethtool.h``.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import sys

SIOCETHTOOL = 0x8946
REQUESTS = {"tx checksum": 0x16, "sg": 0x18, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}


def words(device: str) -> str:
    """Return each offload with on, off or unknown."""
    return ", ".join(f"{name} {state(device, request)}" for name, request in REQUESTS.items())


def state(device: str, request: int) -> str:
    """Return what one request answers."""
    value = array.array("B", struct.pack("II", request, 0))
    argument = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, SIOCETHTOOL, argument)
        except OSError:
            return "unknown"
    return "on" if struct.unpack("II", value)[1] else "off"


if __name__ == "__main__":
    print(words(sys.argv[1]))
