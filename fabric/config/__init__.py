"""Read, check and hold `fabric.yaml`: text in, frozen values out, every complaint with its place.

No IO beyond reading the named file; the daemon and `fabricctl` use the same code.
"""

from fabric.config.rules import Problem, validate
from fabric.config.schema import load, parse
from fabric.config.spec import (
    CLASSES,
    DELIVERIES,
    OVERFLOWS,
    PATTERNS,
    ChannelSpec,
    CreditSpec,
    FabricSpec,
    ModuleSpec,
    PluginSpec,
    RestartSpec,
)

__all__ = [
    "CLASSES",
    "DELIVERIES",
    "OVERFLOWS",
    "PATTERNS",
    "ChannelSpec",
    "CreditSpec",
    "FabricSpec",
    "ModuleSpec",
    "PluginSpec",
    "Problem",
    "RestartSpec",
    "load",
    "parse",
    "validate",
]
