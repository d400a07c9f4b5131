"""The ViECap decoder: a soft prompt from the embedding and a hard one of entity names.

ViECap (arXiv 2307.16525) puts ten tokens mapped from the region's embedding before, or
after, the tokens of "There are dog, ball in image.", and lets a fine-tuned GPT-2 go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.aggregation import Compat
from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Gpt2Config,
    KeyValueCache,
    LanguageModel,
)
from fiftyone_regioncap.core.errors import WeightsError

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
"""What the published ViECap models may name; see :func:`embed_entities`."""

_EXCLAMATION = 0


@dataclass(frozen=True)
class Prompting:
    """What the decoder is given.

    Attributes:
        soft: whether to give the soft prompt.
        hard: whether to give the hard prompt.
        soft_first: which of the two comes first.
        top_k: entities at most.
        threshold: probability below which no more entities are taken.
        beams: 1 is greedy.
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
    """The vectors that entities are retrieved by.

    Args:
        names: of the entities.
        encode: texts to vectors (n, D) of the space of the region embeddings.

    Returns:
        float32 (E, D), unit rows: the mean over templates of unit vectors.
    """
    texts = [template.format(name) for name in names for template in TEMPLATES]
    vectors = nn.functional.normalize(encode(texts), dim=1)
    means = vectors.unflatten(0, (len(names), len(TEMPLATES))).mean(dim=1)
    return nn.functional.normalize(means, dim=1)


def entity_probabilities(features: Tensor, entities: Tensor) -> Tensor:
    """How likely each entity is in each region.

    Args:
        features: (R, D).
        entities: (E, D), unit rows.

    Returns:
        (R, E), rows sum to 1.
    """
    directions = nn.functional.normalize(features, dim=1)
    return torch.softmax(directions @ entities.T / TEMPERATURE, dim=1)


def choose_entities(
    probabilities: Tensor, names: Sequence[str], *, top_k: int, threshold: float
) -> list[list[str]]:
    """The likeliest entities of each region, most likely first.

    Args:
        probabilities: (R, E).
        names: of the E entities.
        top_k: entities at most.
        threshold: the first probability below it ends the list.
    """
    top, places = probabilities.topk(min(top_k, len(names)), dim=1)
    chosen = []
    for row, numbers in zip(top.tolist(), places.tolist(), strict=True):
        kept = next((i for i, p in enumerate(row) if p < threshold), len(row))
        chosen.append([names[number] for number in numbers[:kept]])
    return chosen


def hard_prompt(entities: Sequence[str]) -> str:
    """The sentence that names the entities."""
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


