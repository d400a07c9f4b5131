"""The DeCap decoder: one embedding in, one caption out, many at a time.

A GPT-2 with four blocks reads a single prefix token, which is the region's embedding
through a linear layer, and writes CLIP tokens (DeCap, arXiv 2303.03032).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Generated,
    Gpt2Config,
    LanguageModel,
    read_gpt2,
)
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import load_strict, read_tensors

STEPS = 30
"""Tokens per caption, the start token included."""


class PrefixDecoder(nn.Module):
    """Generates captions from region embeddings.

    Attributes:
        config: Sizes of the GPT-2.
        prefix_width: Number of channels of the region embeddings.
    """

    def __init__(
        self, prefix_width: int, config: Gpt2Config | None = None, dropout: float = 0.1
    ) -> None:
        """Makes a decoder with random weights.

        Args:
            prefix_width: Number of channels of the region embeddings.
            config: Sizes of the GPT-2; None takes the published ones.
            dropout: Dropout probability in training.
        """
        super().__init__()
        config = config or Gpt2Config()
        self.decoder = LanguageModel(config, dropout)
        # Under the names of the published state dicts.
        layers = nn.Sequential(nn.Linear(prefix_width, config.width))
        self.clip_project = nn.Sequential(OrderedDict(model=layers))
        self.config = config
        self.prefix_width = prefix_width

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        heads: int = 4,
        source: str = "the DeCap decoder",
    ) -> PrefixDecoder:
        """Builds the decoder that a published state dict belongs to, strictly.

        Args:
            state: ``decoder.transformer.*``, ``clip_project.model.0.*`` and, where
                stored, ``decoder.lm_head.weight``, which must be the token embeddings.
            heads: Attention heads per block; the one size that no weight tells.
            source: Source of the state dict, for messages.

        Raises:
            WeightsError: If a name is missing, unknown or of another shape.
        """
        config, weights = read_gpt2(state, "decoder", heads, source)
        prefix = weights.get("clip_project.model.0.weight")
        if prefix is None or prefix.ndim != 2:
            raise WeightsError(f"{source} has no clip_project.model.0.weight")
        with torch.device("meta"):
            model = cls(prefix.shape[1], config)
        load_strict(model, weights.items(), source)
        return model

    @classmethod
    def load(cls, path: str | Path, heads: int = 4) -> PrefixDecoder:
        """Loads a published ``.pt`` file.

        Raises:
            WeightsError: If it cannot be read or is something else.
        """
        return cls.from_state_dict(dict(read_tensors(Path(path))), heads, str(path))

    @property
    def device(self) -> torch.device:
        """Returns the device of the weights."""
        return self.decoder.device

    def published_state_dict(self) -> dict[str, Tensor]:
        """Returns weights under their published names, the shared output layer too."""
        state = dict(self.state_dict())
        state["decoder.lm_head.weight"] = state["decoder.transformer.wte.weight"]
        return state

    def logits(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """Scores every next token, given all tokens before it.

        Args:
            prefix: Region embeddings, (R, prefix_width).
            ids: Token ids, int64 (R, T); the last one is not read.

        Returns:
            (R, T, vocabulary); place t scores ``ids[:, t]``.
        """
        first = self.clip_project(prefix)[:, None]
        embeddings = torch.cat([first, self.decoder.embed(ids[:, :-1])], dim=1)
        return self.decoder.logits(self.decoder(embeddings))

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
        """Generates greedy captions of all rows at once.

        Args:
            prefix: Region embeddings, (R, prefix_width).
            end_id: Id of the end token.
            steps: Maximum number of tokens.
            early_stop: Whether to stop when every row has ended, see
                :meth:`~.gpt2.LanguageModel.greedy`.
            vocabulary: Number of ids to choose from, see
                :meth:`~.gpt2.LanguageModel.greedy`.

        Raises:
            WeightsError: If the embeddings have another width.
        """
        if prefix.ndim != 2 or prefix.shape[1] != self.prefix_width:
            raise WeightsError(
                f"region embeddings are {tuple(prefix.shape)}, the decoder reads "
                f"{self.prefix_width} channels; use the decoder of this backbone"
            )
        prefix = prefix.to(self.decoder.transformer.wte.weight)
        return self.decoder.greedy(
            self.clip_project(prefix)[:, None],
            stop_ids=(end_id,),
            steps=steps,
            early_stop=early_stop,
            vocabulary=vocabulary,
        )
