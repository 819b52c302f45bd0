"""What goes wrong is said in words, and what anybody typed is only ever text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

from zimage_ui.generator.base import GenerationResult
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.request import Precision
from zimage_ui.stages import Stage

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visiting
    from tests.web.conftest import Studio

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg onload=alert(1)>{{constructor.constructor('alert(1)')()}}",
    "${alert(1)} </textarea><iframe srcdoc='<script>parent.alert(1)</script>'>",
]


def test_prompts_are_text_everywhere(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    for prompt in ATTACKS:
        person.make(prompt)
        expect(person.account.locator(".zi-prompt-line")).to_have_attribute("title", prompt)
        expect(person.picture).to_have_attribute("alt", prompt)
        expect(person.thumbs.first.get_by_role("button")).to_have_attribute("title", prompt)
    person.page.reload()
    person.until_ready()
    expect(person.account.locator(".zi-prompt-line")).to_have_text(ATTACKS[-1])
    expect(person.thumbs).to_have_count(len(ATTACKS))
    assert person.page.locator("zi-canvas script, zi-canvas iframe, zi-strip script, #zi-shell img[src=x]").count() == 0


def test_a_mistake_is_quoted_as_text_in_the_language_of_the_page(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.prompt.fill("   ")
    person.generate.click()
    expect(person.toasts).to_contain_text("The prompt is empty.")
    expect(person.prompt).to_be_focused()

    person.prompt.fill("a boat")
    seed = person.page.locator("#zi-seed input")
    seed.fill("<img src=x onerror=alert(1)>")
    person.generate.click()
    expect(person.toasts).to_have_count(1)
    expect(person.toasts).to_contain_text("That cannot be made")
    expect(person.toasts).to_contain_text("<img src=x onerror=alert(1)>")
    expect(person.toasts).to_contain_text("Leave it empty to have one drawn.")
    expect(seed).to_be_focused()
    assert person.toasts.locator("img").count() == 0

    person.page.get_by_role("button", name="中文").click()
    person.generate.click()
    expect(person.toasts).to_contain_text("无法按此生成")
    seed.fill("")
    person.generate.click()
    expect(person.toasts).to_have_count(0)
    expect(person.account.locator(".zi-prompt-line")).to_have_text("a boat")


def test_a_full_queue_is_said(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    with run_studio(tmp_path, started=False, queue_size=1) as studio:
        person = visit(studio).open()
        person.prompt.fill("one too many")
        person.prompt.press("Enter")
        expect(person.cancel).to_be_visible()
        person.prompt.press("Enter")
        expect(person.toasts).to_contain_text("The queue is full")
        expect(person.toasts).to_contain_text("Try again in about")


def test_a_failed_job_says_what_and_what_to_do(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    script = FakeScript(out_of_memory_at=Stage.SAMPLE, failures=1)
    with run_studio(tmp_path, script=script) as studio:
        person = visit(studio).open()
        person.prompt.fill("too large")
        person.prompt.press("Enter")
        canvas = person.page.locator("zi-canvas")
        expect(canvas).to_contain_text("Out of memory")
        expect(canvas).to_contain_text("Ask for a smaller size.")
        expect(person.generate).to_be_visible()
        person.generate.click()
        expect(person.picture).to_be_visible()
        expect(canvas).not_to_contain_text("Out of memory")


class PressedGenerator(FakeGenerator):
    """Has to do with less memory than it was loaded with, and computes in eight bits."""

    def generate(self, *args: Any, **options: Any) -> GenerationResult:
        return replace(super().generate(*args, **options), memory_plan="smallest", precision=Precision.FP8)


def test_what_was_cut_and_what_was_made_with_less_is_said(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path, generator=PressedGenerator(FakeScript(max_prompt_tokens=4))) as studio:
        person = visit(studio).open()
        person.make("these are seven words in all here")
        expect(person.account).to_contain_text("3 tokens cut off")
        expect(person.account).to_contain_text("memory plan: smallest")
        expect(person.account).to_contain_text("FP8, not exact")


def test_a_server_that_does_not_take_it_is_said(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.page.route("**/gradio_api/run/**", lambda route: route.fulfill(status=403, body="{}"))
    person.prompt.fill("refused")
    person.generate.click()
    expect(person.toasts).to_contain_text("The server did not take it")
    person.problems.clear()  # the browser notes every 403 as a problem of its own
