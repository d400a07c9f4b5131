"""Texts that DynRefer's heads score, and the tower that encodes them."""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import torch
from torch import Tensor

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary

TEXTS_AT_ONCE = 256
"""Texts that go through the text tower in one batch."""

MORE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "young/baby": ("kid", "kids", "child", "toddler", "boy", "girl"),
    "adult/old/aged": ("teen", "elder"),
}
"""Words that the OVAD benchmark adds to an attribute's own when it asks for it."""


@dataclass(frozen=True)
class Attribute:
    """An attribute of the OVAD vocabulary (arXiv 2211.12914).

    Attributes:
        name: ``"kind:word/synonym/..."``.
        owned: Whether objects have it (a texture) rather than are it (a color).
    """

    name: str
    owned: bool

    def prompts(self) -> list[str]:
        """Returns two phrases per synonym. Double blanks stand for an unnamed noun."""
        kind, _, words = self.name.partition(":")
        thing = kind.replace(" tone", "")
        phrases = []
        for word in (*words.split("/"), *MORE_SYNONYMS.get(words, ())):
            if self.owned:
                phrases += [f"the {word} {thing} ", f"the  has {word} {thing}"]
            else:
                phrases += [f"the {word} ", f"the  is {word}"]
        return [phrase.strip() for phrase in phrases]


def class_prompt(name: str) -> str:
    """Returns the prompt for a category."""
    return f"the {name.lower()}"


def read_lines(path: Path) -> tuple[str, ...]:
    """Reads the names in a text file, one a line, without blank lines at the end."""
    return tuple(line.strip() for line in path.read_text("utf-8").strip().splitlines())


def read_attributes(path: Path) -> tuple[Attribute, ...]:
    """Reads attributes from OVAD's annotation file, or one with its ``attributes``.

    Raises:
        WeightsError: If it is no such file.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))["attributes"]
        return tuple(Attribute(r["name"], r["is_has_att"] == "has") for r in rows)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is no list of attributes ({error!r}); give OVAD's annotation file "
            'or {"attributes": [{"name": "color:red", "is_has_att": "is"}, ...]}'
        ) from error


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads class names from a JSON list, of names or of objects with ``name``.

    Raises:
        WeightsError: If it is no such file.
    """
    try:
        rows: Any = json.loads(path.read_text("utf-8"))
        if isinstance(rows, dict):
            rows = rows["categories"]
        names = tuple(row if isinstance(row, str) else row["name"] for row in rows)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(
            f'{path} is no list of classes ({error!r}); give ["person", "cat", ...]'
        ) from error
    return distinct_classes(names)


def distinct_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns class names without surrounding blanks and without duplicates.

    Warns of names that were left out: they differ from an earlier one by nothing or
    only by case, so both would get the same score.
    """
    kept: dict[str, str] = {}
    left_out = []
    for name in (name.strip() for name in names):
        if name and name.lower() not in kept:
            kept[name.lower()] = name
        else:
            left_out.append(name)
    if left_out:
        shown = ", ".join(repr(name) for name in left_out[:5])
        warnings.warn(
            f"{len(left_out)} of the class names are empty or double and were left "
            f"out: {shown}{', ...' if len(left_out) > 5 else ''}",
            stacklevel=3,
        )
    return tuple(kept.values())


class TextTower:
    """EVA-CLIP's text encoder behind CLIP's vocabulary.

    Attributes:
        tower: A ``transformers.CLIPTextModelWithProjection``.
    """

    def __init__(self, tower: Any, vocabulary: ClipVocabulary) -> None:
        self.tower = tower
        self._vocabulary = vocabulary

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns unnormalized embeddings, float32 (N, E), on the tower's device.

        Args:
            texts: Texts of any length; what goes beyond the tower's context is cut.
        """
        ids = torch.from_numpy(self.token_ids(texts))
        lengths = (ids == self._vocabulary.end_id).int().argmax(dim=1) + 1
        order = lengths.argsort()
        weight = self.tower.text_projection.weight
        embeddings = weight.new_empty(len(texts), weight.shape[0])
        # Texts of like lengths together: most tags are one to three tokens long.
        for rows in order.split(TEXTS_AT_ONCE):
            cut = ids[rows, : int(lengths[rows].max())].to(weight.device)
            # Training's autocast gives them in half precision.
            found = self.tower(cut).text_embeds.to(embeddings.dtype)
            embeddings[rows.to(weight.device)] = found
        return embeddings

    def token_ids(self, texts: Sequence[str]) -> Any:
        """Returns CLIP's ids, int64 (N, context), zeros after the end token."""
        return self._vocabulary.tokenize(
            [_clean(text) for text in texts],
            self.tower.config.max_position_embeddings,
            truncate=True,
        )


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
