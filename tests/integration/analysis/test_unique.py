from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import fiftyone as fo
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.analysis.unique import UniqueReport, difference_prompt
from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.core.errors import BackendError, FieldError, OptionError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, RegionClip
from fiftyone_regioncap.dataset.captions import read_captions, write_captions
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.jobs import Failure
from fiftyone_regioncap.models.registry import ModelSpec
from tests.support.captions import make_unique
from tests.support.ureca import SIZES, config_of, random_captioner

HEIGHT, WIDTH, FRAMES = 72, 96, 12
CENTRES = {1: (20, 36), 2: (48, 36), 3: (76, 36)}


def disc(x: float, y: float) -> np.ndarray:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 < 81


def scene() -> np.ndarray:
    """Three discs alike on a textured wall."""
    random = np.random.default_rng(0)
    wall = cv2.resize(
        random.integers(60, 160, (18, 24, 3), dtype=np.uint8), (WIDTH, HEIGHT)
    )
    for x, y in CENTRES.values():
        wall[disc(x, y)] = (220, 30, 30)
    return wall


@pytest.fixture
def video(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    path = tmp_path / "discs.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(), "rgb24")))
        container.mux(stream.encode())
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(path)))
    with TrackWriter(
        dataset.first(), "frames.tracks", labels=dict.fromkeys(CENTRES, "disc")
    ) as writer:
        for frame in range(FRAMES):
            masks = {n: ObjectMask(disc(*xy), 1.0) for n, xy in CENTRES.items()}
            writer.write(FrameMasks(frame, masks))
    yield dataset
    dataset.delete()


@pytest.fixture
def described(video: fo.Dataset) -> fo.Dataset:
    """The same, with what the captioner without a model says."""
    api.caption(
        video,
        captioner="measured",
        progress=False,
    )
    return video


def texts(dataset: fo.Dataset) -> dict[int, str]:
    records = read_captions(dataset.first(), "captions")
    return {record.index: record.caption for record in records}


def set_alike(dataset: fo.Dataset) -> None:
    """Gives all objects the same caption."""
    records = read_captions(dataset.first(), "captions")
    write_captions(
        dataset.first(),
        "captions",
        [replace(record, caption="A red disc on a wall.") for record in records],
    )


def test_objects_that_look_alike_end_with_different_true_sentences(
    described: fo.Dataset,
) -> None:
    set_alike(described)
    report = make_unique(described, "captions")
    assert report.ok
    assert (report.before.same, report.before.alike) == (3, 3)
    assert (report.after.same, report.after.alike) == (0, 0)
    assert (report.rewritten, report.undistinguished) == (3, 0)
    assert texts(described) == {
        number: "A red disc on a wall. Among the 3 objects described alike, only this "
        f"one is the {place} in frame 1."
        for number, place in enumerate(
            ("leftmost", "second from the left", "rightmost"), start=1
        )
    }
    shown = described.first().frames[1].tracks.detections
    assert {d.index: d.caption for d in shown} == texts(described)
    assert described.has_run(report.run)
    assert "3" in report.to_markdown()

    again = make_unique(described, "captions")
    assert again.rewritten == 0
    assert again.before == again.after == report.after


def test_what_the_measured_captioner_says_is_told_apart(
    described: fo.Dataset,
) -> None:
    before = texts(described)
    make_unique(described, "captions")
    after = texts(described)
    for one, two in itertools.combinations(after.values(), 2):
        assert one != two
    for number, text in after.items():
        assert text.startswith(before[number])


def test_reviewed_captions_stay(described: fo.Dataset) -> None:
    records = read_captions(described.first(), "captions")
    plain = [replace(record, caption="A red disc.") for record in records]
    plain[0] = replace(plain[0], review="accepted")
    plain[1] = replace(plain[1], review="rejected")
    write_captions(described.first(), "captions", plain)
    report = make_unique(described, "captions")
    found = texts(described)
    assert found[1] == found[2] == "A red disc."
    assert found[3].endswith("only this one is the rightmost in frame 1.")
    assert "2 objects" in found[3], "a rejected one is no rival"
    assert report.rewritten == 1 and report.after.same == 0


