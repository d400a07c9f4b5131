"""Reviewed captions of a real clip, trained on and captioned again by the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest
from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.dataset.captions import read_captions
from tests.support.training import SMALL_MODELS, clip_dataset

CLIP = "car-shadow"
LEARNED = 8
"""Captions of the clip: windows of five frames of the one car."""


@pytest.fixture(scope="module")
def dataset(fiftyone_database: str, clips: Path) -> Iterator[fo.Dataset]:
    if not (clips / CLIP).is_dir():
        pytest.skip(f"no folder {clips / CLIP}")
    made = clip_dataset(clips, [CLIP])
    made.name = "train-on-a-clip"
    yield made
    made.delete()


def flags(name: str, values: Mapping[str, Any]) -> str:
    """Returns options by name as flags of the shell."""
    return " ".join(f"{name} {option}={value}" for option, value in values.items())


def shell(command: str) -> str:
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("model", SMALL_MODELS)
def test_a_reviewed_clip_is_learned_and_captioned(
    dataset: fo.Dataset, model: str, golden: Path, checkpoint: Path, tmp_path: Path
) -> None:
    small = SMALL_MODELS[model]
    base = small.weights(golden, checkpoint, tmp_path / "base")
    recipe = flags("--recipe-options", small.recipe)
    said = json.loads(
        shell(
            f"train {small.captioner} --dataset {dataset.name} --weights {base} "
            f"--out {tmp_path / 'out'} --epochs 1 --batch-size 4 --accumulation 1 "
            f"--held-out 0 --device cpu {recipe} --json"
        )
    )
    assert (said["trained"], said["failures"]) == (LEARNED, [])
    assert said["losses"] and all(loss > 0 for _, loss in said["losses"])
    output = f"captions_{model.replace('-', '_')}"
    shell(
        f"caption --dataset {dataset.name} --captioner {small.captioner} "
        f"--output {output} --weights {said['weights']} --device cpu "
        f"{flags('--captioner-option', small.captioning)}"
    )
    records = read_captions(dataset.first(), output)
    assert records and not any(record.error for record in records)
    revisions = {record.revision for record in records}
    card = (Path(said["weights"]) / "README.md").read_text()
    assert f"{LEARNED} captions of 1 video" in card and len(revisions) == 1
