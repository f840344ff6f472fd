"""Views that a plugin still refers to after its message has ended: their slots are given back when it lets go.

A slot that is given back is written again, and an array over it would show other data. So the references to a view and
to its arrays are counted where its message ends; a slice or a torch tensor refers to the array that it was taken from.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

from fabric import limits
from fabric.errors import ContractError
from fabric.messages import message_type

Slot = Callable[[Any], Any]
_slots: weakref.WeakKeyDictionary[type, tuple[Slot, ...]] = weakref.WeakKeyDictionary()


def tensor_slots(cls: type) -> tuple[Slot, ...]:
    """Return what reads the tensor fields of a view of class `cls` as they are, without making arrays."""
    known = _slots.get(cls)
    if known is None:
        known = _slots[cls] = _tensor_slots(cls)
    return known


def _tensor_slots(cls: type) -> tuple[Slot, ...]:
    type_ = message_type(cls)
    return tuple(vars(type_.cls)[tensor.name].__get__ for tensor in type_.tensors)


class KeptViews:
    """Belongs to the thread of one chain."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def give_back(self, view: Any) -> None:
        """Release the slot of `view`, or note it; the caller keeps no other reference than its argument.

        Raises
        ------
        ContractError
            More than `limits.VIEWS_KEPT_MAX` are kept.
        """
        if sys.getrefcount(view) <= _OF_A_VIEW and not _keeps_arrays(view):
            view.release()
            return
        self._kept.append(view)
        if len(self._kept) > limits.VIEWS_KEPT_MAX:
            gc.collect()
            self.sweep()
        if len(self._kept) > limits.VIEWS_KEPT_MAX:
            raise ContractError(
                f"it keeps the views of more than VIEWS_KEPT_MAX ({limits.VIEWS_KEPT_MAX}) messages after apply"
                " returned: copy what is to outlive the call",
                limit="VIEWS_KEPT_MAX",
            )

    def sweep(self) -> None:
        """Release what is no longer referred to."""
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        while kept:
            view = kept.pop()
            if sys.getrefcount(view) <= _OF_A_SWEPT and not _keeps_arrays(view):
                view.release()
            else:
                self._kept.append(view)

    def __len__(self) -> int:
        return len(self._kept)


def _keeps_arrays(view: Any) -> bool:
    return any(_is_kept(view, read) for read in tensor_slots(type(view)))


def _is_kept(view: Any, read: Slot) -> bool:
    value = read(view)
    if type(value) is tuple or value is None:
        return False  # never made into an array
    if type(value) is list:
        return any(_is_referred(value, index) for index in range(len(value)))
    while value is not None:
        if sys.getrefcount(value) > _OF_AN_ARRAY:
            return True
        value = getattr(value, "base", None)  # what a slice of an array refers to is its last base
        if not hasattr(value, "dtype"):
            return False
    return False


def _is_referred(values: list[Any], index: int) -> bool:
    value = values[index]
    return type(value) is not tuple and sys.getrefcount(value) > _OF_AN_ARRAY


class _Probe:
    """Stands for a view, to find out how many references the code above holds itself."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = _Probe.__new__(_Probe)

    def release(self) -> None:
        """Nothing to release."""


def _references() -> tuple[int, int, int]:
    """Return what `sys.getrefcount` says in `give_back`, `sweep` and `_is_kept` of what nobody else refers to.

    It depends on how the interpreter passes arguments, so it is measured with the same calls.
    """
    seen: list[int] = []

    class Counting(KeptViews):
        def give_back(self, view: Any) -> None:
            seen.append(sys.getrefcount(view))

    class Holder:
        """As `StageMessage` hands a view over."""

        def __init__(self) -> None:
            self.value: Any = _Probe()
            self.kept = Counting()

        def end(self) -> None:
            view, self.value = self.value, None
            self.kept.give_back(view)

    Holder().end()
    kept = [_Probe()]
    view = kept.pop()
    seen.append(sys.getrefcount(view))
    value = view.array
    seen.append(sys.getrefcount(value))
    return seen[0], seen[1], seen[2]


_OF_A_VIEW, _OF_A_SWEPT, _OF_AN_ARRAY = _references()
