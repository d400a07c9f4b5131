"""Records jobs as custom runs, so that a field can be traced and a job repeated."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import fiftyone as fo

from fiftyone_regioncap.core.errors import FieldError


def run_key(kind: str) -> str:
    """Makes a new key, unique also among jobs that start in the same second.

    Args:
        kind: Kind of the job, such as ``"propagate"``.

    Returns:
        Key such as ``"propagate_20260102_030405_1a2b3c"``.

    Raises:
        FieldError: When the kind is no identifier.
    """
    if not kind.isidentifier():
        raise FieldError(
            f"{kind!r} can't begin a run's key; use letters, digits and underscores"
        )
    time = datetime.now(timezone.utc)
    return f"{kind}_{time:%Y%m%d_%H%M%S}_{uuid4().hex[:6]}"


def record_run(
    dataset: fo.Dataset,
    key: str,
    config: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
) -> None:
    """Registers a job, or brings the record of one up to date.

    Args:
        dataset: Dataset that the job writes to.
        key: Key from :func:`run_key`.
        config: Values to repeat the job with: parameters, models, revisions, sha256 of
            weights; JSON values, and none of the keys ``type``, ``method`` and ``cls``.
        results: Results of the job, such as counts and timings, as JSON values.
    """
    known = key in dataset.list_runs()
    run = dataset.init_run(**config)
    if known:
        dataset.update_run_config(key, run)
    else:
        dataset.register_run(key, run)
    if results is not None:
        dataset.save_run_results(key, dataset.init_run_results(key, **results))
