"""Summaries of change over a track, in the words of its windows' captions.

No model is asked: nothing can be in a summary that is in no caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fiftyone_regioncap.captioning.confidence import FUNCTION_WORDS, similarity

ALIKE = 0.8
"""Sentences that share so much of their content words say the same."""

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def change_summary(captions: Sequence[str]) -> str | None:
    """Joins the captions of a track's windows into one sentence with "then".

    Each window gives its first sentence; one that says what the window before it said
    is left out.

    Args:
        captions: Captions of the windows in temporal order; empty ones are skipped.

    Returns:
        Such as ``"A dog runs across the yard, then it lies under a tree."``; None when
        the windows tell of no change.
    """
    told: list[str] = []
    for caption in captions:
        sentence = _END.split(caption.strip(), maxsplit=1)[0].strip()
        if sentence and (not told or similarity(told[-1], sentence) < ALIKE):
            told.append(sentence)
    if len(told) < 2:
        return None
    parts = [told[0], *(_continued(sentence) for sentence in told[1:])]
    return ", then ".join(part.rstrip(" .!?;,") for part in parts) + "."


def _continued(sentence: str) -> str:
    """Returns a sentence with a lower-case first word unless it may be a name."""
    first = sentence.split(maxsplit=1)[0]
    if first.lower() in FUNCTION_WORDS and first.istitle():
        return sentence[0].lower() + sentence[1:]
    return sentence
