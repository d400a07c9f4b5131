from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fiftyone_regioncap.system.leftovers import remove_leftovers


def test_only_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [
        f"a.{os.getpid()}.partial",
        f"b.{ended.pid}.partial",
        f"a.{ended.pid}.other",
        "a.x.partial",
    ]
    for name in [*kept, f"a.{ended.pid}.partial", f"a.{ended.pid}-xy.partial"]:
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path, "a.", ".partial") == f"a.{os.getpid()}"
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
