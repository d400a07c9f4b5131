"""Prometheus reads the progress of jobs, from this machine alone."""

from __future__ import annotations

import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets

pytest.importorskip("prometheus_client")


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video with a prompt."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    shutil.copy(videos[0], tmp_path / "video.mp4")
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("metrics", [tmp_path / "video.mp4"], prompts)
    yield made
    made.delete()


def test_metrics_of_a_job_that_runs(dataset) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said: list[str] = []

    def listen(event) -> None:
        if event.frames == 5 and not said:
            address = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(address) as answer:
                said.append(answer.read().decode())
            with socket.socket() as taken, pytest.raises(OptionError, match="in use"):
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                other = taken.getsockname()[1]
                api.caption(dataset, captioner="measured", metrics_port=other)

    made = api.propagate(dataset, propagator="flow", metrics_port=port, progress=listen)
    assert made.ok
    assert "regioncap_leases 1.0" in said[0]
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
