"""Decoding with transformers' GPT-2: prompts as embeddings in, tokens out, batched.

Parameter names are those of the published state dicts. The loops are ours, because
``generate`` keeps the scores of the whole vocabulary for every step, which takes 1.5 GB
for 256 captions, and has no beam search by mean probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.system import assets

_CONSTANTS = (".attn.bias", ".attn.masked_bias")
"""Buffers that older versions of transformers saved beside the weights."""


@dataclass(frozen=True)
class Gpt2Config:
    """Sizes of a GPT-2.

    Attributes:
        width: Number of channels.
        layers: Number of blocks.
        heads: Attention heads per block; divides the channels.
        positions: Maximum number of tokens.
        vocabulary: Number of token ids.
    """

    width: int = 768
    layers: int = 4
    heads: int = 4
    positions: int = 1024
    vocabulary: int = 50_257


@dataclass(frozen=True)
class Generated:
    """Captions as tokens.

    Attributes:
        ids: Token ids, int64 (R, T); those behind a row's stop token mean nothing,
            except with ``early_stop`` off.
        log_probabilities: Log-probabilities of the tokens, float32 (R, T).
        lengths: Number of tokens up to the stop token, inclusive, int64 (R,); T where
            there is none.
    """

    ids: Tensor
    log_probabilities: Tensor
    lengths: Tensor

    def confidence(self) -> Tensor:
        """Returns the mean token probability up to the stop token, float32 (R,)."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        inside = places < self.lengths[:, None]
        return (self.log_probabilities.exp() * inside).sum(dim=1) / self.lengths

    def reference_score(self) -> Tensor:
        """Returns the product of all token probabilities, float64 (R,).

        It goes on behind the stop token, as the published detection scores do, so that
        it equals the reference's only with ``early_stop`` off.
        """
        return self.log_probabilities.double().sum(dim=1).exp()


