from __future__ import annotations

import json
import mimetypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import fiftyone as fo
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.video.reader import VideoReader

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


def test_a_folder_of_images_is_a_video(videos, name, home):
    folder = home / "images"
    folder.mkdir()
    with VideoReader(videos[0]) as reader:
        for number, frame in enumerate(reader):
            Image.fromarray(frame).save(folder / f"{number}.png")
    arguments = ["run", str(folder), "--box", BOX, "--label", "disc", "--at", "3"]
    arguments += ["--dataset", name, "--propagator", "flow", "--captioner", "measured"]
    result = run(*arguments, "--sheet", str(home / "sheet.png"), "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["dataset"] == name
    assert shown["summary"]["frames"] >= 24
    (track,) = shown["tracks"]
    assert "red" in track["caption"] and track["support"] == [1, 24]
    assert (home / "sheet.png").exists()
    dataset = fo.load_dataset(name)
    assert dataset.media_type == "image" and len(dataset) == 24
    by_number = {sample.frame_number: sample for sample in dataset}
    assert Path(by_number[11].filepath).name == "10.png"
    assert by_number[4].prompts.detections[0].label == "disc"
    assert all("red" in s.tracks.detections[0].caption for s in dataset)
    again = json.loads(run(*arguments, "--json").stdout)
    assert again["summary"]["skipped"] == 2


def encode(path: Path, codec: str, pixels: str, side: int = 64) -> None:
    """Writes 6 frames of a red square on gray."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = pixels
        for frame in range(6):
            picture = np.full((side, side, 3), 90, np.uint8)
            picture[10:30, 8 + frame : 28 + frame] = 220, 30, 30
            image = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def test_one_bad_file_of_a_folder_costs_only_itself(home, name, monkeypatch):
    """Containers of odd suffixes, on a system without a table of mime types."""
    folder = home / "videos"
    folder.mkdir()
    for suffix in ("ts", "3gp", "mkv"):
        encode(folder / f"good.{suffix}", "libx264", "yuv420p")
    encode(folder / "moving.gif", "gif", "rgb8")
    encode(folder / "small.mp4", "libx264", "yuv420p", side=16)
    (folder / "damaged.mp4").write_bytes(b"no video" * 100)
    (folder / "empty.avi").touch()
    monkeypatch.setattr("mimetypes.knownfiles", [])
    mimetypes.init()
    arguments = ["run", str(folder), "--dataset", name, "--propagator", "flow"]
    arguments += ["--captioner", "measured", "--json"]
    boxes = ["--box", "8,10,28,30", "--box", "40,40,50,50"]
    result = run(*arguments, *boxes)
    assert result.exit_code == 1, result.output
    shown = json.loads(result.stdout)
    assert len(shown["tracks"]) == 7
    failed = {Path(f["filepath"]).name: f for f in shown["summary"]["failures"]}
    assert set(failed) == {"small.mp4", "damaged.mp4", "empty.avi", "moving.gif"}
    assert "convert it to MP4" in failed["moving.gif"]["error"]
    assert "object 2 on frame 1" in failed["small.mp4"]["error"]
    assert (failed["small.mp4"]["whole"], failed["empty.avi"]["whole"]) == (False, True)
    dataset = fo.load_dataset(name)
    assert dataset.media_type == "video" and len(dataset) == 4
    counts = {}
    for sample in dataset:
        labels = [frame.tracks.detections for frame in sample.frames.values()]
        counts[Path(sample.filepath).name] = sum(map(len, labels))
    small = counts.pop("small.mp4")
    # 16 pixels are few for optical flow: how long it follows depends on its threads.
    assert counts == dict.fromkeys(["good.ts", "good.3gp", "good.mkv"], 12), counts
    assert 1 <= small <= 6
    # The same again: what is done stays, and the same is said.
    again = run(*arguments, *boxes)
    assert again.exit_code == 1, again.output
    assert json.loads(again.stdout)["summary"]["frames"] == 0


def test_a_folder_of_nothing_but_bad_files(home, name):
    folder = home / "videos"
    folder.mkdir()
    (folder / "damaged.mp4").write_bytes(b"no video" * 100)
    result = run("run", str(folder), "--box", BOX, "--dataset", name)
    assert result.exit_code == 3 and "damaged.mp4" in result.output
    assert not fo.dataset_exists(name)


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
        (["run", "VIDEO", "--box", BOX, "--max-frames", "0"], 2, "at least 1"),
        (["run", "VIDEO", "--box", BOX, "--min-score", "nan"], 2, "from 0 to 1"),
        (["run", "VIDEO", "--box", BOX, "--window", "9" * 30], 2, "an integer"),
        (["run", "VIDEO", "--box", BOX, "--device", "foo"], 2, "device of PyTorch"),
        (["run", "VIDEO", "--box", BOX, "--sheet", "FOLDER"], 2, "is a directory"),
        (["run", "VIDEO", "--box", BOX, "--sheet", "/proc/x/y"], 2, "can't be written"),
        (["run", "VIDEO", "--box", BOX, "--stop", "5", "--start", "5"], 2, "more than"),
        (["run", "VIDEO", "--box", BOX, "--direction", "up"], 2, "one of both"),
        (["run", "VIDEO", "--box", BOX, "--not-point", "1,1"], 2, "belongs to --point"),
        (["run", "VIDEO", "--propose", "--label", "x"], 2, "--propose finds"),
        (["run", "VIDEO", "--box", BOX, "--tracks", "filepath"], 2, "FiftyOne's own"),
        (["run", "VIDEO", "--box", BOX, "--captions", "tags"], 2, "FiftyOne's own"),
        (["run", "VIDEO", "--box", BOX, "--tracks", "a b"], 2, "is no field name"),
        (["run", "VIDEO", "--box", BOX, "--tracks", "frames.prompts"], 3, "the input"),
        (["run", "VIDEO", "--box", BOX, "--label", "\udcff"], 2, "is no text"),
        (["run", "VIDEO", "--box", BOX, "--prompt", "red"], 3, "takes no prompt"),
        (["run", "VIDEO", "--box", BOX, "--captioner-weights", "x"], 2, "no weights"),
        (["run", "PIPE", "--box", BOX], 3, "neither a file nor a folder"),
        (["run", "/dev/null", "--box", BOX], 3, "neither a file nor a folder"),
        (["run", "BYTES", "--box", BOX], 3, "is not in UTF-8"),
        (["serve", "--weights", "FOLDER", "--port", "99999"], 2, "not in the range"),
        (["serve", "--weights", "FOLDER", "--rows", "0"], 2, "not in the range"),
        (["serve", "--weights", "FOLDER", "--host", "0.0.0.0"], 3, "set a token"),
        (["serve", "--weights", "FOLDER", "--device", "foo"], 3, "no device 'foo'"),
        (["caption", "--dataset", "\udcff"], 3, "there is no dataset"),
        (["caption", "--dataset", "nobody"], 3, "there is no dataset 'nobody'"),
        (["propagate", "--dataset", "nobody"], 3, "there is no dataset 'nobody'"),
    ],
)
def test_what_is_wrong_is_said_and_coded(videos, name, home, arguments, code, says):
    (home / "empty").mkdir()
    os.mkfifo(home / "pipe.mp4")
    shutil.copy(videos[0], os.fsencode(home) + b"/\xff.mp4")
    words = {
        "VIDEO": str(videos[0]),
        "FOLDER": str(home / "empty"),
        "PIPE": str(home / "pipe.mp4"),
        "BYTES": str(home / "\udcff.mp4"),
    }
    arguments = [words.get(word, word) for word in arguments]
    if arguments[0] == "run":
        arguments += ["--dataset", name]
        if "--propagator" not in arguments and "--weights" not in arguments:
            arguments += ["--propagator", "flow", "--captioner", "measured"]
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.output and "unexpected" not in result.output
    assert not fo.dataset_exists(name)


@pytest.mark.parametrize("bad", ["", " ", "...", "\udcff"])
def test_names_that_no_dataset_can_have(videos, home, bad):
    before = fo.list_datasets()
    result = run("run", str(videos[0]), "--box", BOX, "--dataset", bad)
    assert result.exit_code in (2, 3), result.output
    assert "unexpected" not in result.output
    assert fo.list_datasets() == before


def test_an_unforeseen_error_is_one_line_and_a_file(home, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a mistake\nof two lines \udcff")

    monkeypatch.setattr("fiftyone_regioncap.cli.doctor.examine", broken)
    result = run("doctor")
    assert result.exit_code == 3
    (line,) = result.output.splitlines()
    assert "ZeroDivisionError: a mistake (unexpected" in line
    log = Path(line.rpartition("details are in ")[2].rstrip(")"))
    assert "of two lines" in log.read_text() and "Traceback" in log.read_text()


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
    assert again.output.count("1 skipped: ") == 2
    other = run("run", str(videos[0]), "--box", "58,38,78,58", "--label", "b", *common)
    assert other.exit_code == 0, other.output
    sample = fo.load_dataset(name).first()
    (caption,) = sample["captions"].detections
    assert caption.label == "b" and caption.dominant_color == "blue"
