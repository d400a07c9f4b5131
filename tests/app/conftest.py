"""The FiftyOne App with this plugin, in headless Chromium."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# The last four keep Chromium from asking hosts outside for things nobody needs here.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

SERVE = """
import sys
import fiftyone as fo
session = fo.launch_app(
    fo.load_dataset(sys.argv[1]),
    remote=True,
    port=int(sys.argv[2]),
    address="127.0.0.1",
)
session.wait(-1)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs a test of the App once more when the page did not answer in time.

    Only then: what the page or the database says wrongly fails at once.
    """
    for item in items:
        if item.get_closest_marker("app"):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun="TimeoutError"))


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots go, for people to look at; outside the repository."""
    folder = os.environ.get("REGIONCAP_ARTIFACTS") or tempfile.mkdtemp()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def serve(fiftyone_database: str) -> Iterator[Callable[[str], str]]:
    """Serves a dataset's App with the plugin loaded; gives its address."""
    running: list[subprocess.Popen[bytes]] = []

    def start(dataset: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "FIFTYONE_PLUGINS_DIR": str(ROOT),
            # Else a question about analytics lies over the lower part of the page.
            "FIFTYONE_DO_NOT_TRACK": "true",
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SERVE, dataset, str(port)],
                env=environment,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(address, timeout=5)
                return f"{address}/datasets/{dataset}"
            time.sleep(0.5)
        raise TimeoutError("the App did not come up in 180 s")

    yield start
    for process in running:
        # The server is a child of the session's process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


@pytest.fixture
def page(tmp_path: Path, artifacts: Path) -> Iterator[Any]:
    """A page in a fresh headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": 1500, "height": 950},
        )
        browser.set_default_timeout(120_000)
        page = browser.new_page()
        yield page
        page.screenshot(path=artifacts / "last.png")
        browser.close()


@pytest.fixture
def open_operator() -> Callable[[Any, str], None]:
    """Opens an operator's form, by its name, from the operator browser."""

    def start(page: Any, name: str) -> None:
        page.keyboard.press("Escape")  # a modal that an earlier visit left open
        page.keyboard.press("`")
        search = page.get_by_placeholder("Search operations by name...")
        search.wait_for()
        search.fill(name)
        page.get_by_text(name, exact=True).first.click()
        page.get_by_role("button", name="Execute").first.wait_for()

    return start


@pytest.fixture
def point_until() -> Callable[..., None]:
    """Points at the open sample until the page shows something.

    The player hides its controls while nobody points at it, and a tooltip comes with a
    movement over a mask that is drawn already: what a person would do is move again.
    """

    def point(page: Any, place: Callable[[dict[str, float]], Any], shown: Any) -> None:
        canvas = page.locator("[data-cy=modal] canvas").first
        canvas.wait_for()
        deadline = time.monotonic() + 120
        while not shown.is_visible():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not shown in 120 s: {shown}")
            x, y = place(canvas.bounding_box())
            page.mouse.move(x + 3, y)
            page.mouse.move(x, y)
            page.wait_for_timeout(500)

    return point
