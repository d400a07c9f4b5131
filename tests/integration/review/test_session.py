from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fiftyone as fo
import pytest
from fiftyone import ViewField as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fiftyone_regioncap as frc
from fiftyone_regioncap.core.errors import FieldError, RegionCapError
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.schema import declare_tracks
from fiftyone_regioncap.review import card as review_card
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.review.diff import differences
from fiftyone_regioncap.review.preferences import prefer, preferences
from fiftyone_regioncap.review.queue import (
    ReviewQueue,
    available_orders,
    ranks,
    reviewed_share,
)
from fiftyone_regioncap.review.session import Ref, State

FRAMES = 10


def record(index: int, first: int, last: int, **values: object) -> CaptionRecord:
    return CaptionRecord(index, (first, last), **{"caption": f"#{index}", **values})


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Two videos with three captions each, whose tracks are on all 10 frames."""
    made = fo.Dataset()
    for name in ("a", "b"):
        sample = fo.Sample(
            filepath=f"/nowhere/{name}.mp4",
            metadata=fo.VideoMetadata(
                frame_width=60,
                frame_height=40,
                frame_rate=10.0,
                total_frame_count=FRAMES,
                duration=1.0,
            ),
        )
        for number in range(1, FRAMES + 1):
            sample.frames[number]["tracks"] = fo.Detections(
                detections=[
                    fo.Detection(label="x", bounding_box=[0, 0, 0.5, 0.5], index=index)
                    for index in (1, 2)
                ]
            )
        made.add_sample(sample)
    declare_tracks(made, "tracks")
    for number, sample in enumerate(made):
        write_captions(
            sample,
            "captions",
            [
                record(1, 0, 4, confidence=0.9 - number / 10),
                record(1, 5, 9, confidence=0.2 + number / 10),
                record(2, 0, 9, confidence=None),
            ],
            tracks_field="tracks",
        )
    yield made
    made.delete()


@pytest.fixture
def queue(dataset: fo.Dataset) -> ReviewQueue:
    return ReviewQueue.of(dataset, "captions")


def labels(dataset: fo.Dataset) -> list[fo.TemporalDetection]:
    return [label for sample in dataset for label in sample["captions"].detections]


def shown(dataset: fo.Dataset, index: int) -> list[str | None]:
    """What the first video's frames show of an object."""
    dataset.reload()
    return [
        label.caption
        for _, frame in sorted(dataset.first().frames.items())
        for label in frame["tracks"].detections
        if label.index == index
    ]


def test_a_queue_has_the_captions_in_the_order_of_the_view(dataset, queue):
    assert [queue[i].label_id for i in range(len(queue))] == [
        label.id for label in labels(dataset)
    ]
    assert queue.counts() == {
        "unreviewed": 6,
        "accepted": 0,
        "edited": 0,
        "rejected": 0,
    }


def confident(dataset: fo.Dataset) -> fo.DatasetView:
    return dataset.filter_labels("captions", F("confidence") > 0.7)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (lambda d: d.sort_by("filepath", reverse=True), [3, 4, 5, 0, 1, 2]),
        (confident, [0, 3]),
        # Search results are clips of captions, in an order of their own.
        (lambda d: d.to_clips("captions").sort_by("id")[:0], []),
        (
            lambda d: d.to_clips("captions").sort_by("support", reverse=True),
            None,
        ),
        # Clips of something else have the captions that overlap them.
        (lambda d: d.limit(1).to_clips([[(1, 3)]]), [0, 2]),
        (lambda d: d.limit(0), []),
    ],
    ids=["sorted", "filtered labels", "no clips", "clips", "other clips", "empty"],
)
def test_a_queue_follows_views(dataset, view, expected):
    every = [label.id for label in labels(dataset)]
    samples = view(dataset)
    queue = ReviewQueue.of(samples, "captions")
    ids = [queue[i].label_id for i in range(len(queue))]
    assert ids == (
        samples.values("id") if expected is None else [every[i] for i in expected]
    )


def test_the_least_sure_captions_come_first_when_asked(dataset):
    queue = ReviewQueue.of(dataset, "captions", order="confidence")
    every = [label.id for label in labels(dataset)]
    ids = [every.index(queue[i].label_id) for i in range(len(queue))]
    assert ids == [2, 5, 1, 4, 3, 0]


