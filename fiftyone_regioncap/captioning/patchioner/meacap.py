"""MeaCap's concepts: what the captions nearest to a region agree on.

MeaCap (arXiv 2403.03715) parses the region's nearest captions of a memory into scene
graphs, merges entities that mean the same, and keeps those that most captions name. The
names go into ViECap's hard prompt in place of retrieved entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.patchioner.pretrained import load_pretrained
from fiftyone_regioncap.core.errors import WeightsError

PARSER_REPOSITORY = "lizhuang144/flan-t5-base-VG-factual-sg"
"""A T5 that turns captions into scene graphs."""

SENTENCE_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
"""A sentence encoder that tells which entities mean the same."""

SAME = 0.55
"""Cosine above which two entities are one."""

CAPTIONS = 5
"""Captions of the memory per region."""

_COMMON = 3
_MOST = 4
_NUMBERS = {
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "6": "six",
    "7": "seven",
    "8": "eight",
    "9": "nine",
}


@dataclass
class _Entity:
    """Counts of one entity in the scene graphs."""

    captions: int = 0
    attributes: Counter[str] = field(default_factory=Counter)


def concepts(
    captions: Sequence[str],
    graphs: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
) -> list[str]:
    """Finds the entities that captions agree on, as noun phrases.

    Args:
        captions: Captions of the memory that are nearest to a region.
        graphs: Scene graph of each caption, as in ``( dog , is , brown ) , ( dog , on ,
            grass )``.
        encode: Function from names to unit vectors (n, D).

    Returns:
        Four phrases at most, in the order in which captions tend to name them; none
        when nothing is named often enough.
    """
    entities = _entities(graphs)
    if not entities:
        return []
    ranked = sorted(entities, key=lambda name: -entities[name].captions)
    counts = {name: entities[name].captions for name in ranked}
    similar = encode(ranked)
    similar = (similar @ similar.T).fill_diagonal_(0) > SAME
    heads: set[str] = set()
    members: set[str] = set()
    removed: set[str] = set()
    for row, column in similar.nonzero().tolist():
        name, other = ranked[row], ranked[column]
        entities[name].attributes.update(entities[other].attributes)
        if name in removed:
            continue
        counts[name] += counts[other]
        heads.add(name)
        members.add(other)
        if other not in heads:
            removed.add(other)
    kept = [n for n in ranked if n not in members and counts[n] >= _COMMON]
    kept.sort(key=lambda name: _place(name, captions))
    return [_phrase(name, entities[name]) for name in kept[:_MOST]]


def _entities(graphs: Iterable[str]) -> dict[str, _Entity]:
    entities: dict[str, _Entity] = {}
    for graph in graphs:
        named: dict[str, None] = {}
        for item in graph.split(") , ("):
            parts = [part.strip() for part in item.strip(" ()").split(" , ")]
            parts = [part for part in parts if part]
            attribute = None
            if len(parts) == 2:
                names, attribute = parts[:1], parts[1]
            elif len(parts) == 3 and parts[1] == "is":
                names, attribute = parts[:1], parts[2]
            elif len(parts) >= 3:
                names = [parts[0], _NUMBERS.get(parts[-1], parts[-1])]
            else:
                names = parts
            named.update(dict.fromkeys(names))
            for name in names:
                entity = entities.setdefault(name, _Entity())
                if attribute is not None:
                    entity.attributes[attribute] += 1
        for name in named:
            entities[name].captions += 1
    return entities


def _place(name: str, captions: Sequence[str]) -> float:
    """Returns the mean position of a name in captions, in [0, 1]; 1 if in none."""
    places = [caption.find(name) / len(caption) for caption in captions if caption]
    inside = [place for place in places if place > 0]
    return sum(inside) / len(inside) if inside else 1.0


def _phrase(name: str, entity: _Entity) -> str:
    common = (a for a, count in entity.attributes.items() if count >= _COMMON)
    attribute = next(common, None)
    return name if attribute is None else f"{attribute} {name}"


@dataclass(frozen=True)
class ConceptReader:
    """The two models behind :func:`concepts`.

    Attributes:
        parser: A ``T5ForConditionalGeneration``.
        parser_tokenizer: Tokenizer of the parser.
        encoder: A sentence encoder, averaged over tokens.
        encoder_tokenizer: Tokenizer of the encoder.
    """

    parser: Any
    parser_tokenizer: Any
    encoder: Any
    encoder_tokenizer: Any

    @classmethod
    def load(
        cls,
        parser: str | Path = PARSER_REPOSITORY,
        encoder: str | Path = SENTENCE_REPOSITORY,
        device: torch.device | str = "cpu",
    ) -> ConceptReader:
        """Loads both from folders or the hub.

        Raises:
            WeightsError: If one cannot be loaded.
        """
        from transformers import AutoModel, AutoTokenizer, T5ForConditionalGeneration

        t5 = load_pretrained(T5ForConditionalGeneration, parser, "scene-graph parser")
        model = load_pretrained(AutoModel, encoder, "sentence encoder")
        try:
            return cls(
                t5.to(device),
                AutoTokenizer.from_pretrained(parser),
                model.to(device),
                AutoTokenizer.from_pretrained(encoder),
            )
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"a tokenizer of {parser} or {encoder} cannot be loaded: {error}; give "
                "folders or hub names"
            ) from error

    def read(self, captions: Sequence[str]) -> list[str]:
        """Finds the concepts of a region's nearest captions."""
        return concepts(captions, self.graphs(captions), self.encode)

    @torch.inference_mode()
    def graphs(self, captions: Sequence[str]) -> list[str]:
        """Parses each caption into a scene graph, as text."""
        inputs = self.parser_tokenizer(
            [f"Generate Scene Graph: {caption}" for caption in captions],
            max_length=128,
            truncation=True,
            padding=True,
            return_tensors="pt",
        ).to(self.parser.device)
        ids = self.parser.generate(
            **inputs,
            max_length=128,
            num_beams=1,
            do_sample=False,
            decoder_start_token_id=self.parser_tokenizer.pad_token_id,
        )
        return self.parser_tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def encode(self, names: Sequence[str]) -> Tensor:
        """Embeds names as unit vectors (n, D)."""
        inputs = self.encoder_tokenizer(
            list(names), padding=True, truncation=True, return_tensors="pt"
        ).to(self.encoder.device)
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states)
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=1).cpu()
