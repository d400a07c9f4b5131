"""Writes texts in one way, so that captions and queries meet however they are typed."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# Scripts that put no blanks between words (Thai, Lao, Myanmar, Khmer, kana, Han), and
# Hangul, whose words carry endings. Marks belong to the letter before them.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_ACCENTS = re.compile("[\u0300-\u036f]")


def fold(text: str) -> str:
    """Removes differences of case, width, ligatures and accents.

    Args:
        text: Any text, composed (NFC) or decomposed (NFD).

    Returns:
        The text in lower case, compatibility forms replaced (NFKC), without accents.
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", decomposed))


def normalize(text: str) -> str:
    """Folds a text, and sets each character of unspaced scripts apart as a word.

    So phrases find words that are written without blanks around them.
    """
    folded = fold(text)
    return folded if folded.isascii() else _CHARACTER.sub(r" \g<0> ", folded)


def split_word(word: str) -> list[str]:
    """Splits a word of a query where its script would put no blanks.

    Args:
        word: A text without blanks.

    Returns:
        Pairs of neighboring characters of unspaced scripts, and what is between.
    """
    parts: list[str] = []
    for run in _RUN.findall(fold(word)):
        if _CHARACTER.match(run) and len(run) > 1:
            parts += ["".join(pair) for pair in pairwise(run)]
        else:
            parts.append(run)
    return parts
