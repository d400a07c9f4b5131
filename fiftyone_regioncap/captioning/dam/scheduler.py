"""Scheduling of DAM: encodes clips, fills free rows, recovers from lack of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.batching import out_of_memory_caption
from fiftyone_regioncap.captioning.dam.generation import Engine, Request, WrittenAnswer
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.models.devices import is_out_of_memory, release_memory
from fiftyone_regioncap.models.sampling import GREEDY, Sampling

ENCODED_AT_ONCE = 8
"""Clips that are encoded and read together: enough to fill a GPU."""


@dataclass(frozen=True)
class DamJob:
    """Represents a clip to describe.

    Attributes:
        key: Caller's identifier, unique among the unfinished jobs.
        views: Full and crop views with their masks, uint8 (T, 8, S, S).
        query: Prompt with an image tag for each view.
        distinct: Whether crop and full view differ, bool (T,); None if not known.
        samplings: Sampling settings, one for each requested answer.
        max_new_tokens: Maximum number of tokens of an answer.
    """

    key: Hashable
    views: Tensor
    query: str
    distinct: Tensor | None = None
    samplings: tuple[Sampling, ...] = (GREEDY,)
    max_new_tokens: int = 512

    def differs(self) -> Tensor:
        """Returns whether crop and full view differ, bool (T,)."""
        if self.distinct is not None:
            return self.distinct
        return (self.views[:, :4] != self.views[:, 4:]).flatten(1).any(dim=1)


@dataclass(frozen=True)
class Update:
    """Progress of a job: a new token, its answers, or an error.

    Attributes:
        key: Identifier of the job.
        token: New token id of its first answer; None when there is none.
        answers: All answers, in the last update; None before that.
        error: Why there are no answers, in the last update; None otherwise.
        rejected: Whether the prompt is the reason, rather than the model.
    """

    key: Hashable
    token: int | None = None
    answers: list[WrittenAnswer] | None = None
    error: str | None = None
    rejected: bool = False


@dataclass
class _Work:
    """A job in the engine, and how many of its tokens were reported."""

    job: DamJob
    answers: dict[int, WrittenAnswer] = field(default_factory=dict)
    seen: int = 0
    shown: int = 0


class Scheduler:
    """Keeps the rows of an engine filled from a queue of jobs.

    When memory runs out, the jobs at work start again with half as many rows: greedy
    and seeded answers come out the same, and tokens that were reported are not
    reported twice. A job that doesn't fit even alone is an error of its own.

    Args:
        dam: Loaded DAM model.
        rows: Number of answers generated at once, where memory allows.
    """

    def __init__(self, dam: DAM, rows: int) -> None:
        self._dam = dam
        self._rows = rows
        self._engine: Engine | None = None
        self._waiting: deque[_Work] = deque()
        self._working: dict[Hashable, _Work] = {}

    @property
    def waiting(self) -> int:
        """Returns the number of jobs that have not begun."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Returns whether any job is unfinished."""
        return bool(self._waiting or self._working)

    def submit(self, job: DamJob) -> None:
        """Puts a job at the end of the queue."""
        self._waiting.append(_Work(job))

    def cancel(self, key: Hashable) -> None:
        """Cancels a job; nothing more is reported of it."""
        self._waiting = deque(w for w in self._waiting if w.job.key != key)
        work = self._working.pop(key, None)
        if work is not None and self._engine is not None:
            for sample in range(len(work.job.samplings)):
                self._engine.cancel((key, sample))

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Begins the jobs that fit and adds a token to every unfinished answer."""
        updates: list[Update] = []
        try:
            self._begin(updates)
            self._decode(updates)
            return updates
        except Exception as error:
            if not is_out_of_memory(error):
                # Whatever it was, rows in an unknown state are of no more use.
                self._engine = None
                self._working.clear()
                raise
            failure = out_of_memory_caption(error).error
        # Outside the handler: the error's traceback holds on to the tensors.
        self._back_off(updates, failure)
        return updates

    def _begin(self, updates: list[Update]) -> None:
        capacity = self._engine.capacity if self._engine else self._rows
        free = self._engine.free if self._engine else self._rows
        # A few free rows are not worth stopping the others for.
        if self._working and free < max(capacity // 8, 1):
            return
        batch: list[_Work] = []
        while self._waiting and len(batch) < ENCODED_AT_ONCE:
            needed = len(self._waiting[0].job.samplings)
            if needed > free and (self._working or batch):
                break
            free -= needed
            batch.append(self._waiting.popleft())
        if batch:
            self._working |= {work.job.key: work for work in batch}
            self._admit(self._requests(batch, updates))

    def _requests(self, batch: list[_Work], updates: list[Update]) -> list[Request]:
        jobs = [work.job for work in batch]
        device = self._dam.device
        tokens = self._dam.encode(
            # One by one: joined on the host they would no longer be pinned.
            torch.cat([job.views.to(device, non_blocking=True) for job in jobs]),
            torch.cat([job.differs() for job in jobs]),
        )
        requests: list[Request] = []
        for job, images in zip(
            jobs, tokens.split([len(job.views) for job in jobs]), strict=True
        ):
            try:
                prompt = self._dam.embed(self._dam.prompt_ids(job.query), images)
            except Exception as error:  # whatever a prompt does, it spoils no other
                if is_out_of_memory(error):
                    raise
                del self._working[job.key]
                reason = str(error) or type(error).__name__
                rejected = isinstance(error, PromptError)
                updates.append(Update(job.key, error=reason, rejected=rejected))
                continue
            limit = self._dam.new_tokens(prompt, job.max_new_tokens)
            requests.extend(
                Request((job.key, sample), prompt, limit, sampling)
                for sample, sampling in enumerate(job.samplings)
            )
        return requests

    def _admit(self, requests: list[Request]) -> None:
        if not requests:
            return
        if self._engine is None or self._engine.capacity < len(requests):
            longest = max(len(r.embeddings) + r.max_new_tokens for r in requests)
            fitting = self._dam.rows_that_fit(longest, self._rows)
            self._engine = None
            self._engine = self._dam.engine(max(fitting, len(requests)))
        self._engine.add(requests)

    def _decode(self, updates: list[Update]) -> None:
        if self._engine is None or not self._engine.busy:
            return
        for event in self._engine.step():
            assert isinstance(event.key, tuple)
            key, sample = event.key
            work = self._working.get(key)
            if work is None:
                continue
            token = None
            if sample == 0:
                work.seen += 1
                if work.seen > work.shown:
                    work.shown, token = work.seen, event.token
            if event.answer is not None:
                work.answers[sample] = event.answer
            answers = None
            if len(work.answers) == len(work.job.samplings):
                answers = [work.answers[n] for n in range(len(work.answers))]
                del self._working[key]
            if token is not None or answers is not None:
                updates.append(Update(key, token, answers))

    def _back_off(self, updates: list[Update], failure: str | None) -> None:
        tried = self._engine.capacity if self._engine else self._rows
        self._engine = None
        release_memory()
        stopped = list(self._working.values())
        self._working.clear()
        if len(stopped) == 1 and tried <= len(stopped[0].job.samplings):
            updates.append(Update(stopped[0].job.key, error=failure))
        else:
            fresh = [_Work(work.job, shown=work.shown) for work in stopped]
            self._waiting.extendleft(reversed(fresh))
        self._rows = max(1, tried // 2)
        self._dam.view_batch = max(1, self._dam.view_batch // 2)
