"""Version 1 of the type, kept for `fabricctl type compat` and for tests."""

import fabric
from speech_types import Word


@fabric.message("speech.segment")
class Segment:
    """Some seconds of speech, as features."""

    request: str
    features: fabric.Tensor["frames bands=80", "f32"]
    words: list[Word]
    sample_rate: int = 16_000