def test_finding_goes_round_and_skips_what_is_not_asked_for(dataset, queue):
    change = review.apply(dataset, "captions", [queue[1], queue[5]], review.accept)
    queue.mark(change)
    unreviewed = ("unreviewed",)
    assert queue.find(1, 1, unreviewed) == 2
    assert queue.find(5, 1, unreviewed) == 0
    assert queue.find(1, -1, unreviewed) == 0
    assert queue.find(-1, -1, unreviewed) == 4
    assert queue.find(0, 1, ("rejected",)) is None
    assert queue.select(("accepted",)) == [queue[1], queue[5]]
    assert ReviewQueue.of(dataset, "captions").counts() == queue.counts()
    assert reviewed_share(queue.counts()) == pytest.approx(1 / 3)


def test_an_edit_keeps_the_models_text_and_reaches_the_objects_labels(dataset, queue):
    change = review.apply(
        dataset, "captions", [queue[0]], review.edit(" mine "), tracks_field="tracks"
    )
    label = labels(dataset)[0]
    assert (label.caption, label.review) == ("mine", "edited")
    assert label.source_caption == "#1"
    assert shown(dataset, 1) == ["mine"] * 5 + ["#1"] * 5
    assert shown(dataset, 2) == ["#2"] * 10
    review.undo(dataset, change)
    label = labels(dataset)[0]
    assert (label.caption, label.review) == ("#1", "unreviewed")
    assert label.source_caption is None
    assert shown(dataset, 1) == ["#1"] * 10


def test_rejected_captions_leave_the_labels_and_keep_their_text(dataset, queue):
    review.apply(
        dataset, "captions", [queue[1]], review.reject, tracks_field="frames.tracks"
    )
    assert labels(dataset)[1].caption == "#1"
    assert shown(dataset, 1) == ["#1"] * 5 + [None] * 5


def test_all_of_a_view_is_changed_and_taken_back(dataset, queue):
    before = [label.to_dict() for label in labels(dataset)]
    review.apply(dataset, "captions", [queue[2]], review.edit("mine"))
    middle = [label.to_dict() for label in labels(dataset)]
    change = review.apply(dataset, "captions", queue.select(), review.accept)
    assert [label.review for label in labels(dataset)] == [
        *["accepted"] * 2,
        "edited",
        *["accepted"] * 3,
    ]
    assert len(change.edits) == 5
    review.undo(dataset, change)
    assert [label.to_dict() for label in labels(dataset)] == middle
    review.apply(dataset, "captions", queue.select(), review.reset)
    kept = {"review_history", "reviewed_by", "reviewed_at"}
    now = [label.to_dict() for label in labels(dataset)]
    assert [{k: v for k, v in one.items() if k not in kept} for one in now] == before


def test_what_somebody_judged_meanwhile_is_not_judged_with_all(dataset, queue):
    refs = queue.select(("unreviewed",))
    review.apply(dataset, "captions", refs[:1], review.reject, by="alice")
    change = review.apply(
        dataset, "captions", refs, review.accept, reviews=("unreviewed",), by="bob"
    )
    assert (len(change.edits), change.skipped) == (len(refs) - 1, 1)
    assert refs[0] not in {edit.ref for edit in change.edits}


def test_each_decision_is_kept_with_its_caption(dataset, queue):
    review.apply(dataset, "captions", [queue[0]], review.accept, by="ada")
    review.apply(dataset, "captions", [queue[0]], review.edit("mine"), by="bob")
    dataset.reload()
    label = labels(dataset)[0]
    assert label.reviewed_by == "bob"
    first, second = label.review_history
    assert (first["by"], second["by"]) == ("ada", "bob")
    assert first["after"] == {"review": "accepted"}
    assert second["before"] == {
        "caption": "#1",
        "review": "accepted",
        "source_caption": None,
    }
    assert second["at"] >= first["at"]
    assert dataset.filter_labels("captions", F("reviewed_by") == "bob").count() == 1
    assert dataset.count("captions.detections.reviewed_at") == 1


