"""Shared parts of tests and benchmarks: checkpoints, reference code, fixtures."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the project."""

SHARED = ROOT.parent / "shared"
"""Where golden numbers and clips are found when no variable names them."""

DATA = Path(__file__).parent / "data"
"""Small files that tests read."""
