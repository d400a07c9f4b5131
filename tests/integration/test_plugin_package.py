"""A captioner of another package is seen by shell, SDK and form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

MODULE = '''
from dataclasses import dataclass

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class LoudOptions(Options):
    """Options of the captioner."""

    word: str = option("HELLO", "What is said of everything.")


class LoudCaptioner:
    """Says the same of everything."""

    info = CaptionerInfo("loud", "loud", "1", "MIT", frames=1, batch_size=4)

    def __init__(self, word):
        self.word = word

    @classmethod
    def from_pretrained(cls, weights, *, device, options):
        return cls(options.word)

    def caption(self, clips, *, prompt=None):
        return [Caption(self.word) for _ in clips]


CARD = ModelCard(
    name="loud",
    summary="the same word for everything",
    model="loud_captioner:LoudCaptioner",
    license="MIT",
    commercial=True,
    options=LoudOptions,
)
'''

USE = """
import json
import sys

from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main

shown = CliRunner().invoke(main, ["models", "--json"])
(row,) = [row for row in json.loads(shown.stdout) if row["name"] == "loud"]
assert "word" in row["options"], row

from fiftyone_regioncap.system import database

database.ensure()
import fiftyone as fo
import fiftyone.operators as foo
from fiftyone.operators.executor import ExecutionContext

import fiftyone_regioncap as regioncap
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos
from pathlib import Path

prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
dataset, _, _ = videos.add_videos("plugin-package", [Path(sys.argv[1])], prompts)
try:
    regioncap.propagate(dataset, propagator="flow", progress=False)
    on = ["caption", "--dataset", dataset.name, "--captioner", "loud"]
    said = CliRunner().invoke(main, [*on, "--captioner-option", "word=SHELL"])
    assert said.exit_code == 0, said.output
    dataset.reload()
    assert dataset.values("captions.detections.caption") == [["SHELL"]]
    options = {"word": "SDK"}
    regioncap.caption(
        dataset, captioner="loud", captioner_options=options, output="others",
        progress=False,
    )
    dataset.reload()
    assert dataset.values("others.detections.caption") == [["SDK"]]
    fo.config.plugins_dir = sys.argv[2]
    operator = foo.get_operator("@fiftyone-regioncap/regioncap/caption_tracks")
    params = {"captioner": "loud", "advanced": True}
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": params}
    )
    form = operator.resolve_input(context).to_json()["type"]["properties"]
    assert "loud" in form["captioner"]["type"]["values"]
    assert "word" in form["captioner_options_of_loud"]["type"]["properties"]
finally:
    dataset.delete()
print("seen everywhere")
"""


def test_a_captioner_of_another_package_is_offered_by_every_door(
    tmp_path: Path, videos: list[Path], fiftyone_database: str
) -> None:
    site = tmp_path / "site"
    metadata = site / "loud_captioner-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: loud-captioner\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[fiftyone_regioncap.captioners]\nloud = loud_captioner:CARD\n"
    )
    (site / "loud_captioner.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(videos[0]), str(ROOT)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "REGIONCAP_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("seen everywhere"), done.stderr
