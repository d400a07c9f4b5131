"""The ViECap decoder: a soft prompt from the embedding and a hard one of entity names.

ViECap (arXiv 2307.16525) puts ten tokens mapped from the region's embedding before, or
after, the tokens of "There are dog, ball in image.", and lets a fine-tuned GPT-2 go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.aggregation import Compat
from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Generated,
    Gpt2Config,
    LanguageModel,
    read_gpt2,
)
from fiftyone_regioncap.models.loading import config_errors, load_strict

STEPS = 64
"""The most tokens of a caption."""

TEMPERATURE = 0.01
"""Of the softmax over entities."""

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Sentences that an entity's vector is averaged over (Radford et al. 2021)."""

# fmt: off
COCO_CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck",
    "boat", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench",
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""Entities that the published ViECap models may name; see :func:`embed_entities`."""

_EXCLAMATION = 0


@dataclass(frozen=True)
class Prompting:
    """Prompts of the decoder, and how it searches.

    Attributes:
        soft: Whether to give the soft prompt.
        hard: Whether to give the hard prompt.
        soft_first: Whether the soft prompt comes before the hard one.
        top_k: Maximum number of entities.
        threshold: Probability below which no more entities are taken.
        beams: Number of beams; 1 is greedy search.
    """

    soft: bool = True
    hard: bool = True
    soft_first: bool = True
    top_k: int = 3
    threshold: float = 0.4
    beams: int = 1


def embed_entities(
    names: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Embeds entities, to retrieve them by.

    Args:
        names: Names of the entities.
        encode: Texts to vectors (n, D) of the space of the region embeddings.

    Returns:
        float32 (E, D), unit rows: the mean over templates of unit vectors.
    """
    texts = [template.format(name) for name in names for template in TEMPLATES]
    vectors = nn.functional.normalize(encode(texts), dim=1)
    means = vectors.unflatten(0, (len(names), len(TEMPLATES))).mean(dim=1)
    return nn.functional.normalize(means, dim=1)


def entity_probabilities(features: Tensor, entities: Tensor) -> Tensor:
    """Computes how likely each entity is in each region.

    Args:
        features: Region embeddings, (R, D).
        entities: Unit embeddings of the entities, (E, D).

    Returns:
        (R, E), rows sum to 1.
    """
    directions = nn.functional.normalize(features, dim=1)
    return torch.softmax(directions @ entities.T / TEMPERATURE, dim=1)


def choose_entities(
    probabilities: Tensor, names: Sequence[str], *, top_k: int, threshold: float
) -> list[list[str]]:
    """Chooses the most likely entities of each region, most likely first.

    Args:
        probabilities: Probabilities of the entities, (R, E).
        names: Names of the E entities.
        top_k: Maximum number of entities.
        threshold: The first probability below it ends the list.
    """
    top, places = probabilities.topk(min(top_k, len(names)), dim=1)
    chosen = []
    for row, numbers in zip(top.tolist(), places.tolist(), strict=True):
        kept = next((i for i, p in enumerate(row) if p < threshold), len(row))
        chosen.append([names[number] for number in numbers[:kept]])
    return chosen


def hard_prompt(entities: Sequence[str]) -> str:
    """Returns the sentence that names the entities."""
    return f"There are {', '.join(entities) or 'something'} in image."


class _MapperAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_queries(x), *self.to_keys_values(x).chunk(2, dim=-1))
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.project(attended.transpose(1, 2).flatten(2))


