"""State lives on the server: reload, sleep, a second tab, a slow start, and the job is still there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from zimage_ui.generator.fake import FakeScript
from zimage_ui.jobs.records import JobPhase

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visit, Visiting
    from tests.web.conftest import Studio
    from zimage_ui.generator.fake import FakeGenerator

HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def begin(person: Visit, studio: Studio, prompt: str) -> None:
    person.prompt.fill(prompt)
    person.generate.click()
    assert studio.generator.entered.wait(30)


def test_a_reload_finds_the_job_running(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, gated: FakeGenerator
) -> None:
    with run_studio(tmp_path, generator=gated) as studio:
        person = visit(studio).open()
        begin(person, studio, "still here after the reload")
        person.page.reload()
        person.until_ready()
        expect(person.cancel).to_be_visible()
        expect(person.account).to_contain_text(re.compile("so far"))
        expect(person.prompt).to_have_value("still here after the reload")

        second = visit(studio, context=person.page.context).open()
        expect(second.cancel).to_be_visible()
        assert gated.gate is not None
        gated.gate.set()
        for page in (person, second):
            expect(page.picture).to_be_visible()
            expect(page.account).to_contain_text("still here after the reload")


def test_a_running_job_is_cancelled_from_another_tab(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, gated: FakeGenerator
) -> None:
    with run_studio(tmp_path, generator=gated) as studio:
        person = visit(studio).open()
        begin(person, studio, "never to be seen")
        other = visit(studio).open()
        with other.page.expect_response("**/gradio_api/run/predict"):  # the server knows before the job may go on
            other.cancel.click()
        assert gated.gate is not None
        gated.gate.set()
        for page in (person, other):
            expect(page.generate).to_be_visible()
            expect(page.picture).to_have_count(0)
        (record,) = studio.board.recent(5)
        assert record.phase is JobPhase.CANCELLED
        assert studio.client.get("/api/pictures").json()["count"] == 0


def test_a_waiting_job_is_cancelled_before_it_begins(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    with run_studio(tmp_path, started=False) as studio:
        person = visit(studio).open()
        person.prompt.fill("waits for the model")
        person.prompt.press("Enter")
        expect(person.page.locator("zi-canvas")).to_contain_text("Waiting for the model to be ready")
        expect(person.account).to_contain_text("Waiting")
        person.cancel.click()
        expect(person.generate).to_be_visible()
        assert studio.services.jobs.queue_length == 0


def test_more_can_wait_behind_the_running_job(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, gated: FakeGenerator
) -> None:
    with run_studio(tmp_path, generator=gated) as studio:
        person = visit(studio).open()
        begin(person, studio, "the first")
        person.prompt.fill("the second")
        person.page.get_by_role("button", name="Queue another").click()
        expect(person.page.locator("zi-header")).to_contain_text("Generating, 1 waiting")
        expect(person.page.locator("zi-machine .zi-counters")).to_contain_text(re.compile(r"Jobs waiting\s*1"))
        assert gated.gate is not None
        gated.gate.set()
        expect(person.account.locator(".zi-prompt-line")).to_have_text("the second")
        expect(person.thumbs).to_have_count(2)


def test_the_warm_up_is_shown_and_what_was_typed_meanwhile_stays(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    script = FakeScript(load_s=0.6, warmup_s=0.6)
    with run_studio(tmp_path, script=script, started=False) as studio:
        person = visit(studio).open()
        expect(person.page.locator("zi-warmup")).to_contain_text("Starting")
        expect(person.page.get_by_role("radio", name="512 × 512")).to_be_checked()
        person.prompt.fill("typed while it loads")
        person.page.get_by_role("button", name="More steps").click()
        person.read(
            """() => {
              window.seen = [];
              const warmup = document.querySelector("zi-warmup");
              const note = () => window.seen.push(warmup.innerText);
              new MutationObserver(note).observe(warmup, {childList: true, subtree: true});
            }"""
        )
        studio.services.jobs.start()
        expect(person.page.locator("zi-header")).to_contain_text("Ready")
        expect(person.page.locator("zi-warmup")).to_be_hidden()
        seen = " ".join(person.read("window.seen"))
        assert "Loading the model" in seen
        assert "fake weights 2 of 4" in seen
        assert "Warming up" in seen

        # The model wants other sizes; the steps were the person's choice.
        expect(person.page.get_by_role("radio", name="384 × 384")).to_be_checked()
        expect(person.page.locator("#zi-steps input")).to_have_value("9")
        expect(person.prompt).to_have_value("typed while it loads")
        expect(person.page.locator("zi-model")).to_contain_text("nothing is computed")


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    with run_studio(tmp_path, script=FakeScript(fail_load=True), started=False) as studio:
        person = visit(studio).open()
        studio.services.jobs.start()
        expect(person.page.locator("zi-header")).to_contain_text("Not able to make pictures")
        expect(person.page.locator("zi-warmup")).to_contain_text("The fake model was told not to be found.")
        person.prompt.fill("in vain")
        person.generate.click()
        expect(person.toasts).to_contain_text("Not ready")


def test_a_hidden_page_closes_its_stream_and_opens_it_again(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path) as studio:
        streams = studio.server.config.app.state.streams
        person = visit(studio).open()
        assert streams.viewers == 1
        person.page.evaluate(HIDE, True)
        person.page.wait_for_function(
            "performance.getEntriesByType('resource').some((each) => each.name.endsWith('/telemetry'))"
        )
        studio.client.post("/v1/images/generations", json={"prompt": "made while nobody looked", "size": "256x256"})
        assert streams.viewers == 0
        person.page.evaluate(HIDE, False)
        expect(person.account).to_contain_text("made while nobody looked")
        expect(person.thumbs).to_have_count(1)
        assert streams.viewers == 1


def test_settings_are_remembered(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.prompt.fill("remembered")
    person.page.get_by_role("radio", name="192 × 320").check(force=True)
    person.page.get_by_role("button", name="More pictures").click()
    person.page.get_by_role("button", name="Fewer steps").click()
    person.page.locator("#zi-seed input").fill("12")
    person.page.locator("#zi-seed input").press("Tab")
    expect(person.page.locator("#zi-count input")).to_have_value("2")
    expect(person.page.locator("#zi-steps input")).to_have_value("7")
    person.page.wait_for_function("localStorage.getItem('zimage.form')?.includes('\"seed\":\"12\"')")
    person.page.wait_for_function("localStorage.getItem('zimage.form')?.includes('\"steps\":7')")
    person.page.reload()
    person.until_ready()
    expect(person.prompt).to_have_value("remembered")
    expect(person.page.get_by_role("radio", name="192 × 320")).to_be_checked()
    expect(person.page.locator("#zi-count input")).to_have_value("2")
    expect(person.page.locator("#zi-steps input")).to_have_value("7")
    expect(person.page.locator("#zi-seed input")).to_have_value("12")


def test_a_lost_connection_is_said_and_mended(shared: Studio, visit: Visiting) -> None:
    person = visit(shared)
    person.page.route("**/telemetry", lambda route: route.fulfill(status=503, body=""))
    person.open()
    header = person.page.locator("zi-header")
    expect(header).to_contain_text("Connection lost")
    person.page.unroute("**/telemetry")
    expect(header).to_contain_text("Ready")
    person.problems.clear()  # the browser notes every 503 as a problem of its own


def test_a_job_that_a_new_server_does_not_know_is_forgotten(shared: Studio, visit: Visiting) -> None:
    view = {
        "job_id": "0" * 16, "client": "x", "phase": "running", "prompt": "gone with the old server", "width": 256,
        "height": 256, "num_images": 1, "num_inference_steps": 8, "seed": 1, "stage": "sample", "step": 3,
        "num_steps": 8, "preview": None, "pictures": [], "timings_ms": None, "elapsed_ms": 10.0, "error": None,
        "untrained": True, "revision": 9,
    }  # fmt: skip
    stream = f"retry: 100\n\nevent: job\ndata: {json.dumps(view)}\n\n"
    person = visit(shared)
    person.page.route(
        "**/telemetry", lambda route: route.fulfill(content_type="text/event-stream", body=stream), times=1
    )
    person.open()
    expect(person.cancel).to_be_visible()
    expect(person.cancel).to_be_hidden()
    expect(person.page.locator("zi-header")).to_contain_text("Ready")
