"""Language models of Patch-ioner: DeCap with or without memory, ViECap, MeaCap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.confidence import SPACE, content_minimum
from fiftyone_regioncap.captioning.patchioner.aggregation import Compat
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.meacap import CAPTIONS, ConceptReader
from fiftyone_regioncap.captioning.patchioner.memory import TextMemory
from fiftyone_regioncap.captioning.patchioner.viecap import (
    Prompting,
    ViecapDecoder,
    choose_entities,
    entity_probabilities,
)
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary


@dataclass(frozen=True)
class Description:
    """The caption of one region.

    Attributes:
        text: Caption as the decoder writes it, spaces around punctuation included; None
            where the reference fails (an id outside CLIP's vocabulary).
        confidence: Mean token probability in [0, 1]; None where there is none.
        min_confidence: The lowest token probability over content words in [0, 1];
            None where there are none.
        tokens: Number of tokens generated, the end token included.
        score: The reference's: product of 30 token probabilities for DeCap, perplexity
            for ViECap (lower is better); None outside ``compat="reference"``.
        ids: Token ids.
        concepts: Entities of the hard prompt, where there is one.
    """

    text: str | None
    confidence: float | None = None
    min_confidence: float | None = None
    tokens: int = 0
    score: float | None = None
    ids: tuple[int, ...] = field(default=(), repr=False)
    concepts: tuple[str, ...] = ()


class Language(Protocol):
    """Turns region embeddings into captions."""

    @property
    def width(self) -> int:
        """Returns the number of channels of the region embeddings."""

    def describe(self, embeddings: Tensor) -> list[Description]:
        """Describes embeddings (R, D), in order."""


@dataclass(frozen=True)
class DecapLanguage:
    """DeCap's decoder, behind a memory or trained with noise.

    Attributes:
        decoder: Decoder, which is greedy.
        vocabulary: CLIP's vocabulary.
        memory: Memory to project embeddings onto; None for noise-trained decoders.
        normalize: Whether projected embeddings get length 1.
        compat: ``reference`` gives noise-trained decoders embeddings of any length,
            takes all 30 steps and chooses among all rows of the output layer.
        nearest_text: Answer with the nearest caption of the memory, without decoding.
        batch_size: Number of regions decoded at once.
    """

    decoder: PrefixDecoder
    vocabulary: ClipVocabulary
    memory: TextMemory | None = None
    normalize: bool = True
    compat: Compat = "fixed"
    nearest_text: bool = False
    batch_size: int = 256

    @property
    def width(self) -> int:
        """Returns the number of channels of the region embeddings."""
        return self.decoder.prefix_width

    def prefixes(self, embeddings: Tensor) -> Tensor:
        """Converts embeddings (R, D) to what the decoder was trained on, (R, D)."""
        if self.memory is not None:
            return self.memory.project(embeddings, normalize=self.normalize)
        if self.compat == "reference":
            return embeddings
        return torch.nn.functional.normalize(embeddings, dim=1)

    def describe(self, embeddings: Tensor) -> list[Description]:
        """Describes embeddings (R, D), in order."""
        batches = embeddings.split(self.batch_size)
        return [one for rows in batches for one in self._describe(rows)]

    def _describe(self, embeddings: Tensor) -> list[Description]:
        reference = self.compat == "reference"
        if self.nearest_text and self.memory is not None:
            texts = self.memory.nearest_texts(embeddings, skip_zero_rows=reference)
            return [Description(text) for text in texts]
        generated = self.decoder.generate(
            self.prefixes(embeddings).to(self.decoder.device),
            end_id=self.vocabulary.end_id,
            early_stop=not reference,
            vocabulary=None if reference else len(self.vocabulary),
        )
        rows = generated.ids.tolist()
        if reference and any(max(ids) >= len(self.vocabulary) for ids in rows):
            return [Description(None, ids=tuple(ids)) for ids in rows]
        means = generated.confidence().tolist()
        probabilities = generated.log_probabilities.exp().tolist()
        scores = generated.reference_score().tolist()
        return [
            Description(
                text=self.vocabulary.caption(ids),
                confidence=means[row],
                min_confidence=content_minimum(
                    self.vocabulary.pieces(ids[:length]), probabilities[row][:length]
                ),
                tokens=length,
                score=scores[row] if reference else None,
                ids=tuple(ids),
            )
            for row, (ids, length) in enumerate(
                zip(rows, generated.lengths.tolist(), strict=True)
            )
        ]


@dataclass(frozen=True)
class ViecapLanguage:
    """ViECap's decoder; with a concept reader and a memory of captions, MeaCap's.

    Attributes:
        decoder: Decoder, greedy or with beam search.
        names: Names of the entities, in the order of their embeddings.
        entities: Unit embeddings of the entities, (E, D); None names "something" in
            every hard prompt.
        prompting: Prompts of the decoder.
        compat: ``reference`` pads prompts with "!" that the decoder reads, so that a
            caption depends on its batch, and scores by perplexity.
        memory: Memory of captions, for MeaCap.
        concepts: Reads concepts out of a memory's captions, for MeaCap.
        batch_size: Number of regions decoded at once.
    """

    decoder: ViecapDecoder
    names: Sequence[str] = ()
    entities: Tensor | None = None
    prompting: Prompting = field(default_factory=Prompting)
    compat: Compat = "fixed"
    memory: TextMemory | None = None
    concepts: ConceptReader | None = None
    batch_size: int = 64

    @property
    def width(self) -> int:
        """Returns the number of channels of the region embeddings."""
        return self.decoder.mapping_network.linear.in_features

    def named(self, embeddings: Tensor) -> list[list[str]]:
        """Returns the entities of each region's hard prompt."""
        if self.memory is not None and self.concepts is not None:
            _, found = self.memory.search(embeddings, CAPTIONS)
            return [
                self.concepts.read([self.memory.texts[number] for number in row])
                for row in found.tolist()
            ]
        if self.entities is None:
            return [[] for _ in embeddings]
        chances = entity_probabilities(embeddings, self.entities.to(embeddings))
        return choose_entities(
            chances,
            self.names,
            top_k=self.prompting.top_k,
            threshold=self.prompting.threshold,
        )

    def describe(self, embeddings: Tensor) -> list[Description]:
        """Describes embeddings (R, D), in order."""
        batches = embeddings.split(self.batch_size)
        return [one for rows in batches for one in self._describe(rows)]

    def _describe(self, embeddings: Tensor) -> list[Description]:
        embeddings = embeddings.to(self.decoder.device)
        named = self.named(embeddings)
        output = self.decoder.generate(
            embeddings, named, self.prompting, compat=self.compat
        )
        means: Sequence[float | None] = [None] * len(named)
        lowest: Sequence[float | None] = means
        if output.generated is not None:
            means = output.generated.confidence().tolist()
            probabilities = output.generated.log_probabilities.exp().tolist()
            lowest = [
                content_minimum(self._pieces(ids), chances[: len(ids)])
                for ids, chances in zip(output.ids, probabilities, strict=True)
            ]
        reference = self.compat == "reference"
        return [
            Description(
                text=text,
                confidence=means[row],
                min_confidence=lowest[row],
                tokens=len(output.ids[row]),
                score=self.decoder.perplexity(text) if reference else None,
                ids=tuple(output.ids[row]),
                concepts=tuple(named[row]),
            )
            for row, text in enumerate(output.texts)
        ]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        tokens = self.decoder.tokenizer.convert_ids_to_tokens(ids)
        return [token.replace("Ġ", SPACE) for token in tokens]
