"""GPT-2's vocabulary, for ViECap, and texts as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.system import assets


def tidy(text: str) -> str:
    """A caption without the spaces that tokenization leaves around punctuation.

    ``"a dog 's ball , on grass . "`` becomes ``"a dog's ball, on grass."``.
    """
    words = " ".join(text.split())
    for mark in (".", ",", "!", "?", ":", ";", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    return words


def load_gpt2_tokenizer(source: str | Path | None = None) -> Any:
    """Loads GPT-2's tokenizer, a ``transformers.GPT2Tokenizer``.

    Args:
        source: a hub repository or a folder with ``vocab.json`` and ``merges.txt``;
            None fetches the published files once.

    Raises:
        WeightsError: when there is none there.
    """
    from transformers import GPT2Tokenizer

    if source is None:
        return GPT2Tokenizer(
            vocab=str(assets.fetch("gpt2-vocab.json")),
            merges=str(assets.fetch("gpt2-merges.txt")),
        )
    try:
        return GPT2Tokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"no GPT-2 vocabulary at {source}: {error}; name a folder with vocab.json "
            "and merges.txt"
        ) from error
