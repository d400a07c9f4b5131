"""Runs jobs on a Ray cluster, or on a Ray of this machine alone.

Ray keeps the workers alive and gives them GPUs; they claim their work in the database.
Frames never travel: a worker decodes what it works on.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import fiftyone as fo

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset.sequences import are_sequences
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.executors.driving import Assignment, Driver
from fiftyone_regioncap.jobs.executors.processes import worker_environment
from fiftyone_regioncap.jobs.summary import Report

DIED = 70
"""Exit code that stands for an actor that died; Ray doesn't say how."""


class RayWorker:
    """The actor: one worker of a job."""

    def work(self, text: str) -> int:
        """Works on a job until nothing is left; returns the exit code."""
        import logging

        from fiftyone_regioncap.jobs.executors import process_worker

        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        return process_worker.work(Assignment.from_json(text))


class _Actor:
    """A worker that is an actor; see :class:`WorkerHandle`."""

    def __init__(self, actor: Any, assignment: Assignment) -> None:
        self._actor = actor
        self._result = actor.work.remote(assignment.to_json())

    def ended(self) -> int | None:
        """Returns its exit code; :data:`DIED` for a dead actor, None while it runs."""
        import ray

        ready, _ = ray.wait([self._result], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(self._result)
        except ray.exceptions.RayError:  # died, or can't be reached any more
            self.end()
            return DIED

    def end(self) -> None:
        """Ends the actor at once."""
        import ray

        ray.kill(self._actor)


@dataclass(frozen=True)
class RayExecutor:
    """Runs a job by actors of Ray; see :class:`Executor`.

    Attributes:
        workers: Number of actors; None for one a GPU, and 2 without GPUs.
        captioners: Number of these that only caption; see :class:`Driver`.
        address: Address of the cluster; None for that of ``RAY_ADDRESS``, else one that
            is started here and ended afterwards.
    """

    workers: int | None = None
    captioners: int | Literal["auto"] | None = None
    address: str | None = None

    def run(
        self,
        job: Job,
        *,
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Runs a job to its end; see :meth:`Executor.run`.

        Raises:
            BackendError: When Ray is absent, or there is no cluster at the address, or
                its machines can't reach the database, or the files of the samples.
        """
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address and are_sequences(job.samples()):
            raise BackendError(
                "sequences of images are listed in files of this machine, which others "
                f"of the cluster at {address} don't see; use executor=processes, or "
                "executor=ray without an address, which works here"
            )
        with connected(address) as ray:
            _require_database(ray)
            cards = int(ray.cluster_resources().get("GPU", 0))
            workers = self.workers or cards or 2
            gpus = min(1.0, cards / workers) if cards else 0
            variables = worker_environment(None, workers)
            actor = ray.remote(RayWorker).options(
                num_cpus=0,
                num_gpus=gpus,
                scheduling_strategy="SPREAD",
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": variables},
            )

            def spawn(slot: int, assignment: Assignment) -> _Actor:
                return _Actor(actor.remote(), assignment)

            return Driver(
                job, "ray", workers, spawn, listener, cancel, self.captioners
            ).run()


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connects to a cluster, unless this process is connected to one already.

    Raises:
        BackendError: When Ray is absent or can't connect.
    """
    try:
        import ray
    except ImportError as error:
        raise BackendError("executor=ray needs Ray: pip install ray") from error
    ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS")
    if ours:
        try:
            _knock(address)
            here = {"include_dashboard": False} if address is None else {}
            # Without an address, Ray would join any cluster of this machine, and it
            # prefers that of the variable to the one that it is given.
            named = os.environ.pop("RAY_ADDRESS", None)
            try:
                ray.init(address or "local", log_to_driver=False, **here)
            finally:
                if named is not None:
                    os.environ["RAY_ADDRESS"] = named
        except Exception as error:  # Ray's own are of no class in particular
            ray.shutdown()  # it may be half connected, and refuse the next try
            if address is None:
                raise BackendError(
                    f"Ray can't be started on this machine: {error}; use "
                    "executor=processes"
                ) from error
            if "version mismatch" in str(error).lower():
                raise BackendError(
                    f"the Ray cluster at {address} can't be used from here: {error}; "
                    "install the same versions of Ray and Python on all machines"
                ) from error
            raise BackendError(
                f"no Ray cluster at {address}: {error}; start one with `ray start "
                "--head` and the same versions of Ray and Python, or leave the address "
                "out"
            ) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Looks whether anything listens at an address; Ray would try for minutes.

    Raises:
        OSError: When nothing does.
    """
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _require_database(ray: Any) -> None:
    """Makes sure that workers on other machines can reach the database.

    Raises:
        BackendError: When the database listens on this machine alone.
    """
    nodes = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    host = urlsplit(fo.config.database_uri or "mongodb://127.0.0.1").hostname
    if len(nodes) > 1 and host in ("localhost", "127.0.0.1", "::1", None):
        raise BackendError(
            f"the cluster has {len(nodes)} machines, but the database listens on this "
            "one alone; run a MongoDB that all of them reach, and set "
            "FIFTYONE_DATABASE_URI=mongodb://HOST:PORT"
        )
