"""Runs jobs in several processes of this machine, one a GPU where there are some."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fiftyone as fo

from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.executors.driving import Assignment, Driver
from fiftyone_regioncap.jobs.summary import Report

_WORKER = "fiftyone_regioncap.jobs.executors.process_worker"


def has_gpus(number: int) -> bool:
    """Returns whether this process may use so many GPUs; doesn't import torch."""
    visible = _visible()
    cards = list(Path("/dev").glob("nvidia[0-9]*")) if visible is None else visible
    return len(cards) >= number


def gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA names them."""
    import torch

    visible = _visible()
    if visible is not None:
        return visible
    return [str(number) for number in range(torch.cuda.device_count())]


def _visible() -> list[str] | None:
    """Returns the GPUs that ``CUDA_VISIBLE_DEVICES`` names; None if it is not set."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return None
    return [name for name in names.split(",") if name and name != "-1"]


def worker_environment(gpu: str | None, workers: int) -> dict[str, str]:
    """Returns the variables that a worker needs: the database, its GPU, its threads.

    Args:
        gpu: GPU that it sees; None for what this process sees.
        workers: Number of workers on this machine.
    """
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    variables = {
        "FIFTYONE_DATABASE_NAME": fo.config.database_name,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    if fo.config.database_uri:
        variables["FIFTYONE_DATABASE_URI"] = fo.config.database_uri
    if not fo.config.database_validation:
        variables["FIFTYONE_DATABASE_VALIDATION"] = "false"
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    return variables


class _Process:
    """A worker in a process; see :class:`WorkerHandle`."""

    def __init__(self, assignment: Assignment, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            env={**os.environ, **variables},
            text=True,
        )
        assert self._process.stdin is not None
        # It stays open: the worker stops when it is closed, as when this process dies.
        self._process.stdin.write(assignment.to_json() + "\n")
        self._process.stdin.flush()

    def ended(self) -> int | None:
        """Returns the exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs a job by processes of this machine; see :class:`Executor`.

    Attributes:
        workers: Number of processes; None for one a GPU, and 2 without GPUs.
        captioners: Number of these that only caption; see :class:`Driver`.
    """

    workers: int | None = None
    captioners: int | Literal["auto"] | None = None

    def run(
        self,
        job: Job,
        *,
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Runs a job to its end; see :meth:`Executor.run`."""
        cards = gpus()
        workers = self.workers or len(cards) or 2

        def spawn(slot: int, assignment: Assignment) -> _Process:
            gpu = cards[slot % len(cards)] if cards else None
            return _Process(assignment, worker_environment(gpu, workers))

        return Driver(
            job, "processes", workers, spawn, listener, cancel, self.captioners
        ).run()
