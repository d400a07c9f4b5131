"""What is asked in conversations, without ever taking a caption for a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from fiftyone_regioncap.exporters.staging import ExportError


def choose(templates: Sequence[str], *key: object) -> str:
    """One of several templates, evenly, and always the same for a key.

    Raises:
        ExportError: when there is none.
    """
    if not templates:
        raise ExportError("there is no prompt; give at least one")
    digest = sha256("\x1f".join(map(str, key)).encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values in place of ``{name}``; other braces, and those of values, stay."""
    parts = template.split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, brace, rest = part.partition("}")
        known = bool(brace) and name in values
        filled.append(values[name] + rest if known else "{" + part)
    return "".join(filled)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of one question, as LLaVA and all after it have it."""
    return [
        {"from": "human", "value": question},
        {"from": "gpt", "value": answer},
    ]
