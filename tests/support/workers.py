"""Workers that die, hang, have no room, are slow or are canceled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fiftyone_regioncap.core.errors import Canceled
from fiftyone_regioncap.core.progress import ProgressEvent
from fiftyone_regioncap.jobs import board

SITE = """
import errno, os, signal, sys, time
is_worker = sys.argv[:1] == ["-m"] or sys.argv[0].endswith("default_worker.py")
if is_worker and os.environ.get("DEADLY"):
    import fiftyone_regioncap.propagation.flow as flow
    from fiftyone_regioncap.jobs.executors.working import Prepared
    how, token = os.environ["DEADLY"].split(":")
    real, of = flow.FlowPropagator.propagate, Prepared.of

    def unlucky():
        "Whether this is the one process that goes wrong."
        try:
            os.rename(token, f"{token}-{os.getpid()}")
        except OSError:
            return os.path.exists(f"{token}-{os.getpid()}")
        return True

    class Slow:
        "A propagation whose frames take a while."
        def __init__(self, inner):
            self._inner = inner
        def __iter__(self):
            return self
        def __next__(self):
            time.sleep(0.3)
            return next(self._inner)
        def checkpoint(self):
            return self._inner.checkpoint()

    def propagate(self, request):
        if how == "slow":
            return Slow(real(self, request))
        if how == "full disk" and unlucky():
            raise OSError(errno.ENOSPC, "No space left on device", "/masks")
        elif "b.mp4" in str(request.frames.path):
            if how == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif how == "out of memory":  # as the kernel does
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "hang":  # in code that lets no other thread run
                os.kill(os.getpid(), signal.SIGSTOP)
            while how == "loop":
                time.sleep(0.1)
        return real(self, request)

    def prepare(*given, **options):
        if how == "no room for the model" and unlucky():
            raise MemoryError("CUDA out of memory")
        return of(*given, **options)

    flow.FlowPropagator.propagate, Prepared.of = propagate, prepare
"""


def customize(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Lets the workers that are started from now on go wrong.

    Args:
        folder: An empty folder.
        monkeypatch: Sets the environment of the workers.
        how: What happens; see the code that they run first.
    """
    (folder / "site").mkdir()
    (folder / "token").touch()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    path = f"{folder / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("DEADLY", f"{how}:{folder / 'token'}")


def cancel_from_elsewhere(
    run: Callable[[Callable[[ProgressEvent], None]], Any],
) -> None:
    """Cancels a job as another process would, and checks that its workers heard it.

    Args:
        run: Runs the job, with what it tells its progress to.
    """
    asked: list[str] = []

    def listen(event: ProgressEvent) -> None:
        if event.frames and not asked:
            (running,) = [job for job in board.jobs(5) if job["state"] == "running"]
            assert board.cancel(running["id"])
            asked.append(running["id"])
        time.sleep(0.05)

    with pytest.raises(Canceled):
        run(listen)
    job, *_ = board.jobs(1)
    assert (job["id"], job["state"]) == (asked[0], "canceled")
    # A worker that is ended by force gives no last word.
    assert all("report" in worker for worker in job.get("board", {}).values())
    assert not board.cancel(job["id"])
