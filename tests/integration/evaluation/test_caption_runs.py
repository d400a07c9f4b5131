from __future__ import annotations

import json
from collections.abc import Iterator

import fiftyone as fo
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.caption_runs import _plain
from tests.support.captions import evaluate_captions

pytest.importorskip("pycocoevalcap", reason="the extra `metrics` is not installed")

QUICK = ("bleu", "rouge_l")


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Two videos with captions and references; <b> | is a label like any other."""
    dataset = fo.Dataset()
    said = [
        [
            CaptionRecord(1, (0, 9), label="car", caption="A red car.", mean_area=0.5),
            CaptionRecord(2, (0, 9), label="<b> |", caption="A cat.", mean_area=0.001),
            CaptionRecord(3, (0, 4), label="dog", caption="It runs.", confidence=0.2),
        ],
        [CaptionRecord(1, (0, 9), label="car", caption="A car stands.")],
    ]
    wanted = [
        [
            CaptionRecord(1, (0, 9), caption="A red car."),
            CaptionRecord(1, (0, 7), caption="The car is red."),
            CaptionRecord(2, (0, 9), caption="One blue bird flies."),
            CaptionRecord(4, (0, 9), caption="Nobody speaks of it."),
        ],
        [CaptionRecord(1, (5, 14), caption="A car stands.")],
    ]
    for number, (ours, theirs) in enumerate(zip(said, wanted, strict=True)):
        sample = fo.Sample(
            filepath=f"/nowhere/{number}.mp4",
            metadata=fo.VideoMetadata(
                frame_width=60, frame_height=40, frame_rate=10, total_frame_count=20
            ),
        )
        dataset.add_sample(sample)
        write_captions(sample, "captions", ours)
        write_captions(sample, "truth", theirs)
    yield dataset
    dataset.delete()


def test_captions_meet_the_references_of_their_object(dataset, tmp_path):
    result = evaluate_captions(dataset, "truth", metrics=QUICK)
    assert (result.count, result.without_reference) == (3, 1)
    assert result.missed == 1  # object 4; both references of object 1 are one's
    rouge = dict(
        zip(
            dataset.values("captions.detections.caption", unwind=True),
            dataset.values("captions.detections.caption_eval_rouge_l", unwind=True),
            strict=True,
        )
    )
    assert rouge["A red car."] == rouge["A car stands."] == pytest.approx(1)
    assert rouge["A cat."] == 0 and rouge["It runs."] is None
    assert result.by_label["car"]["count"] == 2
    assert result.by_label["car"]["bleu_2"] == pytest.approx(1, abs=1e-6)
    assert result.by_size["small"]["rouge_l"] == 0
    assert set(result.by_size) == {"large", "small", "unknown"}
    assert result.overall["rouge_l"] == pytest.approx(2 / 3)
    ious = dataset.values("captions.detections.caption_eval_iou", unwind=True)
    assert ious == pytest.approx([1, 1, 0, 1 / 3])

    worst = result.worst(2)
    assert worst.values("captions.caption")[0] == "A cat."
    info = dataset.get_run_info("caption_eval")
    assert info.config.references == "truth"
    stored = dataset.load_run_results("caption_eval").evaluation
    assert stored["overall"]["rouge_l"] == pytest.approx(2 / 3)

    files = {file.suffix: file for file in result.write(tmp_path / "new")}
    assert json.loads(files[".json"].read_text())["count"] == 3
    assert "&lt;b> &#124;" in files[".md"].read_text()
    assert "<b>" not in files[".html"].read_text().split("Plotly.newPlot")[-1]


def test_what_is_empty_is_no_reference(dataset):
    sample = dataset.first()
    failed = [CaptionRecord(2, (0, 9), caption="", error="no answer")]
    write_captions(sample, "truth", failed)
    result = evaluate_captions(dataset, "truth", metrics=("rouge_l",))
    assert (result.count, result.without_reference) == (2, 2)
    assert result.overall["rouge_l"] == pytest.approx(1)


def test_running_again_takes_the_place_of_the_run(dataset):
    for _ in range(2):
        evaluate_captions(dataset, "truth", metrics=("rouge_l",), key="mine")
    assert dataset.list_runs().count("mine") == 1


@pytest.mark.skipif(captions.java() is None, reason="Java is not installed")
def test_dense_map_counts_places_and_texts(dataset):
    result = evaluate_captions(dataset, "truth", metrics=("meteor",))
    # Two of four objects are met with IoU of at least 0.5; "A cat." says the wrong
    # thing, and the fourth overlaps by a third.
    table = result.dense_by_threshold
    assert table["iou 0.3, meteor 0.25"] > table["iou 0.5, meteor 0.25"] > 0
    assert 0 < result.dense < 1
    for sample in dataset:  # one caption of each object, out of its references
        records = {r.index: r for r in read_captions(sample, "truth")}
        write_captions(sample, "perfect", records.values())
    perfect = evaluate_captions(
        dataset, "truth", captions="perfect", metrics=("meteor",)
    )
    assert perfect.dense == pytest.approx(1)


def test_what_people_made_of_captions_are_references_of_what_models_said(dataset):
    sample = dataset.first()
    edited = CaptionRecord(
        1, (0, 9), caption="A blue car.", source_caption="A red car.", review="edited"
    )
    write_captions(sample, "captions", [edited])
    result = evaluate_captions(
        dataset, "captions", caption_attribute="source_caption", metrics=("rouge_l",)
    )
    assert result.count == 1 and 0 < result.overall["rouge_l"] < 1


def test_regions_of_images_are_matched_by_their_boxes(fiftyone_database):
    dataset = fo.Dataset()
    sample = fo.Sample(filepath="/nowhere/a.png")

    def regions(*texts: tuple[str, list[float]]) -> fo.Detections:
        return fo.Detections(
            detections=[fo.Detection(bounding_box=b, caption=t) for t, b in texts]
        )

    sample["said"] = regions(("a cat", [0, 0, 0.5, 0.5]), ("a dog", [0.6, 0, 0.3, 1]))
    sample["truth"] = regions(("a dog", [0.6, 0, 0.4, 1]), ("a cat", [0, 0, 0.5, 0.4]))
    dataset.add_sample(sample)
    result = evaluate_captions(dataset, "truth", captions="said", metrics=("rouge_l",))
    assert result.overall["rouge_l"] == pytest.approx(1)
    assert len(result.worst()) == 2
    dataset.delete()


@pytest.mark.parametrize(
    ("references", "message"),
    [("nope", "fields that do: captions, truth"), ("captions", "with itself")],
)
def test_wrong_fields_are_refused(dataset, references, message):
    with pytest.raises(FieldError, match=message):
        evaluate_captions(dataset, references, caption_attribute="caption")


def test_no_common_object_is_an_error(dataset):
    view = dataset.filter_labels("truth", fo.ViewField("index") == 4)
    with pytest.raises(FieldError, match="no caption of captions has a reference"):
        evaluate_captions(view, "truth")


@given(st.text())
def test_nothing_opens_a_tag_or_a_cell(text):
    assert not set(_plain(text)) & set("<|\n")


def test_scores_are_numbers_of_python(dataset):
    result = evaluate_captions(dataset, "truth", metrics=QUICK)
    assert all(
        type(v) is float for scores in result.each.values() for v in scores.values()
    )
    assert not any(np.isnan(v) for v in result.overall.values())
