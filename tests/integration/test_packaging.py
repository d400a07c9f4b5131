"""The files that set the project up agree with each other and choose rightly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.support import ROOT


def pinned(lines: list[str]) -> dict[str, str]:
    """Version ranges by package."""
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*([^;#]*)", line)
        assert match, line
        found[match[1].lower().replace("_", "-")] = match[2].strip()
    return found


def test_plugin_installer_gets_what_the_package_declares() -> None:
    text = (ROOT / "requirements.txt").read_text().splitlines()
    listed = pinned([line for line in text if line and not line.startswith("#")])
    declared = pinned(
        [line for line in requires("fiftyone-regioncap") or [] if "extra" not in line]
    )
    # FiftyOne reads its own range from fiftyone.yml.
    del declared["fiftyone"]
    assert declared.items() <= listed.items()


def make(*arguments: str) -> str:
    """What make would run."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    return subprocess.run(
        ["make", "--dry-run", "--directory", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", "")


def test_demo_on_a_video_of_ones_own() -> None:
    ran = make("demo", "VIDEO=my clips/a b.mp4", "BOX=1,2,3,4", "LABEL=big dog")
    command = next(line for line in ran.splitlines() if "regioncap run" in line)
    words = '"my clips/a b.mp4" --box "1,2,3,4" --label "big dog" --sheet'
    assert words in " ".join(command.split())


def test_torch_comes_before_what_depends_on_it(tmp_path: Path) -> None:
    ran = make("test", f"VENV={tmp_path}")
    order = [ran.index(step) for step in ("install-torch", "--editable", "--group dev")]
    assert order == sorted(order)
    # Later steps may not replace it.
    assert ran.count(f"--constraint {tmp_path}/torch.txt") == 2


@pytest.mark.parametrize(
    ("gpu", "reachable", "installed"),
    [
        pytest.param(True, True, "torch>=2.4", id="GPU: the index's own build"),
        pytest.param(
            False,
            True,
            "torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu",
            id="no GPU: the small build",
        ),
        pytest.param(False, False, "torch==2.13.0", id="no GPU, only one index"),
    ],
)
def test_which_torch(
    tmp_path: Path, gpu: bool, reachable: bool, installed: str
) -> None:
    # Only torch's download is replaced: an interpreter that notes what it is asked.
    asked = tmp_path / "asked"
    programs = {
        "python": f'case "$1" in\n'
        f'-m) shift 3; echo "$@" >{asked};;\n'
        f"-c) exit {0 if reachable else 1};;\n"
        f'*) exec {sys.executable} "$@";;\nesac',
        "nvidia-smi": f"exit {0 if gpu else 9}",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    constraints = tmp_path / "torch.txt"
    subprocess.run(
        [ROOT / "scripts" / "install-torch", tmp_path / "python", constraints],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    assert asked.read_text().strip() == installed
    assert re.fullmatch(r"torch==\d+\.\d+\S*\n", constraints.read_text())


def test_system_packages_are_left_alone_where_apt_is_not(tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    finished = subprocess.run(
        [ROOT / "scripts" / "apt-install", "libcurl4"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
