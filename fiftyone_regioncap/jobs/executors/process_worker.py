"""A worker in a process of its own: ``python -m ...process_worker``.

It reads its assignment from the first line of its standard input, and stops when that
is closed, as then its driver has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from bson import ObjectId

from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    FatalError,
)
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.board import DAYS, CancelFlags, Run
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
    shared_out,
)
from fiftyone_regioncap.system import assets

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
        _log_to_file(assignment)
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
    prepared = Prepared.of(job, part=assignment.part)
    targets = shared_out(job, prepared.targets)
    prepared = longest_first(replace(prepared, targets=targets))
    moved = [time.monotonic()]

    def listen(_: Any) -> None:
        moved[0] = time.monotonic()

    _tell(assignment, {"loaded": prepared.loaded()})
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


def _log_to_file(assignment: Assignment) -> None:
    """Keeps what the worker says, and when it began and ended each sample."""
    root = assets.cache_dir() / "logs"
    for old in root.glob("*"):
        if time.time() - old.stat().st_mtime > DAYS * 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / assignment.run
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / f"{assignment.name}.log")
    except OSError as error:  # the disk is full; a job goes on without
        logger.warning("no log is kept: %s", error)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("fiftyone_regioncap")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    for shown in logging.getLogger().handlers:
        shown.setLevel(logging.WARNING)


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
