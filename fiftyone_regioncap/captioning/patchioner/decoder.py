"""The DeCap decoder: one embedding in, one caption out, many at a time.

A GPT-2 with four blocks reads a single prefix token, which is the region's embedding
through a linear layer, and writes CLIP tokens (DeCap, arXiv 2303.03032).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Gpt2Config,
    KeyValueCache,
    LanguageModel,
)
from fiftyone_regioncap.core.errors import WeightsError

STEPS = 30
"""Tokens per caption, the start token included."""


@dataclass(frozen=True)
class Generated:
    """Captions as tokens.

    Attributes:
        ids: int64 (R, T); after a row's end token, only the reference's way goes on.
        log_probabilities: float32 (R, T), of the chosen tokens.
        lengths: int64 (R,), tokens up to the end token, inclusive; T where none came.
    """

    ids: Tensor
    log_probabilities: Tensor
    lengths: Tensor

    def confidence(self) -> Tensor:
        """Mean token probability up to the end token, float32 (R,) in [0, 1]."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        inside = places < self.lengths[:, None]
        return (self.log_probabilities.exp() * inside).sum(dim=1) / self.lengths

    def reference_score(self) -> Tensor:
        """The product of all token probabilities, float64 (R,).

        It goes on behind the end token, as the published detection scores do; it is
        the reference's only after :meth:`PrefixDecoder.generate` with ``early_stop``
        off.
        """
        return self.log_probabilities.double().sum(dim=1).exp()


class _PrefixLayers(nn.Module):
    """The linear layers between embedding and decoder; published ones have one."""

    def __init__(self, prefix: int, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(prefix, width))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.model(embeddings)


class PrefixDecoder(nn.Module):
    """Region embeddings to captions.

    Attributes:
        config: sizes of its GPT-2.
        prefix_width: channels of the region embeddings.
    """

    def __init__(
        self, prefix_width: int, config: Gpt2Config | None = None, dropout: float = 0.1
    ) -> None:
        """Makes a decoder with random weights.

        Args:
            prefix_width: channels of the region embeddings.
            config: None takes the published sizes.
            dropout: in training.
        """
        super().__init__()
        config = config or Gpt2Config()
        self.decoder = LanguageModel(config, dropout)
        self.clip_project = _PrefixLayers(prefix_width, config.width)
        self.config = config
        self.prefix_width = prefix_width

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], heads: int = 4
    ) -> PrefixDecoder:
        """Builds the decoder that a published state dict is of, strictly.

        Args:
            state: ``decoder.transformer.*``, ``clip_project.model.0.*`` and, where
                stored, ``decoder.lm_head.weight``, which must be the token embeddings.
            heads: of a block; the one size that no weight tells.

        Raises:
            WeightsError: when a name is missing, unknown or of another shape.
        """
        weights = dict(state)
        head = weights.pop("decoder.lm_head.weight", None)
        tokens = weights.get("decoder.transformer.wte.weight")
        positions = weights.get("decoder.transformer.wpe.weight")
        prefix = weights.get("clip_project.model.0.weight")
        if tokens is None or positions is None or prefix is None:
            raise WeightsError(
                f"these are not a DeCap decoder's weights ({sorted(state)[:4]} ...); "
                "give a state dict with decoder.transformer.* and clip_project.*"
            )
        if head is not None and not torch.equal(head, tokens):
            raise WeightsError(
                "decoder.lm_head.weight differs from the token embeddings, but "
                "published decoders share them"
            )
        layers = len({name.split(".")[3] for name in weights if ".h." in name})
        config = Gpt2Config(
            width=tokens.shape[1],
            layers=layers,
            heads=heads,
            positions=len(positions),
            vocabulary=len(tokens),
        )
        # Buffers that older versions of transformers saved; they hold constants.
        weights = {
            name: value
            for name, value in weights.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
        with torch.device("meta"):
            model = cls(prefix.shape[1], config)
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"not a DeCap decoder's weights: {error}") from error
        return model.float().eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str | Path, heads: int = 4) -> PrefixDecoder:
        """Loads a published ``.pt`` file.

        Raises:
            WeightsError: when it cannot be read or is something else.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise WeightsError(f"the decoder {path} cannot be read: {error}") from error
        try:
            return cls.from_state_dict(state, heads)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.transformer.wte.weight.device

    def published_state_dict(self) -> dict[str, Tensor]:
        """The weights under the published names, the shared output layer included."""
        state = dict(self.state_dict())
        state["decoder.lm_head.weight"] = state["decoder.transformer.wte.weight"]
        return state

    def logits(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """Scores of every next token, given all before it (for training and tests).

        Args:
            prefix: (R, prefix_width).
            ids: int64 (R, T); the last one is not read.

        Returns:
            (R, T, vocabulary); place t scores ``ids[:, t]``.
        """
        model = self.decoder.transformer
        first = self.clip_project(prefix)[:, None]
        embeddings = torch.cat([first, model.wte(ids[:, :-1])], dim=1)
        return model.logits(model(embeddings))

    @torch.inference_mode()
    def generate(
        self,
        prefix: Tensor,
        *,
        end_id: int,
        steps: int = STEPS,
        early_stop: bool = True,
        vocabulary: int | None = None,
    ) -> Generated:
        """Greedy captions of all rows at once.

        Args:
            prefix: (R, prefix_width).
            end_id: of the end token.
            steps: the most tokens.
            early_stop: stop when every row has ended; else all steps are taken, as the
                reference does.
            vocabulary: choose among the ids below this only; None means all.

        Raises:
            WeightsError: when the prefix has another width.
        """
        if prefix.ndim != 2 or prefix.shape[1] != self.prefix_width:
            raise WeightsError(
                f"region embeddings are {tuple(prefix.shape)}, the decoder reads "
                f"{self.prefix_width} channels; use the decoder of this backbone"
            )
        model = self.decoder.transformer
        steps = min(steps, self.config.positions)
        embeddings = self.clip_project(prefix.to(model.wte.weight))[:, None]
        cache = KeyValueCache(capacity=steps)
        chosen, scores = [], []
        ended = torch.zeros(len(prefix), dtype=torch.bool, device=embeddings.device)
        for _ in range(steps):
            hidden = model(embeddings, cache)[:, -1]
            logits = model.logits(hidden, vocabulary).float()
            # The first of equal logits, and of NaNs, on every device.
            top, ids = logits.max(dim=1)
            chosen.append(ids)
            scores.append(top - logits.logsumexp(dim=1))
            ended |= ids == end_id
            if early_stop and ended.all():
                break
            embeddings = model.wte(ids)[:, None]
        ids = torch.stack(chosen, dim=1)
        is_end = ids == end_id
        first_end = is_end.int().argmax(dim=1) + 1
        lengths = torch.where(is_end.any(dim=1), first_end, ids.shape[1])
        return Generated(ids, torch.stack(scores, dim=1), lengths)