def test_the_last_change_is_undone_by_another_process_too(dataset, queue):
    before = [label.to_dict() for label in labels(dataset)]
    review.apply(dataset, "captions", [queue[0]], review.edit("a"), by="ada")
    mine = review.apply(dataset, "captions", queue.select()[:2], review.reject)
    review.apply(
        dataset, "captions", queue.select()[2:], review.reject, part_of=mine.id
    )
    review.apply(dataset, "captions", [queue[5]], review.accept, by="ada")
    # Nothing but the database is known of the changes here.
    undone = review.undo_last(dataset, by=mine.by)
    assert (undone.field, len(undone.edits), undone.skipped) == ("captions", 5, 1)
    assert [label.review for label in labels(dataset)] == [
        "edited",
        *["unreviewed"] * 4,
        "accepted",
    ]
    assert len(review.undo_last(dataset, "captions", by="ada").edits) == 1
    assert labels(dataset)[5].review == "rejected"
    assert len(review.undo_last(dataset, "captions").edits) == 1
    assert labels(dataset)[0].to_dict() == before[0]
    assert review.undo_last(dataset) is None


def test_what_was_changed_since_is_not_undone(dataset, queue):
    review.apply(dataset, "captions", queue.select()[:2], review.accept)
    sample = dataset.first()
    sample["captions"].detections[0].caption = "changed in the sidebar"
    sample["captions"].detections[0].review = "rejected"
    sample.save()
    undone = review.undo_last(dataset)
    assert (len(undone.edits), undone.skipped) == (1, 1)
    assert labels(dataset)[0].review == "rejected"


@pytest.mark.parametrize("field", ["captions", "frames.tracks"])
def test_read_only_fields_are_not_reviewed(dataset, queue, field):
    declared = dataset.get_field(field)
    declared.read_only = True
    declared.save()
    for change in (
        lambda: review.apply(
            dataset, "captions", [queue[0]], review.accept, tracks_field="tracks"
        ),
        lambda: prefer(dataset, "captions", {queue[0].label_id: "new"}),
    ):
        if field == "captions" or change.__code__.co_names[0] == "review":
            with pytest.raises(FieldError, match="read-only"):
                change()
    assert labels(dataset)[0].review == "unreviewed"


def test_values_of_another_type_are_not_written(dataset, queue):
    def wrong(state: State) -> State:
        return replace(state, caption=3)  # type: ignore[arg-type]

    with pytest.raises(FieldError, match="caption can't be 3"):
        review.apply(dataset, "captions", [queue[0]], wrong)
    assert labels(dataset)[0].caption == "#1"


def test_what_is_most_suspicious_comes_first(dataset, queue):
    path = "captions.detections"
    scores = [[0.1, 0.9, 0.0], [0.0, 0.2, None]]
    groups = [["keep", "drop", None], ["review"] * 3]
    dataset.set_values(f"{path}.check_score", scores, dynamic=True)
    dataset.set_values(f"{path}.triage", groups, dynamic=True)
    assert available_orders(CaptionField.of(dataset, "captions")) == (
        *("view", "suspicion", "check_score", "triage", "confidence", "agreement"),
    )

    def places(order: str) -> list[int]:
        found = ReviewQueue.of(dataset, "captions", order=order)
        every = [ref.label_id for ref in queue.select()]
        return [every.index(ref.label_id) for ref in found.select()]

    assert places("check_score") == [5, 1, 4, 0, 2, 3]
    assert places("triage") == [2, 1, 3, 4, 5, 0]
    assert places("suspicion")[0] in (1, 5)
    with pytest.raises(FieldError, match="choose one of view, suspicion"):
        ReviewQueue.of(dataset, "captions", order="similarity")


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_ranks_keep_the_order(values):
    found = ranks(values)
    known = [(v, r) for v, r in zip(values, found, strict=True) if v is not None]
    assert all((a < b) == (r < q) for a, r in known for b, q in known)
    unknown = [r for v, r in zip(values, found, strict=True) if v is None]
    assert all(r == found.max() for r in unknown)


@pytest.fixture
def images(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """Two images with two captioned regions each, one without, and another field."""
    made = fo.Dataset()
    for name in ("a", "b"):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (60, 40), "gray").save(path)
        boxes = [[0, 0, 0.5, 0.5], [0.5, 0.5, 0.4, 0.4], [0, 0, 1, 1]]
        regions = [
            fo.Detection(
                label="x",
                bounding_box=box,
                caption=f"#{n}" if n < 2 else None,
                caption_confidence=n / 2,
                caption_model="m",
            )
            for n, box in enumerate(boxes)
        ]
        others = [fo.Detection(bounding_box=boxes[1], caption="other")]
        made.add_sample(
            fo.Sample(
                filepath=str(path),
                regions=fo.Detections(detections=regions),
                others=fo.Detections(detections=others),
            )
        )
    made.add_dynamic_sample_fields()
    yield made
    made.delete()