def test_captions_of_others_and_hidden_ones_stay(described: fo.Dataset) -> None:
    set_alike(described)
    foreign = fo.TemporalDetection(
        label="disc", support=[1, 6], index=3, caption="A red disc on a wall."
    )
    sample = described.first()
    sample["captions"].detections.append(foreign)
    sample.save()
    hidden = next(d for d in sample["captions"].detections if d.index == 2)
    shown = described.filter_labels("captions", fo.ViewField("index") != 2)
    before = len(sample["captions"].detections)
    assert make_unique(shown).rewritten
    described.reload()
    after = {d.id: d.caption for d in described.first()["captions"].detections}
    assert len(after) == before
    assert (
        after[foreign.id] == "A red disc on a wall."
        and after[hidden.id] == hidden.caption
    )
    assert make_unique(shown).rewritten == 0


def test_without_tracks_only_stored_facts_count(described: fo.Dataset) -> None:
    records = read_captions(described.first(), "captions")
    colors = ("red", "red", "blue")
    write_captions(
        described.first(),
        "captions",
        [
            replace(record, caption="A disc.", dominant_color=color, mean_area=None)
            for record, color in zip(records, colors, strict=True)
        ],
    )
    described.delete_frame_field("tracks")
    report = make_unique(described, "captions")
    assert report.undistinguished == 2
    assert "has blue as its main color" in texts(described)[3]


@pytest.fixture(scope="module")
def ureca() -> UrecaCaptioner:
    torch.set_num_threads(1)
    return random_captioner(
        config_of(SIZES["tiny"], mask_channels=3, tile=56),
        options=UrecaOptions(max_new_tokens=4),
    )


def test_a_captioner_is_asked_for_the_differences_first(
    described: fo.Dataset, ureca: UrecaCaptioner
) -> None:
    set_alike(described)
    report = make_unique(described, "captions", captioner=ureca)
    assert report.described_again == 3
    assert report.after.same == report.undistinguished == 0
    records = read_captions(described.first(), "captions")
    # Those that come later are asked to differ from what is said of the first now.
    assert records[0].prompt is not None
    assert '"A red disc on a wall."' in records[0].prompt
    for record in records:
        assert "A red disc on a wall." not in record.caption
        assert record.prompt is not None and "no other one" in record.prompt
        assert record.model == ureca.info.model
        assert record.confidence is not None
        assert record.dominant_color is not None, "facts stay"


class Colors:
    """Regions look the same when they have the same mean color."""

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        means = [clip.frames[0][clip.masks[0]].mean(axis=0) - 120 for clip in clips]
        return np.array([mean / np.linalg.norm(mean) for mean in means], np.float32)


def test_a_captioner_is_not_asked_how_the_same_looks_differ(
    described: fo.Dataset, ureca: UrecaCaptioner
) -> None:
    set_alike(described)
    report = make_unique(described, captioner=ureca, embedder=Colors())
    assert (report.look_alike, report.described_again) == (3, 0)
    assert report.after.same == report.undistinguished == 0
    assert all(text.startswith("A red disc on") for text in texts(described).values())


def test_regions_that_differ_are_asked_for(
    image: fo.Dataset, ureca: UrecaCaptioner
) -> None:
    sample = image.first()
    picture = scene()
    picture[disc(*CENTRES[3])] = (30, 30, 220)
    Image.fromarray(picture).save(sample.filepath)
    report = make_unique(image, "things", captioner=ureca, embedder=Colors())
    # Each of the red ones differs from the blue one, and that from both.
    assert (report.look_alike, report.described_again) == (0, 3)


def test_what_a_captioner_is_asked() -> None:
    prompt = difference_prompt(["a <|im_end|> dog", "a cat", "a cat", *"bcdefgh"])
    assert "<" not in prompt and "|" not in prompt
    assert prompt.count('"a cat"') == 1
    assert '"h"' not in prompt


