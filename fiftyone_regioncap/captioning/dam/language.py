"""Llama decoding over a key-value cache with one row per text.

The weights live in transformers' own modules; the passes over them are ours, because
rows here have lengths of their own, come and go while others go on, and are decoded
through CUDA graphs: the cache must be one block of memory that never moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
)

from fiftyone_regioncap.models.sampling import on_device

LENGTH_STEP = 256
"""Attention while decoding covers the longest row, rounded up to this many tokens: few
shapes, so that CUDA graphs are reused."""


class Cache:
    """Stores keys and values, one row per text.

    Args:
        config: Configuration of the language model.
        rows: Number of texts held at once.
        length: Maximum number of tokens per text.
        device: Torch device of the cache.
        dtype: Numeric type of keys and values.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        length = _rounded(length)
        shape = (
            config.num_hidden_layers,
            rows,
            config.num_key_value_heads,
            length,
            config.head_dim,
        )
        # Zeros, because masked positions still take part as 0 times their value.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def rows(self) -> int:
        """Returns the number of rows."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Returns the number of tokens per row."""
        return self.keys.shape[3]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first tokens of one row over another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


def row_bytes(config: LlamaConfig, length: int, dtype: torch.dtype) -> int:
    """Returns the memory of a row of the cache in bytes."""
    values = config.num_key_value_heads * config.head_dim * _rounded(length)
    return 2 * config.num_hidden_layers * values * dtype.itemsize


def _rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


class Decoder:
    """Prefill and decode steps of one model over one cache.

    Args:
        llm: Language model with its weights loaded.
        cache: Cache made with the same configuration.
        graphs: Whether decode steps are captured as CUDA graphs.
    """

    def __init__(self, llm: LlamaForCausalLM, cache: Cache, graphs: bool) -> None:
        self._llm = llm
        self._heads = llm.config.num_key_value_heads
        self._groups = llm.config.num_attention_heads // self._heads
        self._width = llm.config.head_dim
        self.cache = cache
        self._graphs: dict[tuple[int, int], _Graph] | None = {} if graphs else None
        # The graphs run one after the other, so that they can share their memory.
        self.pool = torch.cuda.graph_pool_handle() if graphs else None

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, rows: Sequence[int]) -> Tensor:
        """Reads prompts of one length into rows of the cache.

        Prompts of different lengths come in different calls, so that nothing is padded
        and a prompt is computed alike whatever is read with it.

        Args:
            embeddings: Prompt embeddings, (B, T, D).
            rows: Indices of B different rows.

        Returns:
            Logits of the first new token, float32 (B, V).
        """
        model = self._llm.model
        length = embeddings.shape[1]
        positions = torch.arange(length, device=embeddings.device)[None]
        rotation = model.rotary_emb(embeddings, positions)
        targets = on_device(rows, torch.int64, embeddings.device)
        x = embeddings
        for number, layer in enumerate(model.layers):
            query, key, value = self._project(layer, x, rotation)
            self.cache.keys[number, targets, :, :length] = key
            self.cache.values[number, targets, :, :length] = value
            attended = scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self._groups > 1
            )
            x = self._finish(layer, x, attended.transpose(1, 2).flatten(2))
        return self._logits(x[:, -1])

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Adds one token to each of the first rows.

        Args:
            tokens: Token ids for rows 0 to B - 1, int64 (B,).
            positions: Position of each token, int64 (B,); all earlier positions are
                attended to.
            longest: Greatest of the positions, known without synchronizing the device.

        Returns:
            Logits of the tokens after them, float32 (B, V); overwritten by the next
            call where CUDA graphs are used.
        """
        span = min(_rounded(longest + 1), self.cache.length)
        if self._graphs is None:
            return self._step(tokens, positions, span)
        graph = self._graphs.get((len(tokens), span))
        if graph is None:
            graph = _Graph(self, tokens, positions, span)
            self._graphs[len(tokens), span] = graph
        return graph.replay(tokens, positions)

    def _step(self, tokens: Tensor, positions: Tensor, span: int) -> Tensor:
        model = self._llm.model
        x = model.embed_tokens(tokens)[:, None]
        rotation = model.rotary_emb(x, positions[:, None])
        rows = torch.arange(len(tokens), device=x.device)
        visible = torch.arange(span, device=x.device) <= positions[:, None]
        # Added to the scores: made once, not in every layer.
        mask = torch.zeros_like(visible, dtype=x.dtype)
        mask = mask.masked_fill(~visible, -torch.inf)[:, None, None, :]
        for number, layer in enumerate(model.layers):
            query, key, value = self._project(layer, x, rotation)
            keys = self.cache.keys[number, : len(tokens)]
            values = self.cache.values[number, : len(tokens)]
            keys[rows, :, positions] = key[:, :, 0]
            values[rows, :, positions] = value[:, :, 0]
            # Queries that share keys stand as if they were a sequence: no copies of
            # the keys for grouped-query attention.
            attended = scaled_dot_product_attention(
                query.reshape(-1, self._heads, self._groups, self._width),
                keys[:, :, :span],
                values[:, :, :span],
                attn_mask=mask,
            )
            x = self._finish(layer, x, attended.reshape(len(tokens), 1, -1))
        return self._logits(x[:, -1])

    def _project(
        self, layer: LlamaDecoderLayer, x: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns query, key and value of (B, T, D), each (B, heads, T, width)."""
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        query, key, value = (
            linear(normed).unflatten(-1, (-1, self._width)).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        return query, key, value

    @staticmethod
    def _finish(layer: LlamaDecoderLayer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(attended)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def _logits(self, x: Tensor) -> Tensor:
        return self._llm.lm_head(self._llm.model.norm(x)).float()


class _Graph:
    """A decode step captured as a CUDA graph."""

    def __init__(
        self, decoder: Decoder, tokens: Tensor, positions: Tensor, span: int
    ) -> None:
        self._tokens = tokens.clone()
        self._positions = positions.clone()
        # Streams and graphs belong to the current device, which is each thread's own.
        with torch.cuda.device(tokens.device):
            self._capture(decoder, span)

    def _capture(self, decoder: Decoder, span: int) -> None:
        # The warm-up writes the same values that the replay writes again.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decoder._step(self._tokens, self._positions, span)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on pinning memory for the next clips meanwhile.
        with torch.cuda.graph(
            self._graph, pool=decoder.pool, capture_error_mode="thread_local"
        ):
            self._logits = decoder._step(self._tokens, self._positions, span)

    def replay(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        with torch.cuda.device(tokens.device):
            self._graph.replay()
        return self._logits
