"""Confidence of a text: from its tokens' probabilities, and from repeated samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

from fiftyone_regioncap.core.types import Caption

SPACE = "▁"
"""Marker of the space before a word in a token, as sentencepiece writes it."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS = _words(
    """a an the this that these those it its he him his she her they them their and or
    but nor so as than then if of in on at by to from with without into onto over under
    for about above below between through during near is are was were be been being has
    have had having do does did can could may might will would shall should must not no
    which who whom whose where when while there here also very more most some any each
    both other another such same own"""
)
"""Words that carry no content of their own; what they cost to predict says little."""

_LETTER = re.compile(r"[^\W\d_]|\d")


def content_minimum(
    pieces: Sequence[str], probabilities: Sequence[float]
) -> float | None:
    """Returns the lowest token probability over content words.

    Args:
        pieces: Pieces of the text's tokens as sentencepiece writes them, with a leading
            space as ``"▁"``.
        probabilities: Probability of each token, in [0, 1].

    Returns:
        In [0, 1]; None when the text has no content word.
    """
    lowest: float | None = None
    word, least = "", 1.0
    for piece, probability in [*zip(pieces, probabilities, strict=True), (SPACE, 1.0)]:
        if piece.startswith(SPACE) or not _LETTER.search(piece):
            plain = word.strip(SPACE).lower()
            if _LETTER.search(plain) and plain not in FUNCTION_WORDS:
                lowest = least if lowest is None else min(lowest, least)
            word, least = "", 1.0
        if _LETTER.search(piece):
            word += piece
            least = min(least, probability)
    return lowest


def caption_from_tokens(
    text: str,
    pieces: Sequence[str],
    probabilities: Sequence[float],
    *,
    label: str | None,
    tokens: int,
    agreement: float | None = None,
) -> Caption:
    """Returns the caption of a text that a language model wrote.

    Args:
        text: The whole text; an empty one gives a caption with an error.
        pieces: The pieces of its words, as :func:`content_minimum` takes them.
        probabilities: The probability of each piece; empty where they are not known.
        label: Short name of the object; None derives it from the text.
        tokens: Number of tokens written.
        agreement: Agreement between repeated samples, in [0, 1]; None when there was
            only one.
    """
    if not text:
        return Caption(
            label=label, error="the model had nothing to say about this region"
        )
    return Caption(
        text=text,
        label=label or short_label(text),
        confidence=sum(probabilities) / len(probabilities) if probabilities else None,
        min_confidence=content_minimum(pieces, probabilities),
        agreement=agreement,
        tokens=tokens,
    )


def similarity(first: str, second: str) -> float:
    """Returns the F1 score of two texts' bags of content words."""
    one, two = _content(first), _content(second)
    total = sum(one.values()) + sum(two.values())
    return 2 * sum((one & two).values()) / total if total else 1.0


def agreement(texts: Sequence[str]) -> tuple[int, float]:
    """Returns which of several samples is most typical, and how far all agree.

    Args:
        texts: Texts to compare, two or more.

    Returns:
        The number of the most typical text, the first of equals, and the mean
        similarity of all pairs in [0, 1].
    """
    sums = [0.0] * len(texts)
    for one, two in combinations(range(len(texts)), 2):
        value = similarity(texts[one], texts[two])
        sums[one] += value
        sums[two] += value
    typical = max(range(len(texts)), key=lambda number: (sums[number], -number))
    return typical, sum(sums) / (len(texts) * (len(texts) - 1))


def _content(text: str) -> Counter[str]:
    words: Iterable[str] = re.findall(r"\w+", text.lower())
    return Counter(word for word in words if word not in FUNCTION_WORDS)


_HEAD_ENDS = _words(
    """with in on at by of to from is are was were has have that which who wearing
    holding standing sitting lying walking running moving featuring positioned located
    being seen shown appears captured initially begins starts characterized and while
    as for against under over near behind beside"""
)


_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
"""A clause of Chinese or Japanese, which put no spaces between words."""

_MEASURE = re.compile(
    "^(?:[这那]是?)?[一二两三四五]?[个只辆名位条张件头匹棵座架块朵把](?=.)"
)
"""A number and a measure word before a noun."""

_UNSPACED_ENDS = re.compile("(?<=.)[在正是有与及被坐站躺趴走跑がはをにで]")
"""Verbs and particles that may follow the first noun of a clause."""

_MOST_CHARACTERS = 8


def short_label(text: str) -> str | None:
    """Returns a name for the object: the head of the first sentence.

    Args:
        text: A caption such as ``"A white cat with black spots sits on a wall."``.

    Returns:
        Such as ``"white cat"``, at most four words, or at most eight characters of
        Chinese or Japanese; None when the text has no words.
    """
    first = _LETTER.search(text)
    if first and (unspaced := _UNSPACED.match(text, first.start())):
        noun = _UNSPACED_ENDS.split(_MEASURE.sub("", unspaced[0]), maxsplit=1)[0]
        return (noun or unspaced[0])[-_MOST_CHARACTERS:]
    words = re.findall(r"[\w'-]+|[,.;:!?]", text)
    head: list[str] = []
    for word in words:
        lower = word.lower()
        if not head and lower in FUNCTION_WORDS:
            continue
        if lower in _HEAD_ENDS or not _LETTER.search(word):
            break
        head.append(lower if word.istitle() and not head else word)
    return " ".join(head[-4:]) or None