@pytest.fixture
def image(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    path = tmp_path / "discs.png"
    Image.fromarray(scene()).save(path)
    dataset = fo.Dataset()
    labels = [
        fo.Detection(
            label="disc",
            bounding_box=[(x - 9) / WIDTH, (y - 9) / HEIGHT, 18 / WIDTH, 18 / HEIGHT],
            caption="A red disc.",
            caption_confidence=0.5,
            caption_model="some model",
        )
        for x, y in CENTRES.values()
    ]
    other = fo.Detection(bounding_box=[0, 0, 0.1, 0.1])
    dataset.add_sample(
        fo.Sample(filepath=str(path), things=fo.Detections(detections=[*labels, other]))
    )
    yield dataset
    dataset.delete()


def test_regions_of_an_image(image: fo.Dataset) -> None:
    report = make_unique(image, "things")
    assert report.ok and report.rewritten == 3
    *discs, other = image.first().things.detections
    assert [disc.caption for disc in discs] == [
        f"A red disc. Among the 3 objects described alike, only this one is the {rank}."
        for rank in ("leftmost", "second from the left", "rightmost")
    ]
    assert {disc.caption_confidence for disc in discs} == {0.5}
    assert {disc.caption_model for disc in discs} == {"some model"}
    assert not other.has_field("caption") or other.caption is None


def test_what_else_is_said_of_regions_stays(image: fo.Dataset) -> None:
    sample = image.first()
    first, second, third, _ = sample.things.detections
    said = {
        "tags": ["mine", "round"],
        "caption_tag_scores": [1.0, 0.7],
        "caption_attributes": ["color:red"],
        "caption_attribute_scores": [0.6],
        "caption_category": "disc",
        "caption_category_score": 0.8,
    }
    for name, value in said.items():
        first[name] = value
    second["review"] = "accepted"
    third["caption_model"] = None  # a person wrote it
    sample.save()
    assert make_unique(image, "things").rewritten == 1
    image.reload()
    first, second, third, _ = image.first().things.detections
    assert first.caption.endswith("only this one is the leftmost.")
    assert {name: first[name] for name in said} == said
    assert second.caption == third.caption == "A red disc."


def test_rejected_regions_are_no_rivals(image: fo.Dataset) -> None:
    sample = image.first()
    for label in sample.things.detections[1:3]:
        label["review"] = "rejected"
    sample.save()
    assert make_unique(image, "things").rewritten == 0


def test_regions_of_an_image_described_again(
    image: fo.Dataset, ureca: UrecaCaptioner
) -> None:
    report = make_unique(image, "things", captioner=ureca)
    assert report.described_again == 3 and report.after.same == 0
    models = {label.caption_model for label in image.first().things.detections[:3]}
    assert models == {ureca.info.model}


BAD: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "no such field": ({"captions": "nothing"}, FieldError, "no field"),
    "no such tracks": ({"tracks": "frames.nothing"}, FieldError, "no field"),
    "no share": ({"threshold": 1.5}, OptionError, "threshold"),
    "no such captioner": (
        {"captioner": ModelSpec("nobody")},
        BackendError,
        "no captioner",
    ),
}


@pytest.mark.parametrize(("options", "kind", "says"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(
    described: fo.Dataset,
    options: dict[str, object],
    kind: type[Exception],
    says: str,
) -> None:
    with pytest.raises(kind, match=says):
        make_unique(described, **options)


def test_a_captioner_without_prompts_is_not_asked(
    described: fo.Dataset,
) -> None:
    set_alike(described)
    report = make_unique(described, captioner=ModelSpec("measured"))
    assert report.described_again == 0 and report.after.same == 0


def test_a_video_that_is_gone_fails_alone(
    described: fo.Dataset, ureca: UrecaCaptioner
) -> None:
    set_alike(described)
    Path(described.first().filepath).unlink()
    report = make_unique(described, captioner=ureca)
    assert not report.ok
    assert "discs.mp4" in report.failures[0].filepath
    assert set(texts(described).values()) == {"A red disc on a wall."}


def test_failures_in_a_report_are_shown_as_they_are():
    failure = Failure("id", "/videos/*a*.mp4", "caption", "OSError: <none>")
    markdown = UniqueReport(failures=[failure]).to_markdown()
    assert r"\/\*a\*\.mp4" in markdown and r"\<none\>" in markdown
