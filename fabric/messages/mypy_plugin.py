"""mypy plugin: let ``fabric.Tensor["tokens dim", "f32"]`` stand as an annotation; its values are array-likes.

Enable with ``plugins = ["fabric.messages.mypy_plugin"]``. Without it,
``Annotated[np.ndarray, fabric.Tensor["tokens dim", "f32"]]`` is the spelling that any checker takes.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny

_NAMES = frozenset(
    {
        "fabric.Tensor",
        "fabric.messages.Tensor",
        "fabric.messages.tensor.Tensor",
        "fabric.messages.tensor_spec.Tensor",
    }
)


class TensorPlugin(Plugin):
    """Analyses tensor annotations without reading their strings as types."""

    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        return _any if fullname in _NAMES else None


def _any(_: AnalyzeTypeContext) -> Type:
    return AnyType(TypeOfAny.explicit)


def plugin(_version: str) -> type[Plugin]:
    """Entry point that mypy calls."""
    return TensorPlugin
