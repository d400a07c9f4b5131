"""Measures how long a person waits for the review panel on a large dataset.

Opens the panel's queue over synthetic captions in a real database, shows a caption, and
accepts some, as the panel does it; images, which are drawn ahead, are left out. The
dataset is deleted afterwards.

    python -m benchmarks.review --captions 10000 100000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

from fiftyone_regioncap.system.database import ensure

ensure()

import fiftyone as fo  # noqa: E402  (reads the database's address when imported)
from bson import ObjectId  # noqa: E402

from fiftyone_regioncap.dataset.captions import (  # noqa: E402
    CaptionRecord,
    write_captions,
)
from fiftyone_regioncap.review import card as review_card  # noqa: E402
from fiftyone_regioncap.review import session as review  # noqa: E402
from fiftyone_regioncap.review.queue import ReviewQueue  # noqa: E402

EACH = 10
"""Captions of a video."""

TURNS = 20
"""Captions that are looked at and accepted."""

T = TypeVar("T")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Returns an action's result and its milliseconds."""
    start = time.perf_counter()
    result = action()
    return result, 1000 * (time.perf_counter() - start)


def fill(dataset: fo.Dataset, captions: int) -> None:
    """Adds videos until there are so many captions: one is written, others copied."""
    if not len(dataset):
        metadata = fo.VideoMetadata(
            frame_width=1280, frame_height=720, frame_rate=25.0, total_frame_count=250
        )
        first = fo.Sample(filepath="/videos/000000.mp4", metadata=metadata)
        dataset.add_sample(first)
        text = "A silver car drives from the left to the right behind a parked one."
        write_captions(
            first,
            "captions",
            [CaptionRecord(n, (0, 249), "car", text, 0.8) for n in range(EACH)],
        )
    collection = dataset._sample_collection
    model = collection.find_one()
    copies = []
    for number in range(len(dataset), captions // EACH):
        labels = [
            {**label, "_id": ObjectId()} for label in model["captions"]["detections"]
        ]
        copies.append(
            {
                **model,
                "_id": ObjectId(),
                "filepath": f"/videos/{number:06d}.mp4",
                "captions": {**model["captions"], "detections": labels},
            }
        )
    if copies:
        collection.insert_many(copies)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    print("| captions | open, ms | show, median ms | accept, median ms |")
    print("|---:|---:|---:|---:|")
    dataset = fo.Dataset()
    try:
        for captions in sorted(options.captions):
            fill(dataset, captions)
            queue, opened = timed(lambda: ReviewQueue.of(dataset, "captions"))
            shows, accepts = [], []
            position = 0
            for _ in range(TURNS):
                found = queue.find(position, 1, ("unreviewed",))
                assert found is not None
                ref = queue[found]
                card, shown = timed(
                    lambda ref=ref: review_card.load_card(dataset, "captions", ref)
                )
                seen = card.record.caption
                change, accepted = timed(
                    lambda ref=ref, seen=seen: review.apply(
                        dataset, "captions", [ref], review.accept, seen=seen
                    )
                )
                queue.mark(change)
                shows.append(shown)
                accepts.append(accepted)
                position = found + 1
            print(
                f"| {len(queue):,} | {opened:.0f} | {median(shows):.1f} "
                f"| {median(accepts):.1f} |",
                flush=True,
            )
    finally:
        dataset.delete()


if __name__ == "__main__":
    main()
