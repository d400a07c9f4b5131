"""A worker in a process of its own: ``python -m ...process_worker``.

It reads its assignment from the first line of its standard input, and stops when that
is closed, as then its driver has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from bson import ObjectId

from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    FatalError,
)
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.board import CancelFlags, Run
from fiftyone_regioncap.jobs.executors.driving import (
    FAILED,
    FATAL,
    STOPPED,
    Assignment,
)
from fiftyone_regioncap.jobs.executors.working import (
    Prepared,
    Worker,
    longest_first,
)

logger = logging.getLogger(__name__)

STALL_SECONDS = float(os.environ.get("REGIONCAP_STALL_SECONDS", 1800.0))
"""Time without any progress on a sample after which a worker ends itself."""


def work(assignment: Assignment, cancel: threading.Event | None = None) -> int:
    """Works on a job until nothing is left.

    Args:
        assignment: What to work on.
        cancel: Set to stop.

    Returns:
        The exit code.
    """
    try:
        _work(assignment, cancel)
    except Canceled:
        return STOPPED
    except Exception as error:  # the model doesn't fit here, the disk is full, ...
        logger.exception("worker %s", assignment.name)
        _tell(assignment, {"error": f"{type(error).__name__}: {error}"})
        return FATAL if isinstance(error, FatalError) else FAILED
    return 0


def _work(assignment: Assignment, cancel: threading.Event | None) -> None:
    if locks.database_id() != assignment.database:
        raise BackendError(
            "this worker sees another database than the driver; set "
            "FIFTYONE_DATABASE_URI to a MongoDB that all machines reach"
        )
    run = Run(
        assignment.run,
        assignment.group,
        ObjectId(assignment.dataset_id),
        tuple(assignment.fields),
        assignment.signature,
    )
    hidden = [path for path in assignment.paths if not os.path.exists(path)]
    if hidden:
        raise BackendError(
            f"{socket.gethostname()} does not see {hidden[0]}; mount the folder of the "
            "media at the same place on all machines"
        )
    job = Job.from_dict(assignment.job)
    prepared = longest_first(Prepared.of(job, part=assignment.part))
    moved = [time.monotonic()]

    def listen(_: Any) -> None:
        moved[0] = time.monotonic()

    context = prepared.context(listen, CancelFlags(cancel, run.canceled))
    context.shared = True
    place = f"board.{assignment.name}"
    worker = Worker(
        prepared,
        run,
        context,
        assignment.owner,
        f"{place}.progress",
        assignment.part,
    )
    threading.Thread(
        target=_end_when_stalled, args=(worker, moved), daemon=True
    ).start()
    try:
        worker.work()
        prepared.remember_costs(context)
    finally:
        with contextlib.suppress(Exception):  # the job's own error is what counts
            last = {"progress": worker.meter.read()}
            _tell(assignment, {"report": context.summary.to_dict(), **last})


def _tell(assignment: Assignment, values: dict[str, Any]) -> None:
    place = {f"board.{assignment.name}.{k}": value for k, value in values.items()}
    locks.collection("jobs").update_one({"_id": assignment.run}, {"$set": place})


def _end_when_stalled(worker: Worker, moved: list[float]) -> None:
    while True:
        time.sleep(min(STALL_SECONDS / 4, 10.0))
        if worker.holds_any and time.monotonic() - moved[0] > STALL_SECONDS:
            logger.error("no progress for %d s; the worker ends", STALL_SECONDS)
            os._exit(70)


def main() -> None:
    """Runs the worker of a process."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    assignment = Assignment.from_json(sys.stdin.readline())
    orphaned = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        orphaned.set()

    threading.Thread(target=watch, daemon=True).start()
    # As a machine that is taken away says so: the video goes on elsewhere.
    signal.signal(signal.SIGTERM, lambda *_: orphaned.set())
    code = work(assignment, orphaned)
    sys.stdout.flush()
    os._exit(code)  # no thread of a model holds the process up


if __name__ == "__main__":
    main()
