from __future__ import annotations

from dataclasses import fields, replace

import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
import pytest
from bson import ObjectId
from fiftyone import ViewField as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    clear_captions,
    mirror_captions,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding

INSTANCE = "0123456789abcdef01234567"

FULL = CaptionRecord(
    index=3,
    support=(1, 4),
    label="dog",
    caption="A brown dog runs.",
    confidence=0.75,
    min_confidence=0.25,
    agreement=0.5,
    instance=INSTANCE,
    tags=(("dog", 0.9), ("animal", 0.6)),
    attributes=(("color:brown", 0.8),),
    category=("pet", 0.7),
    model="org/model",
    revision="abc",
    prompt="Describe it.",
    frames_used=(1, 3),
    visible_fraction=0.75,
    mean_area=0.1,
    speed=0.2,
    direction="right",
    dominant_color="brown",
    review="edited",
    source_caption="A brown cat runs.",
    error=None,
    embedding=RegionEmbedding(
        fou.serialize_numpy_array(np.ones(2, np.float16)), "patchioner:m", "0123abcd"
    ),
)


def record(index: int, first: int, last: int, caption: str = "text") -> CaptionRecord:
    return CaptionRecord(index=index, support=(first, last), caption=caption)


def with_tracks(dataset: fo.Dataset, objects: int = 2, frames: int = 6) -> fo.Sample:
    """Tracks 1, 2, ... on each of the first frames."""
    sample = dataset.first()
    for number in range(1, frames + 1):
        sample.frames[number] = fo.Frame(
            tracks=fo.Detections(
                detections=[
                    fo.Detection(index=index, bounding_box=[0, 0, 1, 1])
                    for index in range(1, objects + 1)
                ]
            )
        )
    sample.save()
    return sample


def mirrored(dataset: fo.Dataset, index: int) -> list[str | None]:
    """The captions of one track's labels, frame by frame."""
    return [
        label.get_attribute_value("caption", None)
        for frame in dataset.first().frames.values()
        for label in frame.tracks.detections
        if label.index == index
    ]


