"""Parses what a person typed into the search box."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fiftyone_regioncap.core.errors import RegionCapError

# A phrase, with or without a minus in front, or a run of anything but blanks. A quote
# that is not closed quotes the rest.
_PART = re.compile(r'(-?)"([^"]*)(?:"|$)|(\S+)')
# Quotes and signs as phones and languages write them, full width included.
_TYPED = str.maketrans(dict.fromkeys("“”„‟«»＂", '"') | dict.fromkeys("−－", "-"))


class QueryError(RegionCapError, ValueError):
    """A query asks for nothing."""


@dataclass(frozen=True)
class Query:
    """A query: ``red car "turning left" -truck``.

    Attributes:
        words: Words to search for; the more of them a caption has, the better.
        phrases: Phrases that a caption must have, word by word.
        excluded: Words and phrases that a caption must not have.
    """

    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Query:
        """Parses a query; any text at all is one.

        Args:
            text: Words, ``"phrases in quotes"``, ``-words`` and ``-"phrases"`` that
                must not be there.

        Raises:
            QueryError: If nothing is searched for.
        """
        words: list[str] = []
        phrases: list[str] = []
        excluded: list[str] = []
        for minus, phrase, word in _PART.findall(text.translate(_TYPED)):
            if word.startswith("-") and word.strip("-"):
                excluded.append(word.strip("-"))
            elif word:
                words.append(word)
            elif phrase.strip():
                (excluded if minus else phrases).append(phrase.strip())
        if not any(map(_has_word, (*words, *phrases))):
            raise QueryError(
                f"the query {text!r} looks for nothing; give at least one word that "
                "captions should have"
            )
        return cls(tuple(words), tuple(phrases), tuple(excluded))

    @property
    def meaning(self) -> str:
        """The text to embed: all but what is excluded."""
        return " ".join((*self.words, *self.phrases))


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
