"""Markdown that shows names and texts of others as they are."""

from __future__ import annotations

import re
import string

_ESCAPES = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})
_MARKS = re.compile(rf"`([^`]*)`|\\([{re.escape(string.punctuation)}\n])|\*\*")


def escape(text: str) -> str:
    """Escapes a text so that Markdown and HTML in it are shown, not interpreted.

    Args:
        text: Any text, such as a label or a file name. Its line breaks are kept.
    """
    lines = (line.strip() for line in text.translate(_ESCAPES).splitlines())
    return "\\\n".join(line or "\u00a0" for line in lines)


def code(text: str) -> str:
    """Formats a text as a span of code, which nothing in it can end.

    Args:
        text: Any text, such as the name of a view. Backticks become apostrophes.
    """
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def plain(markdown: str) -> str:
    """Removes emphasis, marks of code and escapes, for a terminal.

    Args:
        markdown: Made with :func:`escape` and :func:`code`.
    """
    return _MARKS.sub(lambda mark: mark[1] or mark[2] or "", markdown)


def counted(count: int, noun: str) -> str:
    """Returns a bold number with its noun: ``**1** track``, ``**2** tracks``."""
    return f"**{count}** {noun if count == 1 else noun + 's'}"