class _MapperLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _MapperAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 2 * width),
                relu=nn.ReLU(),
                fc2=nn.Linear(2 * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MappingNetwork(nn.Module):
    """Maps a region embedding to the tokens of the soft prompt."""

    def __init__(
        self,
        feature_width: int,
        width: int,
        tokens: int = 10,
        learned: int = 10,
        layers: int = 8,
        heads: int = 8,
    ) -> None:
        """Makes a mapping with random weights.

        Args:
            feature_width: Number of channels of the region embeddings.
            width: Number of channels of the GPT-2.
            tokens: Number of tokens that the embedding becomes.
            learned: Number of learned tokens behind them; what the layers make of those
                is the soft prompt.
            layers: Number of layers of the transformer.
            heads: Attention heads per layer.
        """
        super().__init__()
        self.linear = nn.Linear(feature_width, tokens * width)
        self.prefix_const = nn.Parameter(torch.randn(learned, width))
        # Under the names of the published state dicts.
        blocks = nn.Sequential(*(_MapperLayer(width, heads) for _ in range(layers)))
        self.transformer = nn.Sequential(OrderedDict(layers=blocks))

    def forward(self, features: Tensor) -> Tensor:
        """Converts unit features (R, D) to soft prompts (R, learned, width)."""
        learned, width = self.prefix_const.shape
        tokens = self.linear(features).unflatten(1, (-1, width))
        constant = self.prefix_const.expand(len(features), -1, -1)
        return self.transformer(torch.cat([tokens, constant], dim=1))[:, -learned:]


@dataclass(frozen=True)
class ViecapOutput:
    """Captions of several regions.

    Attributes:
        texts: Captions, one per region.
        ids: Token ids of each caption, the stop token included.
        generated: Tokens with their probabilities; None for beam search.
    """

    texts: list[str]
    ids: list[list[int]]
    generated: Generated | None = None


class ViecapDecoder(nn.Module):
    """Generates captions from region embeddings and entity names.

    Attributes:
        tokenizer: A ``transformers.GPT2Tokenizer``.
        stop_ids: Ids of the tokens that end a caption, "." and " .".
    """

    def __init__(
        self, mapping: MappingNetwork, config: Gpt2Config, tokenizer: Any
    ) -> None:
        super().__init__()
        self.mapping_network = mapping
        self.gpt = LanguageModel(config)
        self.tokenizer = tokenizer
        self.stop_ids = tuple(tokenizer.encode(mark)[-1] for mark in (".", " ."))

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        tokenizer: Any,
        heads: int = 12,
        mapper_heads: int = 8,
        source: str = "the ViECap decoder",
    ) -> ViecapDecoder:
        """Builds the decoder that a published state dict belongs to, strictly.

        Args:
            state: ``gpt.*`` and ``mapping_network.*``.
            tokenizer: A ``transformers.GPT2Tokenizer``.
            heads: Attention heads per block of the GPT-2.
            mapper_heads: Attention heads per layer of the mapping network.
            source: Source of the state dict, for messages.

        Raises:
            WeightsError: If a name is missing, unknown or of another shape.
        """
        config, weights = read_gpt2(state, "gpt", heads, source)
        with config_errors(source):
            outputs, feature_width = weights["mapping_network.linear.weight"].shape
            learned = len(weights["mapping_network.prefix_const"])
        layers = {name.split(".")[3] for name in weights if ".layers." in name}
        width = config.width
        with torch.device("meta"):
            mapping = MappingNetwork(
                feature_width,
                width,
                outputs // width,
                learned,
                len(layers),
                mapper_heads,
            )
            model = cls(mapping, config, tokenizer)
        load_strict(model, weights.items(), source)
        return model

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.gpt.device

    def soft_prompts(self, features: Tensor) -> Tensor:
        """Maps embeddings (R, D) of any length to soft prompts (R, tokens, width)."""
        return self.mapping_network(nn.functional.normalize(features, dim=1))

    @torch.inference_mode()
    def generate(
        self,
        features: Tensor,
        entities: Sequence[Sequence[str]],
        prompting: Prompting | None = None,
        *,
        compat: Compat = "fixed",
    ) -> ViecapOutput:
        """Generates captions of regions.

        Args:
            features: Region embeddings (R, D) of any length.
            entities: Entity names per region, see :func:`choose_entities`.
            prompting: Prompts and search; None takes the published ones.
            compat: ``reference`` pads shorter hard prompts on the right with "!" and
                lets the model read it, so that captions depend on what else is in the
                batch.
        """
        prompting = prompting or Prompting()
        if len(features) == 0:
            return ViecapOutput([], [])
        soft = self.soft_prompts(features) if prompting.soft else None
        hard: list[list[int]] = [[] for _ in entities]
        if prompting.hard:
            hard = [self.tokenizer.encode(hard_prompt(names)) for names in entities]
        if compat == "reference":
            longest = max(len(ids) for ids in hard)
            hard = [[*ids, *[_EXCLAMATION] * (longest - len(ids))] for ids in hard]
        prompts = self._prompts(soft, hard, prompting.soft_first)
        if prompting.beams > 1:
            ids = [
                self.gpt.beam_search(
                    prompt, stop_ids=self.stop_ids, steps=STEPS, beams=prompting.beams
                )
                for prompt in prompts
            ]
            return ViecapOutput([self.tokenizer.decode(row) for row in ids], ids)
        padded, valid = _pad_left(prompts)
        generated = self.gpt.greedy(
            padded,
            stop_ids=self.stop_ids,
            steps=STEPS,
            valid=valid,
            early_stop=compat == "fixed",
        )
        ids = [
            row[:length]
            for row, length in zip(
                generated.ids.tolist(), generated.lengths.tolist(), strict=True
            )
        ]
        return ViecapOutput([self.tokenizer.decode(row) for row in ids], ids, generated)

    def _prompts(
        self, soft: Tensor | None, hard: Sequence[Sequence[int]], soft_first: bool
    ) -> list[Tensor]:
        """Embeds the prompt of each region, (T_r, width) each."""
        prompts = []
        for row, ids in enumerate(hard):
            tokens = torch.tensor(ids, dtype=torch.int64, device=self.device)
            parts = [self.gpt.embed(tokens)]
            if soft is not None:
                parts = [soft[row], *parts] if soft_first else [*parts, soft[row]]
            prompts.append(torch.cat(parts))
        return prompts

    def perplexity(self, text: str) -> float:
        """Returns the perplexity of a caption to the GPT-2 alone; NaN for one token.

        The reference returns it as a score, though lower is better.
        """
        return self.gpt.perplexity(self.tokenizer.encode(text))


def _pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Pads prompts to one length; the mask is None where all are of that length."""
    longest = max(len(prompt) for prompt in prompts)
    padded = torch.stack(
        [nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prompts]
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=padded.device)
    places = torch.arange(longest, device=padded.device).flip(0)
    valid = places < lengths[:, None]
    return padded, None if valid.all() else valid
