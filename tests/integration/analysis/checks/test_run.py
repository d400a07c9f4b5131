from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import fiftyone as fo
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from tests.support.captions import check_captions, triage

GOOD = CaptionRecord(
    1,
    (0, 9),
    label="car",
    caption="A red car moves right.",
    dominant_color="red",
    direction="right",
    speed=0.3,
    mean_area=0.1,
)


@pytest.fixture
def make(fiftyone_database: str) -> Iterator[Callable[..., fo.Dataset]]:
    """Makes datasets with the captions of one video a list."""
    made = []

    def dataset_of(*videos: list[CaptionRecord]) -> fo.Dataset:
        dataset = fo.Dataset()
        made.append(dataset)
        for number, records in enumerate(videos):
            sample = fo.Sample(filepath=f"/nowhere/{number}.mp4")
            dataset.add_sample(sample)
            write_captions(sample, "captions", records)
        return dataset

    yield dataset_of
    for dataset in made:
        dataset.delete()


def said(text: str, **values) -> CaptionRecord:
    return replace(GOOD, caption=text, **values)


@pytest.mark.parametrize(
    ("records", "failed"),
    [
        ([GOOD], []),
        ([said("A blue car moves right.", dominant_color="red")], ["color"]),
        ([said("A red car moves left.")], ["motion"]),
        ([said("red red red red red")], ["repetition"]),
        ([said("A red car moves right into the")], ["truncation"]),
        ([said("", error="no mask")], []),
        (
            [GOOD, said("A green dog.", support=(10, 19), dominant_color=None)],
            ["consistency"],
        ),
        ([GOOD, said("The car, red and shiny.", support=(10, 19))], []),
        ([GOOD, said("a red CAR moves right!", index=2)], ["uniqueness"] * 2),
        ([GOOD, said("A red car moves right.", support=(10, 19))], []),
    ],
)
def test_each_check_finds_what_it_is_for(make, records, failed):
    dataset = make(records)
    summary = check_captions(dataset)
    found = dataset.values("captions.detections.checks", unwind=True)
    assert [check for check in found if check] == failed
    assert summary.failed == len(failed)
    for check, count in summary.by_check.items():
        if not count:  # no view of nothing
            assert check not in summary.views and check not in failed
            continue
        view = dataset.load_saved_view(summary.views[check])
        assert view.count("captions.detections") == count == failed.count(check)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"dominant_color": "blue"}, "it is red, not blue"),
        ({"direction": "still"}, "it is moving right, not still"),
        ({"mean_area": 0.01}, "it is the larger one"),
        ({"mean_area": 0.9}, "it is the smaller one"),
        ({"support": (5, 9)}, "it is seen first"),
        ({}, "nothing measured tells them apart"),
    ],
)
def test_what_would_tell_two_objects_apart_is_proposed(make, values, hint):
    """Their captions are the same, and wrong about one of them at most."""
    one = said("A car.")
    dataset = make([one, replace(one, index=2, **values)])
    check_captions(dataset)
    notes = dataset.first().captions.detections[0].check_notes
    assert notes == f"same as object 2: {hint}"


def test_the_same_caption_in_two_videos_is_no_fault(make):
    assert check_captions(make([GOOD], [GOOD])).failed == 0


def test_checking_again_forgets_what_was_mended(make):
    dataset = make([said("A blue car.")])
    assert check_captions(dataset).failed == 1
    write_captions(dataset.first(), "captions", [GOOD])
    summary = check_captions(dataset)
    label = dataset.first().captions.detections[0]
    assert summary.failed == 0 and label.checks == [] and label.check_notes is None


def test_triage_says_how_good_it_is_on_what_was_reviewed(make):
    marks = [
        (0.9, "accepted"),
        (0.85, "edited"),
        (0.95, "unreviewed"),
        (0.5, "accepted"),
        (None, "unreviewed"),
        (0.1, "rejected"),
        (0.2, "accepted"),
    ]
    records = [
        replace(GOOD, index=index, confidence=confidence, review=review)
        for index, (confidence, review) in enumerate(marks, start=1)
    ]
    dataset = make(records)
    summary = triage(dataset)
    assert summary.counts == {"keep": 3, "review": 2, "drop": 2}
    assert summary.reviewed == {"keep": 2, "review": 1, "drop": 2}
    assert (summary.precision, summary.lost) == (0.5, 0.5)
    groups = dataset.values("captions.detections.triage", unwind=True)
    assert groups == ["keep"] * 3 + ["review"] * 2 + ["drop"] * 2
    with pytest.raises(FieldError, match="no attribute 'fit'"):
        triage(dataset, score="fit")
    with pytest.raises(FieldError, match=r"drop=0.9 is over keep=0.1"):
        triage(dataset, keep=0.1, drop=0.9)
