"""Continuous batching: rows of the cache are reused as answers end."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from fiftyone_regioncap.captioning.dam.language import Cache, Decoder
from fiftyone_regioncap.models.sampling import (
    GREEDY,
    Sampling,
    SamplingRows,
    choose,
    on_device,
    token_probability,
)


@dataclass(frozen=True)
class Request:
    """Represents a prompt to answer.

    Attributes:
        key: Caller's identifier, unique among the requests in flight.
        embeddings: Embeddings of the whole prompt, (T, D).
        max_new_tokens: Maximum number of tokens of the answer, 1 or more.
        sampling: Sampling settings.
        ignore_stop: Whether the answer continues past the end token.
    """

    key: Hashable
    embeddings: Tensor
    max_new_tokens: int
    sampling: Sampling = GREEDY
    ignore_stop: bool = False


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer as the model wrote it.

    Attributes:
        ids: Ids of the new tokens, including the end token if there is one.
        probabilities: The model's own probability of each new token, in [0, 1].
        ended: Whether the answer ended with the end token, not at the maximum length.
    """

    ids: list[int]
    probabilities: list[float]
    ended: bool


@dataclass(frozen=True)
class Event:
    """A new token of an answer.

    Attributes:
        key: Identifier of the request.
        token: Id of the token.
        answer: The whole answer, with its last token; None before that.
    """

    key: Hashable
    token: int
    answer: WrittenAnswer | None


@dataclass(eq=False)
class _Row:
    """A request in the batch."""

    request: Request
    uniforms: list[float] | None
    position: int
    chosen: int = 0
    done: bool = False
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _PendingTokens:
    """Tokens that the device may still be working on."""

    rows: list[_Row]
    tokens: Tensor
    probabilities: Tensor
    ready: torch.cuda.Event | None