def test_a_record_comes_back_whole(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    # No attribute of the example is left at its default, or it would prove nothing.
    unset = {f.name for f in fields(FULL) if getattr(FULL, f.name) == f.default}
    assert unset == {"error"}
    failed = CaptionRecord(index=4, support=(0, 9), error="the mask is empty")
    assert write_captions(sample, "captions", [FULL, failed]) == 2
    assert read_captions(sample, "captions") == [FULL, failed]


def test_fiftyone_sees_the_declared_attributes(dataset: fo.Dataset) -> None:
    write_captions(dataset.first(), "captions", [FULL])
    label = dataset.first().captions.detections[0]
    assert label.support == [2, 5]  # 1-based, inclusive
    assert label.frames_used == [2, 4]
    assert label.tags == ["dog", "animal"]
    assert label.instance.id == INSTANCE
    schema = dataset.get_field_schema(flat=True)
    for name in label.to_mongo():
        name = {"_id": "id", "_cls": "label"}.get(name, name)
        assert f"captions.detections.{name}" in schema
    found = F("caption").contains_str("DOG", case_sensitive=False)
    assert dataset.filter_labels("captions", found).count("captions.detections") == 1
    assert len(dataset.to_clips("captions")) == 1


def test_a_captioners_word_becomes_a_record() -> None:
    caption = Caption(text="A dog.", label="dog", confidence=0.5, tags=(("dog", 0.5),))
    made = CaptionRecord.of(caption, 1, (0, 5), label="animal", model="m")
    assert made == CaptionRecord(
        index=1,
        support=(0, 5),
        label="dog",
        caption="A dog.",
        confidence=0.5,
        tags=(("dog", 0.5),),
        model="m",
    )
    assert CaptionRecord.of(Caption(error="bad"), 1, (0, 5), label="animal").label == (
        "animal"
    )


def test_the_same_window_is_replaced_and_others_stay(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    write_captions(sample, "captions", [record(2, 0, 4), record(1, 0, 4, "old")])
    write_captions(sample, "captions", [record(1, 0, 4, "new"), record(1, 5, 9)])
    assert read_captions(sample, "captions") == [
        record(1, 0, 4, "new"),
        record(1, 5, 9),
        record(2, 0, 4),
    ]


records = st.lists(
    st.builds(
        lambda index, first, length, text: record(index, first, first + length, text),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(0, 5),
        st.text(max_size=5).filter(lambda text: "\0" not in text),
    ),
    max_size=6,
    unique_by=lambda made: made.key,
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(made=records, order=st.randoms())
def test_order_and_repetition_change_nothing(
    make_dataset, made: list[CaptionRecord], order
) -> None:
    dataset = make_dataset()
    sample = with_tracks(dataset, objects=3, frames=10)
    write_captions(sample, "captions", made, tracks_field="frames.tracks")
    stored = dataset._sample_collection.find_one({})["captions"]
    mirror = [mirrored(dataset, index) for index in (1, 2, 3)]
    shuffled = list(made)
    order.shuffle(shuffled)
    for one in shuffled:
        write_captions(sample, "captions", [one], tracks_field="frames.tracks")
    assert dataset._sample_collection.find_one({})["captions"] == stored
    assert [mirrored(dataset, index) for index in (1, 2, 3)] == mirror
    for index in (1, 2, 3):
        for frame, caption in enumerate(mirrored(dataset, index)):
            covering = [
                one
                for one in sorted(made, key=lambda one: one.key)
                if one.index == index and one.support[0] <= frame <= one.support[1]
            ]
            assert caption == (covering[-1].caption if covering else None)


@pytest.mark.parametrize("review", ["accepted", "edited", "rejected"])
def test_what_a_person_reviewed_stays(dataset: fo.Dataset, review: str) -> None:
    sample = dataset.first()
    reviewed = replace(record(1, 0, 4, "by hand"), review=review)
    write_captions(sample, "captions", [reviewed])
    new = [record(1, 0, 4, "by model"), record(2, 0, 4)]
    assert write_captions(sample, "captions", new) == 1
    assert read_captions(sample, "captions") == [reviewed, new[1]]
    assert write_captions(sample, "captions", new, overwrite=True) == 2
    assert read_captions(sample, "captions") == new


def test_captions_are_shown_on_their_tracks(dataset: fo.Dataset) -> None:
    sample = with_tracks(dataset)
    made = [record(1, 0, 2, "first"), record(1, 2, 4, "$second"), record(2, 1, 1, "x")]
    write_captions(sample, "captions", made, tracks_field="frames.tracks")
    assert mirrored(dataset, 1) == ["first"] * 2 + ["$second"] * 3 + [None]
    assert mirrored(dataset, 2) == [None, "x", None, None, None, None]


def test_what_is_wrong_is_not_shown(dataset: fo.Dataset) -> None:
    sample = with_tracks(dataset)
    made = [
        replace(record(1, 0, 5, "false"), review="rejected"),
        CaptionRecord(index=2, support=(0, 5), error="the mask is empty"),
    ]
    write_captions(sample, "captions", made, tracks_field="tracks")
    assert mirrored(dataset, 1) == mirrored(dataset, 2) == [None] * 6


def test_tracks_that_have_an_instance_only(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    linked = fo.Detection(bounding_box=[0, 0, 1, 1], instance=fo.Instance())
    linked.instance.id = ObjectId(INSTANCE)
    sample.frames[1] = fo.Frame(tracks=fo.Detections(detections=[linked]))
    sample.save()
    made = replace(record(1, 0, 5), instance=INSTANCE)
    write_captions(sample, "captions", [made], tracks_field="tracks")
    assert dataset.values("frames.tracks.detections.caption") == [[["text"]]]


def test_clearing_what_a_new_run_does_not_write(dataset: fo.Dataset) -> None:
    sample = with_tracks(dataset)
    reviewed = replace(record(2, 0, 1, "by hand"), review="accepted")
    made = [record(1, 0, 2, "stale"), record(1, 3, 5, "kept"), reviewed]
    write_captions(sample, "captions", made, tracks_field="tracks")
    keep = {made[1].key}
    removed = clear_captions(sample, "captions", keep=keep, tracks_field="tracks")
    assert removed == 1
    assert read_captions(sample, "captions") == made[1:]
    assert mirrored(dataset, 1) == [None] * 3 + ["kept"] * 3
    assert clear_captions(sample, "captions", overwrite=True) == 2
    assert read_captions(sample, "captions") == []


def test_mirroring_again_restores_labels(dataset: fo.Dataset) -> None:
    sample = with_tracks(dataset)
    write_captions(sample, "captions", [record(1, 0, 5)], tracks_field="tracks")
    with_tracks(dataset)  # a propagation wrote the labels anew
    assert mirrored(dataset, 1) == [None] * 6
    mirror_captions(sample, "captions", "frames.tracks")
    assert mirrored(dataset, 1) == ["text"] * 6


def test_captions_of_a_clip_go_to_its_video(dataset: fo.Dataset) -> None:
    sample = with_tracks(dataset)
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[2, 3])]
    )
    sample.save()
    clip = dataset.to_clips("events").first()
    write_captions(clip, "captions", [record(1, 1, 2)], tracks_field="tracks")
    assert read_captions(dataset.first(), "captions") == [record(1, 1, 2)]
    assert read_captions(clip, "captions") == [record(1, 1, 2)]


@pytest.mark.parametrize(
    ("output", "tracks", "message"),
    [
        ("number", None, "another type"),
        ("no good", None, "no field name"),
        ("captions", "frames.absent", "no field 'frames.absent'"),
    ],
)
def test_fields_that_hold_no_captions(
    dataset: fo.Dataset, output: str, tracks: str | None, message: str
) -> None:
    dataset.add_sample_field("number", fo.IntField)
    with pytest.raises(FieldError, match=message):
        write_captions(dataset.first(), output, [FULL], tracks_field=tracks)


def test_reading_what_is_not_there(dataset: fo.Dataset) -> None:
    with pytest.raises(FieldError, match="there is none yet"):
        read_captions(dataset.first(), "captions")
