"""The short form of benchmarks/chaos.py: real jobs that are disturbed end alike."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_disturbed_jobs_end_as_undisturbed_ones() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--videos", "4"]
    command += ["--executors", "processes", "local", "--kinds"]
    command += ["worker killed", "database killed", "stopped before a write"]
    command += ["driver killed", "--kills", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rounds = [line for line in done.stdout.splitlines() if line.startswith("round")]
    # One more where a job ended before the second thing was done to it.
    assert len(rounds) >= 2
    assert all("wrong: nothing" in line for line in rounds)