class Engine:
    """Continuous batching over one model.

    :meth:`add` reads prompts into free rows, :meth:`step` adds a token to all rows; the
    caller does both in turn. On a GPU the tokens of a step are looked at while the next
    one runs, so that it never waits for Python; a row that has ended is noticed one
    step late, and that token is thrown away.

    Args:
        llm: Language model with its weights loaded.
        end_tokens: Ids of the tokens that end an answer.
        rows: Number of answers generated at once.
        prefill_tokens: Maximum number of prompt tokens per prefill pass; a single
            prompt may be longer.
        graphs: Whether decode steps are captured as CUDA graphs.
    """

    def __init__(
        self,
        llm: LlamaForCausalLM,
        end_tokens: frozenset[int],
        rows: int,
        *,
        prefill_tokens: int,
        graphs: bool,
    ) -> None:
        self._llm = llm
        self._end_tokens = end_tokens
        self._prefill_tokens = prefill_tokens
        self._graphs = graphs
        weight = llm.model.norm.weight
        self._device, self._dtype = weight.device, weight.dtype
        # Steps that run ahead of the tokens that are known.
        self._lag = 1 if self._device.type == "cuda" else 0
        # Few sizes where each has its own graph.
        self._round_up = graphs
        self._decoder: Decoder | None = None
        # The rows in use, by their number in the cache; None where one has ended.
        self._rows: list[_Row | None] = []
        self._sampling: SamplingRows | None = None
        self._rows_changed = True
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=self._device)
        self._positions = torch.zeros_like(self._tokens)
        self._pending: deque[_PendingTokens] = deque()

    @property
    def capacity(self) -> int:
        """Returns the number of rows."""
        return len(self._tokens)

    @property
    def free(self) -> int:
        """Returns the number of requests that may be added now."""
        return self.capacity - sum(row is not None for row in self._rows)

    @property
    def busy(self) -> bool:
        """Returns whether any answer is unfinished."""
        return bool(self._pending) or self.free < self.capacity

    def add(self, requests: Iterable[Request]) -> None:
        """Reads prompts and chooses their first tokens, which the next steps report.

        Args:
            requests: Requests to start, at most :attr:`free` of them.

        Raises:
            torch.OutOfMemoryError: If the cache for them doesn't fit; the engine is
                unusable then.
        """
        ordered = sorted(requests, key=lambda r: len(r.embeddings))
        if not ordered:
            return
        self._reserve(max(len(r.embeddings) + r.max_new_tokens for r in ordered) + 1)
        for length, group in groupby(ordered, key=lambda r: len(r.embeddings)):
            alike = list(group)
            count = max(self._prefill_tokens // length, 1)
            for start in range(0, len(alike), count):
                self._read(alike[start : start + count])

    def cancel(self, key: Hashable) -> None:
        """Ends an answer that nobody waits for any more."""
        for number, row in enumerate(self._rows):
            if row is not None and row.request.key == key:
                row.done = True
                self._rows[number] = None
                self._rows_changed = True

    def step(self) -> list[Event]:
        """Adds a token to every row.

        Returns:
            The tokens that are known by now, in the order they came.
        """
        launched = self._launch()
        events: list[Event] = []
        while len(self._pending) > (self._lag if launched else 0):
            events.extend(self._harvest(self._pending.popleft()))
        return events

    def _reserve(self, length: int) -> None:
        """Makes the cache long enough for the longest request."""
        cache = self._decoder.cache if self._decoder else None
        if cache is not None and cache.length >= length:
            return
        if not self.busy:
            # Nothing to keep: give the old block back before asking for a new one.
            self._decoder = cache = None
        grown = Cache(
            self._llm.config, self.capacity, length, self._device, self._dtype
        )
        if cache is not None:
            grown.keys[:, :, :, : cache.length] = cache.keys
            grown.values[:, :, :, : cache.length] = cache.values
        self._decoder = Decoder(self._llm, grown, self._graphs)

    def _read(self, requests: list[Request]) -> None:
        assert self._decoder is not None
        numbers = self._take(len(requests))
        embeddings = torch.stack([request.embeddings for request in requests])
        logits = self._decoder.prefill(embeddings.to(self._device), numbers)
        rows = []
        for number, request in zip(numbers, requests, strict=True):
            sampling = request.sampling
            draws = (
                None
                if sampling.greedy
                else sampling.uniforms(request.max_new_tokens).tolist()
            )
            row = _Row(request, draws, position=len(request.embeddings))
            self._rows[number] = row
            rows.append(row)
        self._rows_changed = True
        chosen = self._choose(logits, rows, self._settings(rows))
        where = on_device(numbers, torch.int64, self._device)
        self._tokens[where] = chosen
        self._positions[where] = embeddings.shape[1]

    def _take(self, count: int) -> list[int]:
        holes = [n for n, row in enumerate(self._rows) if row is None][:count]
        more = range(len(self._rows), len(self._rows) + count - len(holes))
        self._rows.extend(None for _ in more)
        return [*holes, *more]

    def _launch(self) -> bool:
        """Starts a step over all rows; says whether there were any."""
        self._compact()
        rows = [row for row in self._rows if row is not None]
        if not rows:
            return False
        if all(row.chosen >= row.request.max_new_tokens for row in rows):
            return False
        assert self._decoder is not None
        if self._rows_changed:
            self._sampling, self._rows_changed = self._settings(rows), False
        count = self._batch(len(rows))
        logits = self._decoder.step(
            self._tokens[:count],
            self._positions[:count],
            max(row.position for row in rows),
        )[: len(rows)]
        self._tokens[: len(rows)] = self._choose(logits, rows, self._sampling)
        self._positions[: len(rows)] += 1
        for row in rows:
            row.position += 1
        return True

    def _compact(self) -> None:
        """Moves the last rows into the holes, so that those in use are the first."""
        self._trim()
        hole = 0
        while hole < len(self._rows):
            if self._rows[hole] is None:
                moved = self._rows.pop()
                last = len(self._rows)
                assert moved is not None and self._decoder is not None
                self._decoder.cache.move(last, hole, moved.position)
                self._tokens[hole] = self._tokens[last]
                self._positions[hole] = self._positions[last]
                self._rows[hole] = moved
                self._rows_changed = True
                self._trim()
            hole += 1

    def _trim(self) -> None:
        while self._rows and self._rows[-1] is None:
            self._rows.pop()

    def _batch(self, count: int) -> int:
        """Returns the number of rows to compute for a number of answers."""
        if not self._round_up:
            return count
        return min(1 << (count - 1).bit_length(), self.capacity)

    def _settings(self, rows: list[_Row]) -> SamplingRows | None:
        return SamplingRows.of(
            [row.request.sampling for row in rows],
            self._llm.config.vocab_size,
            self._device,
        )

    def _choose(
        self, logits: Tensor, rows: list[_Row], settings: SamplingRows | None
    ) -> Tensor:
        """Chooses the next token of each row and notes that it will be known later."""
        uniforms = None
        if settings is not None:
            numbers = [
                0.0
                if row.uniforms is None
                else row.uniforms[min(row.chosen, len(row.uniforms) - 1)]
                for row in rows
            ]
            uniforms = on_device(numbers, torch.float32, self._device)
        tokens = choose(logits, settings, uniforms)
        probabilities = token_probability(logits, tokens)
        for row in rows:
            row.chosen += 1
        self._pending.append(self._to_host(rows, tokens, probabilities))
        return tokens

    def _to_host(
        self, rows: list[_Row], tokens: Tensor, probabilities: Tensor
    ) -> _PendingTokens:
        if self._device.type != "cuda":
            return _PendingTokens(rows, tokens, probabilities, None)
        pinned = [
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(
                x, non_blocking=True
            )
            for x in (tokens, probabilities)
        ]
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(self._device))
        return _PendingTokens(rows, pinned[0], pinned[1], ready)

    def _harvest(self, pending: _PendingTokens) -> list[Event]:
        if pending.ready is not None:
            pending.ready.synchronize()
        events = []
        tokens, probabilities = pending.tokens.tolist(), pending.probabilities.tolist()
        for row, token, probability in zip(
            pending.rows, tokens, probabilities, strict=True
        ):
            if row.done:
                continue
            row.ids.append(token)
            row.probabilities.append(probability)
            ended = token in self._end_tokens and not row.request.ignore_stop
            answer = None
            if ended or len(row.ids) == row.request.max_new_tokens:
                answer = WrittenAnswer(row.ids, row.probabilities, ended)
                row.done = True
                self._rows[self._rows.index(row)] = None
                self._rows_changed = True
            events.append(Event(row.request.key, token, answer))
        return events