def test_captions_of_regions_are_reviewed_too(images):
    queue = ReviewQueue.of(images, "regions", order="confidence")
    assert len(queue) == 4
    card = review_card.load_card(images, "regions", queue[2], compare="others")
    assert card.record.caption == "#1" and card.record.confidence == 0.5
    assert card.other is not None and card.other.caption == "other"
    assert "frames" not in review_card.title(card)
    assert review_card.draw_strip(images, card, "regions").width > 0
    review.apply(images, "regions", [queue[2]], review.edit("mine"), seen="#1")
    prefer(images, "regions", {queue[2].label_id: "old"}, over="others")
    images.reload()
    label = images.first()["regions"].detections[1]
    assert (label.caption, label.source_caption) == ("mine", "#1")
    assert (label.review, label.preferred) == ("edited", "old")
    found = preferences(images, "others", "regions")
    assert (found.pairs, found.preferred) == (2, {"old": 1})
    assert preferences(images, "regions", "regions").preferred == {}
    result = frc.evaluate_captions(
        images, "others", captions="regions", metrics=("rouge_l",), progress=False
    )
    assert result.to_dict()["preferred"] == {"old": 1}
    assert "preferred: 1 old" in result.to_markdown()
    patches = images.to_patches("regions").match(F("regions.review") == "edited")
    assert ReviewQueue.of(patches, "regions").select() == [queue[2]]
    review.undo_last(images)
    assert images.first()["regions"].detections[1].caption == "#1"


def test_a_single_region_of_an_image_is_reviewed(images):
    sample = images.first()
    sample["one"] = fo.Detection(bounding_box=[0, 0, 1, 1], caption="one")
    sample.save()
    images.add_dynamic_sample_fields()
    (ref,) = ReviewQueue.of(images, "one").select()
    review.apply(images, "one", [ref], review.reject)
    assert images.first()["one"].review == "rejected"
    review.undo_last(images, "one")
    assert images.first()["one"].review in (None, "unreviewed")


def test_reviewed_regions_are_captioned_again_only_where_asked(images):
    (first, *_) = ReviewQueue.of(images, "regions").select()
    review.apply(images, "regions", [first], review.edit("mine"))
    for edited_too, expected in ((False, "mine"), (True, None)):
        frc.caption_regions(
            images,
            "regions",
            captioner="measured",
            segmenter=None,
            overwrite=True,
            overwrite_edited=edited_too,
            progress=False,
        )
        label = images.first()["regions"].detections[0]
        assert (label.caption == "mine") == (expected == "mine")
    assert not (label.has_field("review") or label.has_field("source_caption"))


def test_what_somebody_else_changed_is_not_undone_or_overwritten(dataset, queue):
    refs = [queue[0], queue[1]]
    change = review.apply(dataset, "captions", refs, review.accept)
    review.apply(dataset, "captions", refs[:1], review.edit("theirs"))
    with pytest.raises(RegionCapError, match="somebody changed"):
        review.apply(dataset, "captions", refs[:1], review.reject, seen="#1")
    assert review.undo(dataset, change).skipped == 1
    assert [label.review for label in labels(dataset)][:2] == ["edited", "unreviewed"]


def test_captions_without_a_text_are_not_accepted(dataset):
    write_captions(
        dataset.first(), "captions", [record(3, 0, 9, caption="", error="no memory")]
    )
    queue = ReviewQueue.of(dataset.limit(1), "captions")
    with pytest.raises(RegionCapError, match="no text"):
        review.apply(dataset, "captions", [queue[3]], review.accept)
    change = review.apply(dataset, "captions", queue.select(), review.accept)
    assert (len(change.edits), change.skipped) == (3, 1)
    review.apply(dataset, "captions", [queue[3]], review.edit("a dog"))
    label = dataset.first()["captions"].detections[3]
    assert (label.caption, label.error, label.review) == ("a dog", None, "edited")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda d: ReviewQueue.of(d, "nothing"), FieldError),
        (lambda d: review.apply(d, "nothing", [], review.accept), FieldError),
        (
            lambda d: review.apply(
                d, "captions", [Ref(d.first().id, "0" * 24)], review.accept
            ),
            RegionCapError,
        ),
        (lambda d: review.edit("  "), RegionCapError),
        (
            lambda d: review_card.load_card(d, "captions", Ref(d.first().id, "0" * 24)),
            RegionCapError,
        ),
    ],
    ids=["queue", "apply", "gone", "empty edit", "card"],
)
def test_bad_input_says_what_to_do(dataset, call, error):
    with pytest.raises(error):
        call(dataset)


