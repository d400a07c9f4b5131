"""What a person does with the FiftyOne App in a browser.

Each step ends once the page shows its result, however long that takes: nothing depends
on the speed of the machine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 300
"""Time after which something that should come true never will."""

SECONDS_TO_ANSWER = 30
"""Time after which a gesture is made again."""


def wait_until(condition: Callable[[], Any], what: str = "it") -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} does not come true")
        time.sleep(0.2)


def box_of(locator: Any) -> dict[str, float]:
    """Where something is on the page, once it stays there."""
    found: list[dict[str, float] | None] = [None]

    def still() -> bool:
        found.append(locator.bounding_box())
        return found[-1] is not None and found[-1] == found[-2]

    wait_until(still, f"the place of {locator}")
    box = found[-1]
    assert box is not None
    return box


@dataclass(frozen=True)
class AppPage:
    """The App's page, as Playwright has it.

    Attributes:
        page: The page.
    """

    page: Any

    def open(self, address: str) -> None:
        """Opens a dataset's grid, and closes the banner over it."""
        self.page.goto(address)
        self.page.locator("[data-cy=looker]").first.wait_for()
        self.page.get_by_role("button", name="Dismiss").click()

    def open_sample(self) -> None:
        """Opens the first sample of the grid."""
        self.page.locator("[data-cy=looker]").first.click()
        self.page.locator("#modal.modalon").wait_for()

    def open_panel(self, name: str) -> None:
        """Opens a panel beside those of the grid."""
        self.page.get_by_title("New panel").last.click()
        self.page.get_by_text(name, exact=True).last.click()

    def split_beside(self, name: str) -> None:
        """Puts a panel, which has a tab already, beside the open sample."""
        modal = self.page.locator("#modal")
        modal.get_by_text(name, exact=True).last.click()
        modal.get_by_title("Split horizontally").last.click()
        modal.get_by_text("Sample", exact=True).last.click()

    def open_operator(self, name: str) -> None:
        """Opens an operator's form, by its name, from the operator browser."""
        self.page.keyboard.press("Escape")  # a modal that an earlier visit left open
        self.page.keyboard.press("`")
        search = self.page.get_by_placeholder("Search operations by name...")
        search.wait_for()
        search.fill(name)
        self.page.get_by_text(name, exact=True).first.click()
        self.page.get_by_role("button", name="Execute").first.wait_for()

    def told(self, value: str) -> Any:
        """Waits until the App's server has answered to a value.

        The App tells it of what is typed some time later, and forgets what wasn't told
        when a button is pressed.
        """
        texts = {json.dumps(value, ensure_ascii=False), f":{value},", f":{value}}}"}

        def has_it(answer: Any) -> bool:
            sent = answer.request.post_data or "" if "/operators/" in answer.url else ""
            return any(text in sent for text in texts)

        return self.page.expect_response(has_it)

    def fill(self, field: Any, text: str) -> None:
        """Types into a field of a form or a panel."""
        field.scroll_into_view_if_needed()
        if field.input_value() != text:
            with self.told(text):
                field.fill(text)

    def fill_below(self, label: str, text: str) -> None:
        """Types into the input below a label of a form."""
        found = self.page.get_by_role("dialog").get_by_text(label, exact=True).first
        self.fill(found.locator("xpath=following::input[1]"), text)

    def choose(self, shown: str, wanted: str, value: str | None = None) -> None:
        """Chooses another value of a form.

        Args:
            shown: Text of the value that is chosen, or its name and ``": "``.
            wanted: Beginning of the text of the other.
            value: The other value; None for what is before its text's colon.
        """
        beginning = shown.endswith(": ")
        text = re.compile(f"^{re.escape(shown)}{'' if beginning else '$'}")
        self.page.get_by_role("dialog").get_by_text(text).first.click()
        with self.told(wanted.partition(":")[0] if value is None else value):
            self.page.get_by_role("option", name=wanted).first.click()

    def settle(self) -> None:
        """Waits until the open form is checked."""
        spinning = self.page.get_by_role("dialog").get_by_role("progressbar")
        wait_until(lambda: not spinning.count(), "a form that is checked")

    def execute(self, says: str | re.Pattern[str]) -> None:
        """Runs what a form is filled for, and waits for its summary."""
        self.settle()
        self.page.get_by_role("button", name="Execute").first.click()
        self.page.get_by_text(says).first.wait_for(timeout=1000 * SECONDS)

    def close(self) -> None:
        """Closes a summary."""
        self.page.get_by_role("button", name="Done").click()
        self.page.get_by_role("dialog").wait_for(state="hidden")

    def repeat(self, gesture: Callable[[], None], done: Callable[[], bool]) -> None:
        """Makes a gesture until something is done: the page may not be ready for it."""

        def made() -> bool:
            gesture()
            deadline = time.monotonic() + SECONDS_TO_ANSWER
            while not done() and time.monotonic() < deadline:
                self.page.wait_for_timeout(200)
            return done()

        wait_until(made, "a gesture's effect")

    def point_until(
        self, place: Callable[[dict[str, float]], tuple[float, float]], shown: Any
    ) -> None:
        """Points at the open sample until the page shows something.

        The player hides its controls while nobody points at it, and a tooltip comes
        with a movement over a mask that is drawn already: a person would move again.
        """
        canvas = self.page.locator("[data-cy=modal] canvas").first
        canvas.wait_for()

        def moved() -> bool:
            x, y = place(box_of(canvas))
            self.page.mouse.move(x + 3, y)
            self.page.mouse.move(x, y)
            self.page.wait_for_timeout(500)
            return shown.is_visible()

        wait_until(moved, f"{shown}")
