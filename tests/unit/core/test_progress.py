from __future__ import annotations

import pytest

from fiftyone_regioncap.core import progress
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressReporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_stages_count_by_what_they_are_expected_to_cost(clock: list[float]) -> None:
    events: list[ProgressEvent] = []
    costs = {"propagate": 9.0, "caption": 1.0}
    reporter = ProgressReporter(("propagate", "caption"), 1, events.append, None, costs)
    clock[0] = 9.0
    reporter.finish("propagate", "a.mp4")
    assert events[-1].fraction == pytest.approx(0.9)
    assert events[-1].eta == pytest.approx(1.0)
    clock[0] = 10.0
    reporter.finish("caption", "a.mp4")
    assert events[-1].fraction == 1


def test_stages_count_by_what_they_cost_once_that_was_seen(clock: list[float]) -> None:
    events: list[ProgressEvent] = []
    reporter = ProgressReporter(("propagate", "caption"), 4, events.append)
    for seconds, stage in ((8.0, "propagate"), (2.0, "caption")):
        clock[0] += seconds
        reporter.finish(stage, "a.mp4")  # type: ignore[arg-type]
    assert events[-1].fraction == pytest.approx(1 / 4)
    clock[0] += 8.0
    reporter.finish("propagate", "b.mp4")
    assert events[-1].fraction == pytest.approx(18 / 40)
    assert events[-1].message == "propagate 2/4 b.mp4: done"