STATES = st.builds(
    State,
    caption=st.text(min_size=1),
    review=st.sampled_from(review.REVIEWS),
    source_caption=st.none() | st.text(),
    error=st.none() | st.text(),
)


@given(STATES, st.text().filter(str.strip))
def test_the_models_text_is_never_lost(state, text):
    source = state.caption if state.source_caption is None else state.source_caption
    for action in (review.edit(text), review.reject, review.reset):
        after = action(state)
        kept = after.caption if after.source_caption is None else after.source_caption
        assert kept == source
    assert review.reset(review.edit(text)(state)).caption == source


@given(st.text(), st.text())
def test_marked_texts_are_the_texts_and_equal_ones_have_no_marks(one, other):
    first, second = differences(one, other)
    assert "".join(piece.text for piece in first) == one
    assert "".join(piece.text for piece in second) == other
    assert not any(piece.own for side in differences(one, one) for piece in side)


def test_words_that_one_caption_has_alone_are_marked():
    own = [
        [piece.text for piece in side if piece.own]
        for side in differences("A red car turns left.", "a blue car turns left")
    ]
    assert own == [["red"], ["blue"]]


def test_changes_while_another_thread_reads_samples(
    dataset: fo.Dataset, queue: ReviewQueue
) -> None:
    """FiftyOne keeps a table of samples in memory, to which every thread adds."""
    dataset.add_samples([fo.Sample(filepath=f"/nowhere/{n}.mp4") for n in range(200)])
    ids = dataset.values("id")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            held = [dataset[sample_id] for sample_id in ids]
            held.clear()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(30):
                review.apply(dataset, "captions", [queue[0]], review.edit(f"{number}."))
        finally:
            done.set()
        reading.result()
    assert dataset.first().captions.detections[0].caption == "29."


def test_a_card_has_the_objects_other_captions_and_the_best_to_compare(dataset, queue):
    write_captions(
        dataset.first(),
        "others",
        [record(1, 0, 1), record(1, 4, 9, caption="*late*"), record(2, 5, 9)],
    )
    card = review_card.load_card(dataset, "captions", queue[1], compare="others")
    assert [r.support for r in card.own] == [(0, 4), (5, 9)]
    assert card.other is not None and card.other.caption == "*late*"
    own, other = review_card.texts(card)
    assert (own, other) == (r"**\#1**", r"**\*late\***")
    assert card.frame_count == FRAMES
    assert review_card.draw_timeline(card).width > 0
    with pytest.raises(RegionCapError):  # there is no such file
        review_card.draw_strip(dataset, card, "frames.tracks")


@pytest.mark.parametrize(
    ("supports", "rows"),
    [
        ([(0, 4), (5, 9)], 1),
        ([(0, 9), (0, 4), (5, 9)], 2),
        ([(0, 5), (5, 9)], 2),
        ([], 0),
    ],
    ids=["beside", "a summary over windows", "a shared frame", "none"],
)
def test_windows_don_t_cover_each_other(
    supports: list[tuple[int, int]], rows: int
) -> None:
    lanes = review_card.lanes([record(1, *support) for support in supports])
    assert len(lanes) == rows
    assert sorted(r.support for lane in lanes for r in lane) == sorted(supports)


def test_captions_of_regions_are_compared_in_a_field_of_their_own(images):
    (first, *_) = ReviewQueue.of(images, "regions").select()
    review.apply(images, "regions", [first], review.edit("mine"))
    compared = frc.compare_captions(
        images, "regions", "again", captioner="measured", progress=False
    )
    assert compared.ok and compared.found.pairs == 4
    images.reload()
    old, new = (images.first()[name].detections[0] for name in ("regions", "again"))
    assert old.bounding_box == new.bounding_box
    assert old.caption == "mine" and "gray" in new.caption
    assert not new.has_field("review") and old.review == "edited"
