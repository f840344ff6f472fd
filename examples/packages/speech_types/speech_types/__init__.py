"""What a speech front end sends: version 2."""

import enum

import fabric


class Language(enum.Enum):
    """What the speaker is thought to speak."""

    unknown = "?"
    english = "en"
    german = "de"


@fabric.message("speech.word")
class Word:
    """One word and where it lies in the segment, in frames."""

    text: str
    first: int
    last: int


@fabric.message("speech.segment", version=2)
class Segment:
    """Some seconds of speech, as features."""

    request: str
    features: fabric.Tensor["frames bands=80", "f32 | f16"]
    words: list[Word]
    language: Language = Language.unknown
    voice: fabric.Redacted[fabric.Tensor["dim", "f32"]] | None = None
    rate: int = fabric.field(default=16_000, alias="sample_rate")
