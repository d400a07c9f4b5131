"""The FiftyOne App with this plugin, in headless Chromium."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.app import SECONDS, AppPage

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
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(address, timeout=30)
                return f"{address}/datasets/{dataset}"
            time.sleep(0.5)
        raise TimeoutError(f"the App did not come up in {SECONDS} s")

    yield start
    for process in running:
        # The server is a child of the session's process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


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
            timeout=1000 * SECONDS,
            viewport={"width": 1500, "height": 950},
        )
        browser.set_default_timeout(1000 * SECONDS)
        page = browser.new_page()
        yield page
        page.screenshot(path=artifacts / "last.png")
        browser.close()


@pytest.fixture
def app(page: Any) -> AppPage:
    """The page, with what a person does there."""
    return AppPage(page)
