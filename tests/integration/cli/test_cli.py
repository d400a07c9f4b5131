from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest
from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets

BOX = "10,20,34,44"


@pytest.fixture
def home(tmp_path: Path, monkeypatch, fiftyone_database: str) -> Path:
    """A cache of its own, also for processes that the test starts."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def name(home: Path) -> Iterator[str]:
    """A dataset's name, free before and after."""
    yield "cli"
    if fo.dataset_exists("cli"):
        fo.delete_dataset("cli")


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_a_video_and_a_box_become_a_dataset(videos, name, home):
    sheet = home / "sheet.png"
    result = run(
        "run",
        str(videos[0]),
        "--box",
        BOX,
        "--label",
        "disc",
        "--at",
        "3",
        "--dataset",
        name,
        "--propagator",
        "flow",
        "--captioner",
        "measured",
        "--sheet",
        str(sheet),
        "--json",
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["dataset"] == name
    (track,) = shown["tracks"]
    assert track["track"] == 1 and track["support"] == [1, 24]
    assert "disc" in track["caption"] and "red" in track["caption"]
    assert sheet.stat().st_size > 10_000
    assert fo.load_dataset(name).count("frames.tracks.detections") == 24


def test_a_folder_of_videos_takes_the_same_prompts(videos, name):
    result = run(
        "run",
        str(videos[0].parent),
        "--point",
        "19,32",
        "--dataset",
        name,
        "--propagator",
        "flow",
        "--captioner",
        "measured",
    )
    assert result.exit_code == 0, result.output
    assert "24" in result.output and "caption" in result.output
    assert fo.load_dataset(name).count() == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "VIDEO"], 2, "mark the objects"),
        (["run", "VIDEO", "--box", "1,2,3"], 2, "x1,y1,x2,y2"),
        (["run", "VIDEO", "--box", BOX, "--point", "1,1"], 2, "mark the objects"),
        (["run", "VIDEO", "--box", BOX, "--at", "1", "--at", "2"], 2, "2 --at"),
        (["run", "VIDEO", "--box", BOX, "--at", "99"], 3, "frames 1 to 24"),
        (["run", "VIDEO", "--box", "900,0,950,9"], 3, "outside the 96x72 frame"),
        (["run", "VIDEO", "--box", BOX, "--propagator", "none"], 3, "choose one of"),
        (
            ["run", "VIDEO", "--box", BOX, "--propagator", "sam2", "--weights", "./no"],
            3,
            "no weights at ./no",
        ),
        (
            ["run", "VIDEO", "--box", BOX, "--weights", "./no"],
            2,
            "not clear which model",
        ),
        (["run", "FOLDER", "--box", BOX], 3, "holds no videos"),
        (["caption", "--dataset", "nobody"], 3, "there is no dataset 'nobody'"),
        (["propagate", "--dataset", "nobody"], 3, "there is no dataset 'nobody'"),
    ],
)
def test_what_is_wrong_is_said_and_coded(videos, name, home, arguments, code, says):
    (home / "empty").mkdir()
    words = {"VIDEO": str(videos[0]), "FOLDER": str(home / "empty")}
    arguments = [words.get(word, word) for word in arguments]
    if arguments[0] == "run":
        arguments += ["--dataset", name]
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.output


def test_a_bad_video_among_good_ones_gives_exit_code_one(videos, name):
    made, _, _ = datasets.add_videos(name, videos, [Prompt(1, 0, box=(10, 20, 34, 44))])
    sample = made.first()
    sample.filepath = "gone.mp4"
    sample.save()
    result = run("propagate", "--dataset", name, "--propagator", "flow", "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)["summary"]
    assert [Path(f["filepath"]).name for f in summary["failures"]] == ["gone.mp4"]
    assert summary["frames"] == 24


def test_models_are_listed_with_what_they_need():
    result = run("models", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {"sam2", "mobilesam", "measured", "dam-video"} <= set(rows)
    assert rows["measured"]["missing"] is None
    assert not rows["dam-video"]["commercial"]
    assert "auto" in run("models").output


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4, 0.9])
def test_a_killed_process_goes_on_to_what_an_undisturbed_one_gives(
    videos, name, contents, delay
):
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44)), Prompt(2, 0, box=(60, 40, 76, 56))]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fiftyone_regioncap",
                "propagate",
                "--dataset",
                name,
                "--propagator",
                "flow",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=dict(os.environ),
        )

    def finish() -> dict:
        process = start()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
        return contents(fo.load_dataset(name))

    datasets.add_videos(name, videos, prompts)
    undisturbed = finish()
    fo.delete_dataset(name)

    datasets.add_videos(name, videos, prompts)
    process = start()
    assert process.stderr is not None
    seen = b""
    while b"propagate 1/2" not in seen and process.poll() is None:
        seen += os.read(process.stderr.fileno(), 4096)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = finish()
    # Samples have new ids in a new dataset, and so have their labels.
    assert strip_ids(again) == strip_ids(undisturbed)


def strip_ids(value):
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("_id", "instance")}
        return {k: strip_ids(v) for k, v in kept.items()}
    return [strip_ids(v) for v in value] if isinstance(value, list) else value


def test_other_prompts_on_the_same_video_replace_what_was_made(videos, name):
    common = ["--dataset", name, "--propagator", "flow", "--captioner", "measured"]
    first = run("run", str(videos[0]), "--box", BOX, "--label", "disc", *common)
    assert first.exit_code == 0, first.output
    again = run("run", str(videos[0]), "--box", BOX, "--label", "disc", *common)
    assert "2 skipped" in again.output
    other = run("run", str(videos[0]), "--box", "58,38,78,58", "--label", "b", *common)
    assert other.exit_code == 0, other.output
    sample = fo.load_dataset(name).first()
    (caption,) = sample["captions"].detections
    assert caption.label == "b" and caption.dominant_color == "blue"
