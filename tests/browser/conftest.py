from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.web.conftest import LiveServer, Studio
from zimage_ui.generator.base import ModelInfo, ProgressListener
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.service import JobService
from zimage_ui.settings import Settings
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver
from zimage_ui.telemetry.fake import FakeProbe
from zimage_ui.telemetry.sampler import Sampler
from zimage_ui.ui.page import build_page
from zimage_ui.web.server import Services, create_app, end_streams

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No sandbox, because tests run as root; the rest keeps the browser itself from calling home.
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PATIENCE_S = 30.0
PATIENCE_MS = PATIENCE_S * 1000
# Fast enough for a test, slow enough that every step can be seen.
VISIBLE = FakeScript(encode_s=0.05, step_s=0.08, decode_s=0.05)
QUICK = FakeScript(encode_s=0.01, step_s=0.01, decode_s=0.01)

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: as long as it lives, no other test on this thread can run an event loop."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"No browser: none of {', '.join(BROWSERS)} is installed. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


class StepGate(threading.Event):
    """A generator's gate that lets through as many steps as it is told; once set, all."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self._steps = threading.Semaphore(steps)

    def allow(self, steps: int) -> None:
        self._steps.release(steps)

    def wait(self, timeout: float | None = None) -> bool:
        return self._steps.acquire(timeout=timeout)

    def set(self) -> None:
        super().set()
        self._steps.release(10_000)


class TrainedGenerator(FakeGenerator):
    """Says that its pictures mean something."""

    def load(self, progress: ProgressListener) -> ModelInfo:
        self._info = replace(super().load(progress), trained=True)
        return self._info


@pytest.fixture
def gated() -> FakeGenerator:
    """A generator that waits before each step until its gate lets it through."""
    return FakeGenerator(gate=StepGate())


@dataclass
class Visit:
    """One page in one browser, and everything about it that must not happen."""

    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))

    @property
    def foreign_requests(self) -> list[str]:
        own = (f"{self.origin}/", "data:", "blob:")
        return [url for url in self.requests if not url.startswith(own)]

    def open(self) -> Visit:
        self.page.goto(self.origin)
        return self.until_ready()

    def until_ready(self) -> Visit:
        """Until the words are there and the form knows the model."""
        self.page.wait_for_selector("html[data-zi-ready]", timeout=PATIENCE_MS)
        expect(self.page.locator("zi-canvas .zi-canvas-words")).to_be_attached()
        return self

    def shot(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")

    # ---- the parts of the page, by what they are to people ----

    @property
    def prompt(self) -> Locator:
        return self.page.locator("#zi-prompt textarea")

    @property
    def generate(self) -> Locator:
        return self.page.locator("#zi-generate")

    @property
    def cancel(self) -> Locator:
        return self.page.locator("#zi-cancel")

    @property
    def picture(self) -> Locator:
        return self.page.locator("zi-canvas img.zi-picture")

    @property
    def preview(self) -> Locator:
        return self.page.locator("zi-canvas img.zi-preview")

    @property
    def account(self) -> Locator:
        return self.page.locator("zi-timings")

    @property
    def thumbs(self) -> Locator:
        return self.page.locator("zi-strip li")

    @property
    def toasts(self) -> Locator:
        return self.page.locator("zi-toasts .zi-toast")

    def make(self, prompt: str) -> None:
        """Ask for a picture and wait until its account stands."""
        self.prompt.fill(prompt)
        self.generate.click()
        expect(self.account.locator(".zi-prompt-line")).to_have_text(prompt)
        expect(self.account.locator(".zi-total")).to_be_visible()

    def read(self, script: str) -> Any:
        return self.page.evaluate(script)


Visiting = Callable[..., Visit]


def box_of(part: Locator) -> dict[str, Any]:
    box = part.bounding_box()
    assert box is not None
    return dict(box)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visiting]:
    """Open browsers' pages on a studio; afterwards nothing may have gone wrong in any of them."""
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def open_page(studio: Studio, *, context: BrowserContext | None = None, **options: Any) -> Visit:
        if context is None:
            settings = {"viewport": DESKTOP, "locale": "en-US", "color_scheme": "light", **options}
            context = browser.new_context(**settings)
            contexts.append(context)
        visits.append(Visit(context.new_page(), studio.server.url))
        return visits[-1]

    yield open_page
    problems = [problem for each in visits for problem in each.problems]
    foreign = [url for each in visits for url in each.foreign_requests]
    for context in contexts:
        context.close()
    assert problems == []
    assert foreign == []


@contextmanager
def studio_with_page(
    folder: Path,
    *,
    script: FakeScript = VISIBLE,
    generator: Any = None,
    probe: FakeProbe | None = None,
    interval_s: float = 0.2,
    started: bool = True,
    **settings: Any,
) -> Iterator[Studio]:
    """A whole service with its page: everything is real but the model and the sensors."""
    generator, probe = generator or FakeGenerator(script), probe or FakeProbe()
    options = Settings(output_dir=folder / "outputs", telemetry_interval_s=interval_s, **settings)
    output = OutputFolder(options.output_dir)
    output.prepare()
    with ExitStack() as stack:
        library = stack.enter_context(closing(Library(output)))
        sampler = stack.enter_context(closing(Sampler(probe, interval_s)))
        saver = Saver(output, library, threads=1, max_pending=8)
        stack.callback(saver.close, PATIENCE_S)
        jobs = JobService(generator, saver, queue_size=options.queue_size)
        stack.callback(jobs.close, PATIENCE_S)
        services = Services(
            jobs=jobs,
            saver=saver,
            library=library,
            sampler=sampler,
            settings=options,
            generator_stats=generator.cache_stats,
            started_at_s=time.monotonic(),
        )
        # Playwright's event loop is running on this thread, and Gradio wants one of its own.
        with ThreadPoolExecutor(1) as thread:
            app = thread.submit(lambda: create_app(services, build_page(jobs, options))).result(PATIENCE_S)
        sampler.start()
        saver.start()
        server = stack.enter_context(LiveServer(app, lambda: end_streams(app)))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE_S))
        if getattr(generator, "gate", None) is not None:
            stack.callback(generator.gate.set)
        studio = Studio(services, generator, probe, server, client)
        if started:
            jobs.start()
            studio.wait_until_ready()
        yield studio


StudioMaker = Callable[..., AbstractContextManager[Studio]]


@pytest.fixture(scope="session")
def run_studio() -> StudioMaker:
    """Run a whole service with its page in a folder, as a context manager."""
    return studio_with_page


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A service with its page that is ready, for one test."""
    with studio_with_page(tmp_path) as studio:
        yield studio


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A service with its page that is ready, for all tests of a module that only add pictures."""
    with studio_with_page(tmp_path_factory.mktemp("shared"), script=QUICK) as studio:
        yield studio
