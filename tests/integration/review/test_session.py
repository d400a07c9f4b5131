from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fiftyone as fo
import pytest
from fiftyone import ViewField as F
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError, RegionCapError
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.schema import declare_tracks
from fiftyone_regioncap.review import card as review_card
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.review.diff import differences
from fiftyone_regioncap.review.session import Ref, ReviewQueue, State

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
    assert review.reviewed_share(queue.counts()) == pytest.approx(1 / 3)


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
    assert [label.to_dict() for label in labels(dataset)] == before


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
