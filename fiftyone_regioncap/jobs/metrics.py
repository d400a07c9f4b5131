"""Shows the progress of jobs to Prometheus, on this machine's loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fiftyone_regioncap.core.errors import BackendError, OptionError
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.jobs import board

_TOTALS = {
    "frames": "frames_seen",
    "captions": "captions_seen",
    "tokens": "tokens_seen",
    "failures": "failed",
}
"""Counters of a worker, by what the board calls them."""

_RATES = ("token_rate", "best_token_rate")

_LABELS = ("job", "dataset", "worker")


class BoardCollector:
    """Reads the running jobs of the database whenever Prometheus asks."""

    def collect(self) -> Iterator[Any]:
        """Yields the metrics of all workers of all jobs that run."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        totals = {
            key: CounterMetricFamily(
                f"regioncap_{name}", f"Number of {name}.", labels=_LABELS
            )
            for name, key in _TOTALS.items()
        }
        rates = {
            name: GaugeMetricFamily(
                f"regioncap_{name}", "Tokens a second, now or at best.", labels=_LABELS
            )
            for name in _RATES
        }
        by_stage = (*_LABELS, "stage")
        samples = CounterMetricFamily(
            "regioncap_samples",
            "Number of samples that have left a stage.",
            labels=by_stage,
        )
        seconds = CounterMetricFamily(
            "regioncap_stage_seconds", "Seconds spent in a stage.", labels=by_stage
        )
        items = GaugeMetricFamily(
            "regioncap_queue_items", "Clips that wait for a model.", labels=by_stage
        )
        size = GaugeMetricFamily(
            "regioncap_queue_bytes", "Size of these.", labels=by_stage
        )
        for job in board.jobs():
            if job["state"] != "running":
                continue
            for worker, progress in board.progress_of(job).items():
                labels = [job["id"], job["dataset"], worker]
                for key, family in (totals | rates).items():
                    family.add_metric(labels, progress.get(key, 0))
                for stage, one in progress.get("by_stage", {}).items():
                    samples.add_metric([*labels, stage], one["samples"])
                    seconds.add_metric([*labels, stage], one["seconds"])
                for stage, queue in progress.get("queues", {}).items():
                    items.add_metric([*labels, stage], queue["items"])
                    size.add_metric([*labels, stage], queue["bytes"])
        leases = locks.collection("leases").count_documents({})
        yield GaugeMetricFamily(
            "regioncap_leases", "Fields of samples that are worked on.", leases
        )
        yield from (*totals.values(), *rates.values(), samples, seconds, items, size)


@contextmanager
def served(port: int | None) -> Iterator[None]:
    """Serves metrics at ``http://127.0.0.1:port/metrics`` as long as a job runs.

    Args:
        port: The port; None for no metrics.

    Raises:
        BackendError: When prometheus_client is not installed.
        OptionError: When the port is taken.
    """
    if port is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise BackendError(
            f"metrics_port={port} needs a library: pip install prometheus-client"
        ) from error
    registry = CollectorRegistry()
    registry.register(BoardCollector())
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise OptionError(f"metrics_port={port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
