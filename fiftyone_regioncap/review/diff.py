"""Compares two texts word by word, to show them side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

_PIECES = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Piece:
    """A word, or the space between words.

    Attributes:
        text: The word as it stands in the caption.
        own: Whether the other caption lacks it there; never true for space.
    """

    text: str
    own: bool = False


def differences(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Compares two texts word by word.

    Case and punctuation around a word don't count: a sentence that ends earlier is not
    different for that.

    Args:
        one: A text.
        other: Another text.

    Returns:
        The pieces of each; joined they are the texts again.
    """
    pieces = _PIECES.findall(one), _PIECES.findall(other)
    places = [
        [i for i, text in enumerate(side) if not text.isspace()] for side in pieces
    ]
    words = [
        [_plain(side[i]) for i in own] for side, own in zip(pieces, places, strict=True)
    ]
    shared: tuple[set[int], set[int]] = set(), set()
    for block in SequenceMatcher(None, words[0], words[1]).get_matching_blocks():
        shared[0].update(places[0][block.a : block.a + block.size])
        shared[1].update(places[1][block.b : block.b + block.size])

    def marked(side: int) -> Iterator[Piece]:
        for i, text in enumerate(pieces[side]):
            yield Piece(text, not text.isspace() and i not in shared[side])

    return list(marked(0)), list(marked(1))


def _plain(word: str) -> str:
    """Returns the word without case and punctuation; punctuation alone stays itself."""
    return re.sub(r"^\W+|\W+$", "", word).casefold() or word