class _MapperMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class _MapperLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _MapperAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _MapperMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _MapperLayers(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MapperLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MappingNetwork(nn.Module):
    """A region embedding to the tokens of the soft prompt."""

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
            feature_width: channels of the region embeddings.
            width: channels of the GPT-2.
            tokens: that the embedding becomes.
            learned: constant tokens behind them; what the layers make of those is the
                soft prompt.
            layers: of the transformer.
            heads: per layer.
        """
        super().__init__()
        self.linear = nn.Linear(feature_width, tokens * width)
        self.prefix_const = nn.Parameter(torch.randn(learned, width))
        self.transformer = _MapperLayers(width, layers, heads)

    def forward(self, features: Tensor) -> Tensor:
        """Unit features (R, D) to soft prompts (R, learned, width)."""
        learned, width = self.prefix_const.shape
        tokens = self.linear(features).unflatten(1, (-1, width))
        constant = self.prefix_const.expand(len(features), -1, -1)
        return self.transformer(torch.cat([tokens, constant], dim=1))[:, -learned:]


@dataclass(frozen=True)
class ViecapOutput:
    """Captions.

    Attributes:
        texts: one per region.
        ids: the tokens of each, the stop token included.
        probabilities: of those tokens; None from beams.
        all_ids: int64 (R, T), every token generated until the last caption ended (all
            steps in the reference's way); None from beams.
    """

    texts: list[str]
    ids: list[list[int]]
    probabilities: list[list[float]] | None = None
    all_ids: Tensor | None = None

    def confidence(self, row: int) -> float | None:
        """Mean token probability of a caption, in [0, 1]; None from beams."""
        if self.probabilities is None:
            return None
        return math.fsum(self.probabilities[row]) / len(self.probabilities[row])


class ViecapDecoder(nn.Module):
    """Region embeddings and entity names to captions.

    Attributes:
        tokenizer: a ``transformers.GPT2Tokenizer``.
        stop_ids: of the tokens that end a caption, "." and " .".
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
    ) -> ViecapDecoder:
        """Builds the decoder that a published state dict is of, strictly.

        Args:
            state: ``gpt.*`` and ``mapping_network.*``.
            tokenizer: a ``transformers.GPT2Tokenizer``.
            heads: of a block of the GPT-2.
            mapper_heads: of a layer of the mapping network.

        Raises:
            WeightsError: when a name is missing, unknown or of another shape.
        """
        weights = {
            name: value
            for name, value in state.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
        head = weights.pop("gpt.lm_head.weight", None)
        try:
            vocabulary, width = weights["gpt.transformer.wte.weight"].shape
            positions = len(weights["gpt.transformer.wpe.weight"])
            outputs, feature_width = weights["mapping_network.linear.weight"].shape
            learned = len(weights["mapping_network.prefix_const"])
        except KeyError as error:
            raise WeightsError(
                f"these are not a ViECap decoder's weights: {error} is missing"
            ) from error
        if head is not None and not torch.equal(
            head, weights["gpt.transformer.wte.weight"]
        ):
            raise WeightsError(
                "gpt.lm_head.weight differs from the token embeddings, but published "
                "decoders share them"
            )
        blocks = len({name.split(".")[3] for name in weights if ".h." in name})
        layers = len({name.split(".")[3] for name in weights if ".layers." in name})
        config = Gpt2Config(width, blocks, heads, positions, vocabulary)
        with torch.device("meta"):
            mapping = MappingNetwork(
                feature_width, width, outputs // width, learned, layers, mapper_heads
            )
            model = cls(mapping, config, tokenizer)
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"not a ViECap decoder's weights: {error}") from error
        return model.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.gpt.transformer.wte.weight.device

    def soft_prompts(self, features: Tensor) -> Tensor:
        """Features (R, D) of any length to (R, tokens, width)."""
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
        """Captions of regions.

        Args:
            features: (R, D) of any length.
            entities: of each region, see :func:`choose_entities`.
            prompting: what is given, and how to search.
            compat: ``reference`` pads shorter hard prompts on the right with "!" and
                lets the model read it, so that captions depend on what else is in the
                batch.
        """
        prompting = prompting or Prompting()
        if len(features) == 0:
            return ViecapOutput([], [], [])
        soft = self.soft_prompts(features) if prompting.soft else None
        hard: list[list[int]] = [[] for _ in entities]
        if prompting.hard:
            hard = [self.tokenizer.encode(hard_prompt(names)) for names in entities]
        if compat == "reference":
            longest = max(len(ids) for ids in hard)
            hard = [[*ids, *[_EXCLAMATION] * (longest - len(ids))] for ids in hard]
        prompts = self._prompts(soft, hard, prompting.soft_first)
        if prompting.beams > 1:
            found = [self._beam_search(prompt, prompting.beams) for prompt in prompts]
            return ViecapOutput([self.tokenizer.decode(ids) for ids in found], found)
        return self._greedy(prompts, early_stop=compat == "fixed")

    def _prompts(
        self, soft: Tensor | None, hard: Sequence[Sequence[int]], soft_first: bool
    ) -> list[Tensor]:
        """Embeddings of each region's prompt, (T_r, width) each."""
        table = self.gpt.transformer.wte.weight
        prompts = []
        for row, ids in enumerate(hard):
            parts = [table[torch.tensor(ids, dtype=torch.int64, device=table.device)]]
            if soft is not None:
                parts = [soft[row], *parts] if soft_first else [*parts, soft[row]]
            prompts.append(torch.cat(parts))
        return prompts

    def _greedy(self, prompts: Sequence[Tensor], early_stop: bool) -> ViecapOutput:
        model = self.gpt.transformer
        longest = max(len(prompt) for prompt in prompts)
        embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        valid = torch.zeros(embeddings.shape[:2], dtype=torch.bool).to(
            embeddings.device
        )
        for row, prompt in enumerate(prompts):
            embeddings[row, longest - len(prompt) :] = prompt
            valid[row, longest - len(prompt) :] = True
        steps = min(STEPS, model.config.positions - longest)
        cache = KeyValueCache(capacity=longest + steps)
        padding = None if valid.all() else valid
        chosen, scores = [], []
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=embeddings.device)
        for _ in range(steps):
            logits = model.logits(model(embeddings, cache, padding)[:, -1]).float()
            top, ids = logits.max(dim=1)
            chosen.append(ids)
            scores.append((top - logits.logsumexp(dim=1)).exp())
            ended |= self._stops(ids)
            if early_stop and ended.all():
                break
            embeddings = model.wte(ids)[:, None]
            if padding is not None:
                padding = nn.functional.pad(padding, (0, 1), value=True)
        all_ids = torch.stack(chosen, dim=1)
        kept, probabilities = [], []
        for row, chances in zip(
            all_ids.tolist(), torch.stack(scores, dim=1).tolist(), strict=True
        ):
            stop = next((i for i, n in enumerate(row) if n in self.stop_ids), len(row))
            kept.append(row[: stop + 1])
            probabilities.append(chances[: stop + 1])
        texts = [self.tokenizer.decode(row) for row in kept]
        return ViecapOutput(texts, kept, probabilities, all_ids)

    def _beam_search(self, prompt: Tensor, beams: int) -> list[int]:
        """The likeliest caption per token of some that are followed in parallel."""
        model = self.gpt.transformer
        steps = min(STEPS, model.config.positions - len(prompt))
        cache = KeyValueCache(capacity=len(prompt) + steps)
        hidden = model(prompt[None], cache)[:, -1]
        first = model.logits(hidden).float().log_softmax(dim=1)
        sums, ids = first[0].topk(beams)
        cache.keep(torch.zeros(beams, dtype=torch.int64, device=ids.device))
        tokens, lengths = ids[:, None], torch.ones_like(sums)
        stopped = self._stops(ids)
        for _ in range(steps - 1):
            if stopped.all():
                break
            hidden = model(model.wte(ids)[:, None], cache)[:, -1]
            added = model.logits(hidden).float().log_softmax(dim=1)
            # A beam that has ended goes on as itself alone, without cost.
            added[stopped] = -torch.inf
            added[stopped, 0] = 0
            lengths = lengths + ~stopped
            means = (sums[:, None] + added) / lengths[:, None]
            best, places = means.flatten().topk(beams)
            source, ids = places // added.shape[1], places % added.shape[1]
            lengths, stopped = lengths[source], stopped[source]
            sums = best * lengths
            tokens = torch.cat([tokens[source], ids[:, None]], dim=1)
            cache.keep(source)
            stopped = stopped | self._stops(ids)
        winner = int((sums / lengths).argmax())
        return tokens[winner, : int(lengths[winner])].tolist()

    def _stops(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.stop_ids, device=ids.device))

    @torch.inference_mode()
    def perplexity(self, text: str) -> float:
        """How surprising a caption is to the GPT-2 alone; NaN for a single token.

        The reference gives it out as a score, though lower is better.
        """
        model = self.gpt.transformer
        ids = torch.tensor(
            [self.tokenizer.encode(text)], device=model.wte.weight.device
        )
        logits = model.logits(model(model.wte(ids)))[:, :-1]
        return float(nn.functional.cross_entropy(logits[0].float(), ids[0, 1:]).exp())
