"""Checks captions by their text alone."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from fiftyone_regioncap.analysis.vocabulary import DANGLING

_WORD = re.compile(r"\w+(?:['-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*\s")
_COMPLETE = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_GRAM = 3


def repetition(caption: str) -> float:
    """Measures how much of a caption repeats what it said before.

    Args:
        caption: The text.

    Returns:
        The share of its runs of three words that it had before, or of its words that
        only repeat the one before them where that is more; in [0, 1].
    """
    words = [word.lower() for word in _WORD.findall(caption)]
    if len(words) < 2:
        return 0.0
    stutter = sum(a == b for a, b in pairwise(words))
    shares = [stutter / (len(words) - 1)]
    if len(words) >= 2 * _GRAM:
        grams = Counter(zip(*(words[n:] for n in range(_GRAM)), strict=False))
        shares.append(1 - len(grams) / grams.total())
    return max(shares)


def truncation(caption: str) -> float:
    """Scores how surely a caption stops in the middle.

    Args:
        caption: The text.

    Returns:
        1 when it ends with a word that can't be the last, or a comma; 0.7 when
        sentences before end with a full stop and the last one doesn't; else 0.
    """
    text = caption.strip()
    if not text or _COMPLETE.search(text):
        return 0.0
    words = _WORD.findall(text)
    if text[-1] in ",-–—(" or (len(words) > 1 and words[-1].lower() in DANGLING):
        return 1.0
    return 0.7 if _SENTENCE_END.search(text) else 0.0
