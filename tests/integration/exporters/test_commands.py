from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fiftyone_regioncap import api, exporters
from fiftyone_regioncap.cli.main import main
from tests.support import ROOT

DOCS = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def run(command, *arguments):
    return CliRunner().invoke(main, [command, *(str(a) for a in arguments)])


def test_there_and_back_by_the_shell(dataset, empty, contents_of, tmp_path):
    out = tmp_path / "out"
    common = ("--format", "videorefer", "--json")
    result = run(
        "export",
        *("--dataset", dataset.name, "--to", out, "--option", "frames=null", *common),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["captions"] == 6
    result = run("import", "--dataset", empty.name, "--from", out, *common)
    assert result.exit_code == 0, result.output
    assert contents_of(empty) == contents_of(dataset)


def test_what_failed_is_told_by_the_exit_code(dataset, tmp_path):
    sample = dataset.last()
    sample.filepath = str(tmp_path / "gone.mp4")
    sample.save()
    out = tmp_path / "out"
    result = run(
        "export",
        *("--dataset", dataset.name, "--to", out, "--format", "sa-v"),
    )
    assert result.exit_code == 1 and "gone.mp4" in result.stdout


def test_filters_views_and_clips_by_the_shell(dataset, tmp_path):
    dataset.save_view("first", dataset[:1])
    out = tmp_path / "out"
    result = run(
        "export",
        *("--dataset", dataset.name, "--view", "first", "--format", "jsonl"),
        *("--to", out, "--clips", "--review", "unreviewed", "--max-words", 4),
        *("--media", "none"),
    )
    assert result.exit_code == 0, result.output
    (line,) = map(json.loads, (out / "tracks.jsonl").read_text().splitlines())
    assert line["captions"][0]["caption"] == "A blue brick."
    assert line["frame_count"] == 9 and sorted(map(int, line["masks"])) == [*range(9)]


def test_the_formats_are_listed():
    result = run("export", "--formats")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == sorted(
        exporters.FORMATS
    )


def test_the_docs_name_every_format():
    table = DOCS[DOCS.index("| Name | Files") : DOCS.index("Options are given")]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    rows = {cell[1].strip(" `"): cell[3].strip() for cell in cells}
    assert rows.keys() == exporters.FORMATS.keys()
    importable = {name for name, yes in rows.items() if yes}
    assert importable == exporters.importable_formats().keys()


def test_the_format_of_the_docs_works(dataset, tmp_path):
    code = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)[-1]
    found: dict = {"__name__": "__main__"}
    exec(code, found)  # our own docs
    api.export(
        dataset, found["Texts"](), tmp_path / "out", media="none", progress=False
    )
    lines = (tmp_path / "out/texts.jsonl").read_text().splitlines()
    assert ["one", "A blue brick."] in list(map(json.loads, lines))


SLOW = """
import sys, time
import fiftyone as fo
from fiftyone_regioncap import api, exporters
from fiftyone_regioncap.exporters.coco import Coco

class Slow(Coco):
    def write(self, video, part, media):
        if video.name == "two":
            media.frames(video, part.folder, [(0, "frames/orphan.jpg")])
            print("half", flush=True)
            time.sleep(60)
        super().write(video, part, media)

Slow.__name__ = "Coco"
api.export(fo.load_dataset(sys.argv[1]), Slow(), sys.argv[2], progress=False)
"""


def test_a_killed_export_leaves_nothing_and_goes_on(dataset, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, dataset.name, str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not out.exists()
    began = time.monotonic()
    done = api.export(dataset, "coco", out, progress=False)
    assert time.monotonic() - began < 60
    assert (done.videos, done.resumed) == (2, 1)
    assert not (out / "frames/orphan.jpg").exists()
    api.export(dataset, "coco", tmp_path / "again", progress=False)
    files = {p.relative_to(out) for p in out.rglob("*") if p.is_file()}
    again = {
        p.relative_to(tmp_path / "again")
        for p in (tmp_path / "again").rglob("*")
        if p.is_file()
    }
    assert files == again
    for path in files - {Path("manifest.json")}:
        assert (out / path).read_bytes() == (tmp_path / "again" / path).read_bytes()


@pytest.mark.parametrize("pair", ["stride", "=1"])
def test_wrong_options_are_refused(dataset, tmp_path, pair):
    result = run(
        "export",
        *("--dataset", dataset.name, "--to", tmp_path / "out", "--format", "sa-v"),
        *("--option", pair),
    )
    assert result.exit_code in (2, 3) and pair in result.output
    assert not (tmp_path / "out").exists()