class LanguageModel(nn.Module):
    """A GPT-2 whose output layer shares the token embeddings.

    Attributes:
        config: Sizes of the GPT-2.
        transformer: A ``transformers.GPT2Model``.
    """

    def __init__(self, config: Gpt2Config, dropout: float = 0.1) -> None:
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        self.config = config
        self.transformer = GPT2Model(
            GPT2Config(
                vocab_size=config.vocabulary,
                n_positions=config.positions,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                # The published activation in one kernel instead of eight.
                activation_function="gelu_pytorch_tanh",
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                resid_pdrop=dropout,
            )
        )

    @property
    def device(self) -> torch.device:
        """Returns the device of the weights."""
        return self.transformer.wte.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Embeds tokens, int64 (R, T), to (R, T, width)."""
        return self.transformer.wte(ids)

    def forward(
        self, embeddings: Tensor, cache: Any = None, valid: Tensor | None = None
    ) -> Tensor:
        """Runs the blocks over tokens, after those in the cache.

        Args:
            embeddings: The new tokens, (R, T, width).
            cache: A ``transformers.Cache`` of the tokens before; it is extended.
            valid: False for padding on the left, bool (R, all tokens so far); None if
                there is no padding.

        Returns:
            Hidden states after the last norm, (R, T, width).
        """
        positions = None
        if valid is not None:
            ordinals = valid.cumsum(dim=1).sub(1).clamp_min(0)
            positions = ordinals[:, -embeddings.shape[1] :]
        # By position: versions of transformers name the cache differently.
        return self.transformer(
            None,
            cache,
            inputs_embeds=embeddings,
            attention_mask=valid,
            position_ids=positions,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: Tensor, vocabulary: int | None = None) -> Tensor:
        """Scores the ids below ``vocabulary`` (None: all), (..., ids)."""
        return hidden @ self.transformer.wte.weight[:vocabulary].T

    @torch.inference_mode()
    def greedy(
        self,
        prompts: Tensor,
        *,
        stop_ids: Sequence[int],
        steps: int,
        valid: Tensor | None = None,
        early_stop: bool = True,
        vocabulary: int | None = None,
    ) -> Generated:
        """Continues prompts with the most likely tokens.

        Args:
            prompts: Embeddings of the prompts, (R, T, width).
            stop_ids: Tokens that end a caption.
            steps: Maximum number of tokens.
            valid: False for padding on the left, bool (R, T); None without padding.
            early_stop: Whether to stop when every row has ended; if false, all steps
                are taken, as in the reference.
            vocabulary: Number of ids to choose from, the first ones; None allows all.
        """
        cache = self._cache()
        stops = torch.tensor(stop_ids, device=prompts.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
        chosen, scores = [], []
        embeddings = prompts
        for _ in range(self._steps(prompts.shape[1], steps)):
            logits = self.logits(self(embeddings, cache, valid)[:, -1], vocabulary)
            logits = logits.float()
            # The first of equal logits, and of NaNs, on every device.
            top, ids = logits.max(dim=1)
            chosen.append(ids)
            scores.append(top - logits.logsumexp(dim=1))
            ended |= torch.isin(ids, stops)
            if early_stop and ended.all():
                break
            embeddings = self.embed(ids)[:, None]
            if valid is not None:
                valid = nn.functional.pad(valid, (0, 1), value=True)
        all_ids = torch.stack(chosen, dim=1)
        is_stop = torch.isin(all_ids, stops)
        first = is_stop.int().argmax(dim=1) + 1
        lengths = torch.where(is_stop.any(dim=1), first, all_ids.shape[1])
        return Generated(all_ids, torch.stack(scores, dim=1), lengths)

    @torch.inference_mode()
    def beam_search(
        self, prompt: Tensor, *, stop_ids: Sequence[int], steps: int, beams: int
    ) -> list[int]:
        """Finds the continuation with the highest mean log-probability per token.

        Args:
            prompt: Embeddings of one prompt, (T, width).
            stop_ids: Tokens that end a caption.
            steps: Maximum number of tokens.
            beams: Number of continuations that are followed in parallel.

        Returns:
            Token ids, the stop token included.
        """
        cache = self._cache()
        stops = torch.tensor(stop_ids, device=prompt.device)
        hidden = self(prompt[None], cache)[:, -1]
        first = self.logits(hidden).float().log_softmax(dim=1)
        sums, ids = first[0].topk(beams)
        cache.batch_repeat_interleave(beams)
        tokens, lengths = ids[:, None], torch.ones_like(sums)
        stopped = torch.isin(ids, stops)
        for _ in range(self._steps(len(prompt), steps) - 1):
            if stopped.all():
                break
            hidden = self(self.embed(ids)[:, None], cache)[:, -1]
            added = self.logits(hidden).float().log_softmax(dim=1)
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
            cache.reorder_cache(source)
            stopped = stopped | torch.isin(ids, stops)
        winner = int((sums / lengths).argmax())
        return tokens[winner, : int(lengths[winner])].tolist()

    @torch.inference_mode()
    def perplexity(self, ids: Sequence[int]) -> float:
        """Returns the perplexity of a text without a prompt; NaN for a single token."""
        row = torch.tensor([ids], device=self.device)
        logits = self.logits(self(self.embed(row)))[0, :-1]
        return float(nn.functional.cross_entropy(logits.float(), row[0, 1:]).exp())

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.transformer.config)

    def _steps(self, prompt: int, steps: int) -> int:
        """Returns how many tokens fit after a prompt; the last one is never read."""
        return min(steps, self.config.positions + 1 - prompt)


def read_gpt2(
    state: Mapping[str, Tensor], prefix: str, heads: int, source: str
) -> tuple[Gpt2Config, dict[str, Tensor]]:
    """Reads the sizes of a GPT-2 off a published state dict.

    Args:
        state: Weights by their published names.
        prefix: Prefix of the names of the GPT-2.
        heads: Attention heads per block, the one size that no weight tells.
        source: Source of the state dict, for messages.

    Returns:
        The sizes, and the weights without the shared output layer and constants.

    Raises:
        WeightsError: If weights are missing or don't fit each other.
    """
    weights = {
        name: value for name, value in state.items() if not name.endswith(_CONSTANTS)
    }
    head = weights.pop(f"{prefix}.lm_head.weight", None)
    tokens = weights.get(f"{prefix}.transformer.wte.weight")
    positions = weights.get(f"{prefix}.transformer.wpe.weight")
    if tokens is None or positions is None or tokens.ndim != 2:
        raise WeightsError(
            f"{source} is no decoder of this kind ({sorted(state)[:4]} ...); give a "
            f"state dict with {prefix}.transformer.*"
        )
    # NaN is not equal to itself; the loader says that there is nothing else.
    same = head is None or torch.equal(head, tokens) or bool(tokens.isnan().all())
    if not same:
        raise WeightsError(
            f"{source}: {prefix}.lm_head.weight differs from the token embeddings, but "
            "published decoders share them"
        )
    vocabulary, width = tokens.shape
    if heads < 1 or width % heads:
        raise WeightsError(
            f"{source} has {width} channels, which {heads} heads cannot split; give "
            "heads in the configuration"
        )
    blocks = f"{prefix}.transformer.h."
    places = {n.removeprefix(blocks).split(".")[0] for n in weights if blocks in n}
    return Gpt2Config(width, len(places), heads, len(positions), vocabulary), weights


def load_gpt2_tokenizer(source: str | Path | None = None) -> Any:
    """Loads GPT-2's tokenizer, a ``transformers.GPT2Tokenizer``.

    Args:
        source: A hub repository, or a folder with ``vocab.json`` and ``merges.txt``;
            None fetches the published files once.

    Raises:
        WeightsError: If there is no such tokenizer.
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
