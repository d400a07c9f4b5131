"""Remembers how long models take on this machine, to weigh progress and to estimate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from fiftyone_regioncap.dataset.targets import Targets
from fiftyone_regioncap.system import assets

T = TypeVar("T", bound=str)

_FIRST_GUESSES = {"propagate": 0.2, "caption": 3.0}
"""Seconds a frame and seconds a caption, where nothing was measured yet."""

_WEIGHT_OF_THE_PAST = 0.5


def measured_cost(stage: str, model: str) -> float | None:
    """Returns the seconds that a model took for a frame or a caption on this machine.

    Args:
        stage: ``"propagate"``, counted in frames, or ``"caption"``, in captions.
        model: Name of the model.

    Returns:
        Seconds for one; None when no job has measured it here.
    """
    return _read().get(f"{stage} {model}")


def expected_cost(stage: str, model: str) -> float:
    """Returns :func:`measured_cost`, or a guess where nothing was measured."""
    measured = measured_cost(stage, model)
    return _FIRST_GUESSES.get(stage, 1.0) if measured is None else measured


def expected_costs(targets: Targets, models: Mapping[T, str]) -> dict[T, float]:
    """Returns the seconds that a sample is expected to take in each stage.

    Args:
        targets: The samples.
        models: Names of the stages' models, by the stages' names.
    """
    frames = 1.0
    if "propagate" in models:
        view = targets.dataset.select([target.sample_id for target in targets])
        frames = view.mean("metadata.total_frame_count") or 100.0
    return {
        stage: expected_cost(stage, model) * (frames if stage == "propagate" else 1.0)
        for stage, model in models.items()
    }


def remember_cost(stage: str, model: str, seconds: float) -> None:
    """Keeps the seconds that one frame or caption took; newer jobs count more."""
    path = _path()
    with suppress(OSError):  # an estimate is not worth a failure
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=1):
            known = _read()
            old = known.get(f"{stage} {model}", seconds)
            new = _WEIGHT_OF_THE_PAST * old + (1 - _WEIGHT_OF_THE_PAST) * seconds
            known[f"{stage} {model}"] = new
            path.write_text(json.dumps(known), encoding="utf-8")


def _path() -> Path:
    return assets.cache_dir() / "jobs" / "costs.json"


def _read() -> dict[str, float]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
