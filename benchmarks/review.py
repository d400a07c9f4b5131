"""Measures how long a person waits for the review panel on a large dataset.

Opens the panel's queue over synthetic captions in a real database, shows a caption, and
accepts some, as the panel does it; images, which are drawn ahead, are left out. The
dataset is deleted afterwards.

    python -m benchmarks.review --captions 10000 100000

With ``--app``, also how long Next and Accept take in the App's page, and FiftyOne's own
panel of histograms beside them in the same run.

    python -m benchmarks.review --captions 100000 --app
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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

SECONDS_TO_START = 180

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


def in_app(dataset: fo.Dataset) -> dict[str, float]:
    """Measures panels in the App, in headless Chromium, in milliseconds.

    A click counts until the page shows its result; FiftyOne's own panel of histograms
    counts from the choice of another field until it is drawn.
    """
    from playwright.sync_api import sync_playwright

    with serving(dataset.name) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(300_000)
        page.goto(f"{address}/datasets/{dataset.name}")
        page.locator("[data-cy=looker]").first.wait_for()
        with suppress(Exception):
            page.get_by_role("button", name="Dismiss").click(timeout=3000)
        # FiftyOne's own, first.
        page.get_by_title("New panel").first.click()
        page.get_by_text("Histograms", exact=True).first.click()
        page.get_by_placeholder("Select field").wait_for()

        def draw(field: str) -> None:
            box = page.get_by_placeholder("Select field")
            box.fill(field)
            page.get_by_text(field, exact=True).last.click()
            page.locator("[data-cy=histograms-container] path").first.wait_for()

        drawn = timed(lambda: draw("captions.detections.label"))[1]
        page.get_by_title("New panel").last.click()

        def open_panel() -> None:
            page.get_by_text("Region captions", exact=True).first.click()
            page.get_by_text(" reviewed (").wait_for()

        found = {"histogram": drawn, "open": timed(open_panel)[1]}
        title = page.get_by_text(re.compile(r"^[\d,]+ / [\d,]+ "))

        def press(button: str) -> None:
            before = title.inner_text()
            page.get_by_role("button", name=button, exact=True).click()
            page.wait_for_function(
                "before => ![...document.querySelectorAll('p')]"
                ".some(p => p.innerText === before)",
                arg=before,
                polling="raf",
            )

        for button in ("Next", "Accept"):
            times = [timed(lambda b=button: press(b))[1] for _ in range(TURNS)]
            found[button] = median(times)
        browser.close()
    return found


@contextmanager
def serving(dataset: str) -> Iterator[str]:
    """Serves the App with the plugin; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys; import fiftyone as fo; "
        "fo.launch_app(fo.load_dataset(sys.argv[1]), remote=True, "
        "port=int(sys.argv[2]), address='127.0.0.1').wait(-1)"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, dataset, str(port)],
        env={
            **os.environ,
            "FIFTYONE_PLUGINS_DIR": str(root),
            "FIFTYONE_DO_NOT_TRACK": "true",
        },
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS_TO_START):
            with suppress(OSError):
                urllib.request.urlopen(address, timeout=30)
                break
            time.sleep(1)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--app", action="store_true", help="measure in the App too")
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
        if options.app:
            dataset.persistent = True  # for the App's process
            for name, spent in in_app(dataset).items():
                print(f"in the App, {name}: {spent:.0f} ms", flush=True)
    finally:
        dataset.delete()


if __name__ == "__main__":
    main()
