"""fabric: typed channels, routing, in-flight transforms and adaptive paths for modular inference.

Importing this package loads nothing else; names resolve at first use (PEP 562). It never imports torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric import aio, errors, limits
    from fabric.abc.join import join
    from fabric.abc.route import route
    from fabric.abc.transform import Defer, Drop, transform
    from fabric.dataplane.cache import content_key
    from fabric.dataplane.client import Port, attach
    from fabric.dataplane.receiver import Receiver
    from fabric.dataplane.requester import Requester
    from fabric.dataplane.responder import Request, Responder
    from fabric.dataplane.scatter import Scatterer
    from fabric.dataplane.sender import Sender
    from fabric.messages import Redacted, Tensor, as_fp8, as_torch, message
    from fabric.messages.field_marks import field
    from fabric.messages.lease import Lease
    from fabric.worker.module import Call, In, Module, Out, Serve

__version__ = "0.1.0"

#: public name → module that defines it
_HOME = {
    "attach": "fabric.dataplane.client",
    "Port": "fabric.dataplane.client",
    "Sender": "fabric.dataplane.sender",
    "Receiver": "fabric.dataplane.receiver",
    "Requester": "fabric.dataplane.requester",
    "Responder": "fabric.dataplane.responder",
    "Request": "fabric.dataplane.responder",
    "Scatterer": "fabric.dataplane.scatter",
    "Lease": "fabric.messages.lease",
    "content_key": "fabric.dataplane.cache",
    "message": "fabric.messages",
    "Tensor": "fabric.messages",
    "field": "fabric.messages",
    "Redacted": "fabric.messages",
    "as_fp8": "fabric.messages",
    "as_torch": "fabric.messages",
    "join": "fabric.abc.join",
    "route": "fabric.abc.route",
    "transform": "fabric.abc.transform",
    "Drop": "fabric.abc.transform",
    "Defer": "fabric.abc.transform",
    "Module": "fabric.worker.module",
    "In": "fabric.worker.module",
    "Out": "fabric.worker.module",
    "Serve": "fabric.worker.module",
    "Call": "fabric.worker.module",
}
_MODULES = frozenset({"aio", "errors", "limits"})
_SSH_NAMES = frozenset(
    {
        "Connection",
        "Config",
        "SerialGroup",
        "ThreadingGroup",
        "Group",
        "Result",
        "task",
        "env",
        "run",
    }
)

__all__ = [
    "Call",
    "Defer",
    "Drop",
    "In",
    "Lease",
    "Module",
    "Out",
    "Port",
    "Receiver",
    "Redacted",
    "Request",
    "Requester",
    "Responder",
    "Scatterer",
    "Sender",
    "Serve",
    "Tensor",
    "aio",
    "as_fp8",
    "as_torch",
    "attach",
    "content_key",
    "errors",
    "field",
    "join",
    "limits",
    "message",
    "route",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fabric.{name}")
    home = _HOME.get(name)
    if home is None:
        hint = (
            " (that is the SSH library 'fabric'; this is fabricd: they cannot share an environment)"
        )
        raise AttributeError(
            f"module 'fabric' has no attribute {name!r}{hint if name in _SSH_NAMES else ''}"
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _warn_of_ssh_library() -> None:
    """Say in one line that the SSH tool of this name is installed beside us."""
    here = os.path.dirname(os.path.dirname(__file__))
    for folder in {
        here,
        *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
    }:
        try:
            found = next(
                (
                    n
                    for n in os.listdir(folder)
                    if n.startswith("fabric-") and n.endswith(".dist-info")
                ),
                None,
            )
        except OSError:
            continue
        if found is not None:
            warnings.warn(
                f"the SSH library {found.removesuffix('.dist-info')} is installed in {folder} beside fabricd: both are "
                "imported as 'fabric'; keep them in separate environments",
                RuntimeWarning,
                stacklevel=3,
            )
            return


_warn_of_ssh_library()
