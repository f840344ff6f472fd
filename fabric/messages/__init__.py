"""Message types: declaration, schema and fingerprint, encoding, received views."""

from fabric.messages.declare import MessageType, class_from_schema, message, message_type
from fabric.messages.schema import FieldSchema, Schema, explain_difference, require_equal
from fabric.messages.tensor import Tensor, TensorSpec, as_fp8, as_torch
from fabric.messages.view import MessageHeader

__all__ = [
    "FieldSchema",
    "MessageHeader",
    "MessageType",
    "Schema",
    "Tensor",
    "TensorSpec",
    "as_fp8",
    "as_torch",
    "class_from_schema",
    "explain_difference",
    "message",
    "message_type",
    "require_equal",
]
