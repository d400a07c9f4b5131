"""Reviewed captions of a real clip, trained on and captioned again by the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest
from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.dataset.captions import read_captions
from tests.support.dam import write_checkpoint
from tests.support.patchioner import write_viecap_checkpoint
from tests.support.training import clip_dataset

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


@pytest.fixture
def base(model: str, golden: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """A small checkpoint of the model: random, or that of the golden numbers."""
    if model == "dam-video":
        write_checkpoint(tmp_path / "base")
        return tmp_path / "base"
    if model == "viecap":
        return write_viecap_checkpoint(tmp_path / "base", checkpoint)
    if model == "patchioner":
        return checkpoint
    folder = (
        golden / {"dynrefer": "dynrefer/model", "ureca": "ureca/model_qwen2"}[model]
    )
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def shell(command: str) -> str:
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("model", "training", "captioning"),
    [
        ("dam-video", ("rank=2",), "max_new_tokens=4"),
        ("dynrefer", ("dropout=0",), 'tasks=["caption"]'),
        ("ureca", ("rank=2", "max_tiles=1"), "max_tiles=1"),
        ("patchioner", ("mitigation=memory",), "frames=1"),
        ("viecap", ("trains=mapping",), "frames=1"),
    ],
    ids=["dam-video", "dynrefer", "ureca", "patchioner", "viecap"],
)
def test_a_reviewed_clip_is_learned_and_captioned(
    dataset: fo.Dataset,
    model: str,
    training: tuple[str, ...],
    captioning: str,
    base: Path,
    tmp_path: Path,
) -> None:
    captioner = "patchioner" if model == "viecap" else model
    recipe = " ".join(f"--recipe-options {one}" for one in training)
    said = json.loads(
        shell(
            f"train {captioner} --dataset {dataset.name} --weights {base} --device cpu "
            f"--out {tmp_path / 'out'} --epochs 1 --batch-size 4 --accumulation 1 "
            f"--held-out 0 {recipe} --json"
        )
    )
    assert (said["trained"], said["failures"]) == (LEARNED, [])
    assert said["losses"] and all(loss > 0 for _, loss in said["losses"])
    output = f"captions_{model.replace('-', '_')}"
    shell(
        f"caption --dataset {dataset.name} --captioner {captioner} --output {output} "
        f"--weights {said['weights']} --device cpu --captioner-option {captioning}"
    )
    records = read_captions(dataset.first(), output)
    assert records and not any(record.error for record in records)
    revisions = {record.revision for record in records}
    card = (Path(said["weights"]) / "README.md").read_text()
    assert f"{LEARNED} captions of 1 video" in card and len(revisions) == 1
