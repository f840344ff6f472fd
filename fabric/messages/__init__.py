"""Message types: declaration, schema and fingerprint, encoding, received views."""

from fabric.messages.declare import MessageType, class_from_schema, message, message_type
from fabric.messages.evolution import explain_difference, require_compatible
from fabric.messages.field_marks import Redacted, field
from fabric.messages.schema import FieldSchema, Schema
from fabric.messages.tensor import Tensor, TensorSpec, as_fp8, as_torch
from fabric.messages.view import MessageHeader

__all__ = [
    "FieldSchema",
    "MessageHeader",
    "MessageType",
    "Redacted",
    "Schema",
    "Tensor",
    "TensorSpec",
    "as_fp8",
    "as_torch",
    "class_from_schema",
    "explain_difference",
    "field",
    "message",
    "message_type",
    "require_compatible",
]
