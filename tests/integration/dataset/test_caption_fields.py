from __future__ import annotations

from collections.abc import Iterator

import fiftyone as fo
import fiftyone.core.odm as foo
import pytest

from fiftyone_regioncap.dataset import caption_fields
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A video of two objects, with a caption each, and a label of neither."""
    dataset = fo.Dataset()
    sample = fo.Sample(filepath="/nowhere/1.mp4")
    box = [0.1, 0.1, 0.2, 0.2]
    for number in (1, 2):
        sample.frames[number] = fo.Frame(
            tracks=fo.Detections(
                detections=[
                    fo.Detection(index=index, bounding_box=box) for index in (1, 2)
                ]
            ),
            truth=fo.Detections(detections=[fo.Detection(bounding_box=box)]),
        )
    dataset.add_sample(sample)
    records = [
        CaptionRecord(1, (0, 1), caption="A cat."),
        CaptionRecord(2, (0, 0), caption="A dog."),
    ]
    write_captions(sample, "captions", records)
    yield dataset
    dataset.delete()


def test_clips_show_the_object_they_speak_of_alone(dataset: fo.Dataset) -> None:
    captions = CaptionField.of(dataset, "captions")
    ids = dataset.first().captions.detections[::-1]
    clips = captions.alone(captions.view([label.id for label in ids]))
    assert clips.values("captions.caption") == ["A dog.", "A cat."]
    assert clips.values("frames.tracks.detections.index") == [[[2]], [[1], [1]]]
    assert clips.count("frames.truth.detections") == 3
    assert captions.alone(dataset.view()) == dataset.view()


@pytest.mark.parametrize("others", [None, ["captions"]], ids=["alone", "with others"])
def test_clips_of_another_field_hold_the_captions_inside(dataset, others) -> None:
    sample = dataset.first()
    events = [fo.TemporalDetection(label="start", support=[1, 1])]
    sample["events"] = fo.TemporalDetections(detections=events)
    sample.save()
    captions = CaptionField.of(dataset, "captions")
    _, dog = sample.captions.detections
    assert captions.ids_in(dataset.to_clips("events", other_fields=others)) == [dog.id]
    assert len(captions.ids_in(dataset.to_clips("captions"))) == 2


@pytest.mark.parametrize("query", [None, {"number": {"$gte": 1}}], ids=["all", "some"])
def test_labels_are_read_on_after_the_server_gave_up(
    dataset: fo.Dataset, query: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when what is done to a sample takes minutes."""
    monkeypatch.setattr(caption_fields, "_SAMPLES_AT_ONCE", 2)
    dataset.add_samples(
        [fo.Sample(filepath=f"/nowhere/{n}.mp4", number=n) for n in range(2, 8)]
    )
    name = dataset._sample_collection_name
    database = foo.get_db_conn()
    idle = [
        {"$currentOp": {"idleCursors": True}},
        {"$match": {"type": "idleCursor", "ns": f"{database.name}.{name}"}},
    ]
    captions = CaptionField.of(dataset, "captions")
    read = []
    for sample, _ in captions.documents(["caption"], query=query):
        read.append(sample["_id"])
        for found in database.client.admin.aggregate(idle):
            cursors = [found["cursor"]["cursorId"]]
            assert database.command("killCursors", name, cursors=cursors)["ok"]
    assert read == dataset.values("_id")[-6 if query else 0 :]
