from __future__ import annotations

import json
from collections.abc import Iterator

import fiftyone as fo
import numpy as np
import pytest
from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.tracks import TrackWriter


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Two dogs with the same caption, one inside the other."""
    made = fo.Dataset("make-unique-command")
    metadata = fo.VideoMetadata(
        frame_width=60, frame_height=40, frame_rate=10.0, total_frame_count=1
    )
    made.add_sample(fo.Sample(filepath="/nowhere/dogs.mp4", metadata=metadata))
    masks = {}
    for number, size in ((1, 30), (2, 6)):
        mask = np.zeros((40, 60), dtype=bool)
        mask[:size, :size] = True
        masks[number] = ObjectMask(mask, 1.0)
    with TrackWriter(made.first(), "frames.tracks") as writer:
        writer.write(FrameMasks(0, masks))
    write_captions(
        made.first(),
        "captions",
        [CaptionRecord(number, (0, 0), caption="A dog.") for number in masks],
    )
    yield made
    made.delete()


def test_from_the_shell(dataset: fo.Dataset) -> None:
    run = CliRunner().invoke(
        main, ["make-unique", "--dataset", dataset.name, "--parts", "--json"]
    )
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert (said["rewritten"], said["after"]["same"], said["parts"]) == (2, 0, 1)
    dataset.reload()
    texts = {record.caption for record in read_captions(dataset.first(), "captions")}
    assert len(texts) == 2
    assert dataset.first().frames[1].tracks.detections[1].parent == 1


def test_a_table_for_people(dataset: fo.Dataset) -> None:
    run = CliRunner().invoke(main, ["make-unique", "--dataset", dataset.name])
    assert run.exit_code == 0, run.output
    assert "2 of 2 captions rewritten" in run.stdout
