"""Measures how far a worker is, how fast it is, and what waits in it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fiftyone_regioncap.jobs.base import RunContext

WINDOW = 10.0
"""Seconds over which the rate of tokens is measured."""

_LISTED = 64
"""Number of samples at work that the board lists at most."""


@dataclass
class Meter:
    """Reads the progress of a worker for the board.

    Attributes:
        context: Context of the job in this process.
        best: Greatest number of tokens a second over :data:`WINDOW` so far, which the
            rate of this moment is to be compared with.
    """

    context: RunContext
    best: float = 0.0
    _rate: float = 0.0
    _tokens: int = 0
    _since: float = field(default_factory=time.monotonic)

    def read(self, at_work_on: Collection[str] = ()) -> dict[str, Any]:
        """Returns counts, rates and lengths of queues, as plain values.

        Args:
            at_work_on: Ids of the samples that the worker holds.
        """
        context = self.context
        values = context.summary.to_dict()
        counts = {k: v for k, v in values.items() if isinstance(v, int)}
        totals = context.reporter.totals()
        seconds = max(time.monotonic() - context.began, 1e-6)
        self._measure()
        by_stage = context.reporter.by_stage()
        done = by_stage[context.stages[-1]]["samples"]
        return {
            **counts,
            "sample_rate": round(done / seconds, 4),
            "frame_rate": round(totals["frames_seen"] / seconds, 2),
            "caption_rate": round(totals["captions_seen"] / seconds, 2),
            "token_rate": round(self._rate, 1),
            "best_token_rate": round(self.best, 1),
            "tokens_seen": context.tokens,
            "failed": len(values["failures"]),
            "by_stage": by_stage,
            "queues": {
                stage: {"items": queue.items, "bytes": queue.bytes}
                for stage, queue in context.queues.items()
            },
            "at_work_on": sorted(at_work_on)[:_LISTED],
            **totals,
        }

    def _measure(self) -> None:
        """Measures the rate of tokens, once a window is over."""
        now, tokens = time.monotonic(), self.context.tokens
        if now - self._since >= WINDOW:
            self._rate = (tokens - self._tokens) / (now - self._since)
            self.best = max(self.best, self._rate)
            self._tokens, self._since = tokens, now
