"""What a person does on Prefect's pages, by what they read there: titles, labels, buttons.

Prefect 3.9 serves two designs of its pages; this drives the newer, its default, below `/v2`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Request

MISSING = "needs Chromium and playwright: make browser"
PATIENCE_MS = 120_000
WIDTH, HEIGHT = 1400, 1000


def chromium_path() -> str | None:
    """Where Debian, or another, has it."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium. Without its sandbox, which a superuser cannot have: it opens nothing but this machine's pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def loopback_page(browser: Browser) -> Iterator[Page]:
    """A page whose requests to other machines are refused: Prefect's asks a statistics service for its settings."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", locale="en-GB")
    context.route(lambda url: urlsplit(url).hostname not in ("127.0.0.1", "localhost"), lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    try:
        yield page
    finally:
        context.close()


class PrefectPages:
    """The pages of one Prefect server."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url.rstrip("/")

    def open_form(self, deployment: str) -> None:
        """Go from the list of deployments to one's form. The list's search is part of its address, where it is given: what is
        typed comes there a moment later, and would take a click before that back to the list."""
        self.page.goto(f"{self.url}/v2/deployments?flowOrDeploymentName={quote(deployment)}")
        name = re.compile(rf"^{re.escape(deployment)}$")
        self.page.locator("a[href*='/deployments/deployment/']").filter(has_text=name).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        self.page.get_by_role("button", name="Submit").wait_for()

    def choose(self, title: str, *values: str) -> None:
        """Choose a select's value, or several of a multi-select."""
        self._open_list(title)
        for value in values:
            self.page.get_by_role("option", name=value, exact=True).click()
        self._close_list()

    def choices(self, title: str) -> list[str]:
        """What a select offers."""
        self._open_list(title)
        found = self.page.get_by_role("option").all_inner_texts()
        self._close_list()
        return found

    def _open_list(self, title: str) -> None:
        self.page.get_by_label(f"Select {title}", exact=True).click()
        self.page.get_by_role("option").first.wait_for()

    def _close_list(self) -> None:
        """Wait for its end as well: a list that is still fading away takes the next click for itself."""
        if self.page.get_by_role("option").count():
            self.page.keyboard.press("Escape")
        self.page.get_by_role("option").first.wait_for(state="detached")

    def fill(self, title: str, value: str) -> None:
        """Write into a field."""
        self.page.get_by_label(f"{title} (Optional)", exact=True).fill(value)

    def add(self, title: str, value: str) -> None:
        """Add an item to a list, and write into it."""
        item = self.list_of(title)
        item.get_by_role("button", name="Add item").click()
        item.locator("input, textarea").last.fill(value)

    def list_of(self, title: str) -> Locator:
        """The part of the form that holds a list's items."""
        return self.page.get_by_text(f"{title} (Optional)", exact=True).locator(
            "xpath=ancestor::*[fieldset][1]/fieldset"
        )

    def complaint(self, title: str) -> str:
        """What the browser says of a field's value."""
        said: str = self.page.get_by_label(f"{title} (Optional)", exact=True).evaluate(
            "field => field.validationMessage"
        )
        return said

    def submit(self) -> str:
        """Start the run, and go to its page; the flow run's id. The page may only check the form again at the first press,
        after it had found a fault, and a busy server may refuse one: a person presses once more, but not while there is
        no answer, which would start a second run."""
        asked: list[Request] = []
        self.page.on("request", lambda one: asked.append(one) if one.url.endswith("/create_flow_run") else None)
        for _ in range(3):
            del asked[:]
            self.page.get_by_role("button", name="Submit").click()
            end = time.monotonic() + 60
            while not asked and time.monotonic() < end:
                self.page.wait_for_timeout(100)
            answer = asked[0].response() if asked else None
            if answer is not None and answer.status == 201:
                run = str(answer.json()["id"])
                self.open_run(run)
                return run
        raise AssertionError(f"the form was not taken:\n{self.page.locator('form').inner_text()}")

    def open_run(self, run: str, tab: str | None = None) -> None:
        """A flow run's page."""
        self.page.goto(f"{self.url}/v2/runs/flow-run/{run}")
        if tab is not None:
            self.tab(tab)

    def tab(self, name: str) -> None:
        """One of the tabs of the page."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def open_artifact(self, key: str) -> None:
        """An artifact of the run that is shown, from the tab of them."""
        self.page.get_by_text(key, exact=True).first.click()
        self.page.wait_for_url(re.compile("/artifacts/"))

    def sees(self, text: str | re.Pattern[str], timeout: float = PATIENCE_MS) -> None:
        """Wait until the page shows a text."""
        self.page.get_by_text(text).first.wait_for(timeout=timeout)

    def act(self, *buttons: str) -> None:
        """Choose an entry of a run's menu, then buttons of the dialogues that follow."""
        entry, *confirm = buttons
        self.page.get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()
        for button in confirm:
            self.page.get_by_role("dialog").or_(self.page.get_by_role("alertdialog")).get_by_role(
                "button", name=button, exact=True
            ).click()
