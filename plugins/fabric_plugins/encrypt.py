"""AES-GCM around each tensor: read by nobody without the key, changed by nobody unnoticed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import transform
from fabric.errors import ConfigError

from .tensors import as_tensor, flat_bytes

if TYPE_CHECKING:
    import numpy as np

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
NONCE_BYTES: Final = 12
MESSAGES_PER_KEY: Final = 1 << 32  # NIST SP 800-38D §8.3, for nonces of any kind
KEYS_KEPT: Final = 256  # of senders, by their salts
KEY_VARIABLE: Final = "FABRIC_ENCRYPT_KEY_FILE"


class TamperedError(ValueError):
    """A tensor was changed on its way, belongs elsewhere, or was encrypted with another key."""


@transform("encrypt", kind="codec", tier="edge", guards=True, pure=False, time_budget_ms=10_000)
class Encrypt:
    """Encrypt each tensor with AES-256-GCM. Scalars of a message are not tensors: they travel as they are.

    Parameters
    ----------
    key_file : str
        32 bytes, or 64 hexadecimal digits, readable by its owner alone; the same on both ends. Default: what
        ``FABRIC_ENCRYPT_KEY_FILE`` says.

    Notes
    -----
    No nonce is ever used twice: each instance draws 32 random bytes, derives a key of its own from them
    (HMAC-SHA-256, as in HKDF, RFC 5869) and counts its nonces; after 2³² it draws again. Channel, field, dtype and
    shape are authenticated, too. A tensor that is sent again by who recorded it is not told from the first.
    """

    def __init__(self, key_file: str = "") -> None:
        self._key = read_key(key_file or os.environ.get(KEY_VARIABLE, ""))
        self._opened: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._draw()

    def _draw(self) -> None:
        self._salt, self._count, self._process = secrets.token_bytes(SALT_BYTES), 0, os.getpid()
        self._cipher = cipher_of(self._key, self._salt)

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded:
        """Return ciphertext with its tag of 16 bytes; the salt and the number of the nonce are told beside it."""
        if (
            self._count >= MESSAGES_PER_KEY or self._process != os.getpid()
        ):  # a fork copies the counter
            self._draw()
        number, self._count = self._count, self._count + 1
        nonce = number.to_bytes(NONCE_BYTES, "little")
        part = self._cipher.encrypt(nonce, flat_bytes(array), meaning(ctx))
        return Encoded([part], {"salt": self._salt, "number": number})

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return the tensor; `TamperedError` (a ValueError) where it is not what was encrypted for this place."""
        from cryptography.exceptions import InvalidTag

        salt, number = ctx.info.get("salt"), ctx.info.get("number")
        if len(parts) != 1 or type(salt) is not bytes or len(salt) != SALT_BYTES:
            raise ValueError(f"encrypt: {len(parts)} parts, or no salt of {SALT_BYTES} bytes")
        if type(number) is not int or not 0 <= number < MESSAGES_PER_KEY:
            raise ValueError("encrypt: no number of a nonce")
        nonce = number.to_bytes(NONCE_BYTES, "little")
        try:
            found = self._cipher_of(salt).decrypt(nonce, parts[0], meaning(ctx))
        except InvalidTag:
            raise TamperedError(
                f"field {ctx.field!r} on {ctx.channel!r} is not what was encrypted: it was changed on the way, or "
                "the two ends have different keys"
            ) from None
        return as_tensor(found, ctx)

    def _cipher_of(self, salt: bytes) -> Any:
        with self._lock:
            if salt not in self._opened:
                self._opened[salt] = cipher_of(self._key, salt)
            self._opened.move_to_end(salt)
            while len(self._opened) > KEYS_KEPT:
                self._opened.popitem(last=False)
            return self._opened[salt]


def meaning(ctx: TensorContext) -> bytes:
    """Return what of a tensor's place is authenticated beside its bytes."""
    return repr((ctx.channel, ctx.field, ctx.dtype, tuple(ctx.shape))).encode()


def cipher_of(key: bytes, salt: bytes) -> Any:
    """Return AES-256-GCM with the key that belongs to one salt."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hmac.new(key, b"fabric.encrypt 1" + salt, hashlib.sha256).digest())


def read_key(path: str) -> bytes:
    """Return the key in a file.

    Raises
    ------
    ConfigError
        No file, one that others may read, one without a key, or the package ``cryptography`` is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        fix = "pip install 'fabricd[codecs]' on both ends of the channel"
        raise ConfigError(f"encrypt needs the package cryptography; {fix}") from error
    if not path:
        raise ConfigError(
            f"encrypt has no key: give key_file, or set {KEY_VARIABLE}", key="key_file"
        )
    try:
        with Path(path).open("rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(1024)
    except OSError as error:
        raise ConfigError(f"encrypt: key file {path}: {error.strerror}", key="key_file") from error
    if mode & 0o077:
        raise ConfigError(
            f"encrypt: key file {path} can be read by others: chmod 600 it, and make a new key if they may have",
            key="key_file",
        )
    if len(text) == KEY_BYTES:
        return text
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"encrypt: key file {path} has neither {KEY_BYTES} bytes nor {2 * KEY_BYTES} hexadecimal digits; "
            f"`openssl rand -hex {KEY_BYTES}` makes one",
            key="key_file",
        )
    return key
