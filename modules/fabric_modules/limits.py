"""Bounds of the first-party modules. The fabric's own bounds are in fabric/limits.py."""

CONVERT_LOCK_TIMEOUT_S = 300.0
"""How long a process waits for another one that converts the same weights."""

PROMPT_TOKENS_MAX = 8192
"""Longest prompt that prefill accepts, in tokens; a model with a shorter context lowers it."""

NEW_TOKENS_MAX = 4096
"""Most tokens one request may ask for."""

SEND_QUEUE_LAYERS = 64
"""KV layers that wait for prefill's sender thread before compute has to wait (about two prompts)."""

SEND_TIMEOUT_S = 30.0
"""Longest wait for credit or an arena slot of one message."""

ACTIVE_SEQUENCES_MAX = 64
"""Sequences that decode holds KV for at once; a further request is refused."""

ATTEMPTS_PER_REQUEST_MAX = 3
"""Incomplete KV sets kept for one request; the oldest is dropped when a redelivery starts another."""

FORGOTTEN_REQUESTS_MAX = 1024
"""Ended requests remembered, so that late KV is recognised and dropped."""

KV_TIMEOUT_S = 30.0
"""Longest time without KV progress before decode gives a request up."""

IDLE_CHECK_S = 0.1
"""How often decode looks for cancelled and late requests while it has nothing to compute."""
