"""The examples of docs/labels.md run, and its tables are those of the schema."""

from __future__ import annotations

import re

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.runs import record_run, run_key
from fiftyone_regioncap.dataset.status import write_status
from fiftyone_regioncap.dataset.tracks import TrackWriter
from tests.support import ROOT

DOCS = (ROOT / "docs" / "labels.md").read_text()


@pytest.fixture
def example(dataset: fo.Dataset) -> fo.Dataset:
    """A dataset with tracks, captions, a failure and a run."""
    sample = dataset.first()
    mask = ObjectMask(np.eye(40, 60, dtype=bool), 0.2)
    with TrackWriter(sample, "tracks", labels={3: "dog"}) as writer:
        writer.write(FrameMasks(0, {3: mask, 4: mask}))
    captions = [
        CaptionRecord(
            index=3,
            support=(0, 0),
            caption="A Red dog.",
            confidence=0.4,
            speed=0.3,
            direction="up and right",
            attributes=(("pattern:striped", 0.9),),
            embedding=RegionEmbedding.of(
                np.array([0.6, 0.8], np.float32),
                EmbeddingSpace("patchioner", "/models/t2d", "0123", 2),
            ),
        ),
        CaptionRecord(index=4, support=(0, 0), caption="A cat.", confidence=0.9),
    ]
    write_captions(sample, "captions", captions, tracks_field="tracks")
    write_status(sample, "captions", "failed", "VideoError: broken")
    record_run(dataset, run_key("caption"), {"model": "m"})
    return dataset


def test_queries_of_the_docs_find_what_they_say(
    example: fo.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL):
        exec(block.replace("my-dataset", example.name), found)  # our own docs
    for name in ("red", "unsure", "striped"):
        texts = found[name].values("captions.detections.caption", unwind=True)
        assert texts == ["A Red dog."], name
    assert len(found["fast"]) == 1
    assert found["dog"].count("frames.tracks.detections") == 1
    assert found["lost"].count("frames.tracks.detections") == 2
    printed = capsys.readouterr().out
    for expected in (
        "VideoError: broken",
        "['A Red dog.', 'A cat.']",
        "(40, 60)",
        "(1, 2)",
    ):
        assert expected in printed
    example.create_summary_field("frames.tracks.detections.label")


@pytest.mark.parametrize(
    ("heading", "path", "frames"),
    [
        ("### Tracks", "tracks.detections", True),
        ("### Captions", "captions.detections", False),
    ],
)
def test_tables_of_the_docs_are_the_schema(
    example: fo.Dataset, heading: str, path: str, frames: bool
) -> None:
    section = DOCS.split(heading)[1].split("\n#")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    schema = (
        example.get_frame_field_schema(flat=True)
        if frames
        else example.get_field_schema(flat=True)
    )
    declared = {
        name.removeprefix(f"{path}.").split(".")[0]
        for name in schema
        if name.startswith(f"{path}.")
    }
    # Of every FiftyOne label: no need to explain them here.
    common = {"id", "tags", "attributes"} if frames else {"id"}
    assert named == declared - common
