"""How a message looks in text: short, tensors as dtype and shape, what is redacted never."""

from __future__ import annotations

from typing import Any, Final

from fabric.messages.tensor import DTYPES, numpy_codes

REDACTED: Final = "[redacted]"


def message_text(message: Any) -> str:
    """Return ``Name(field=value, …)``."""
    type_ = message.__fabric_type__
    raw = getattr(type(message), "_raw", {})
    tensors = {field.name for field in type_.tensors}
    hidden = {field.name for field in type_.schema.fields if field.redacted}
    shown = []
    for name in type_.names:
        value = raw[name].__get__(message) if name in raw else getattr(message, name)
        shown.append(f"{name}={REDACTED if name in hidden else value_text(value, name in tensors)}")
    return f"{type_.cls.__name__}({', '.join(shown)})"


def value_text(value: Any, is_tensor: bool) -> str:
    """Return one value, at most 80 characters; a tensor as ``f32[2, 3]``."""
    if not is_tensor or value is None:
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    if isinstance(value, list):
        items = [value_text(item, True) for item in value[:4]] + ["..."] * (len(value) > 4)
        return f"[{', '.join(items)}]"
    if isinstance(value, tuple):
        return f"{DTYPES.get(value[0] if value else 0, ('?',))[0]}{list(value[1:])}"
    code = numpy_codes().get(getattr(value, "dtype", None))
    name = DTYPES[code][0] if code else getattr(value, "dtype", "?")
    return f"{name}{list(getattr(value, 'shape', ()))}"
