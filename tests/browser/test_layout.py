"""How it looks and feels: one screen on a desk, a thumb's reach on a phone, two languages, two schemes, keys."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE, StepGate, TrainedGenerator, box_of
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.generator.profiles import BASE

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.browser.conftest import StudioMaker, Visiting
    from tests.web.conftest import Studio

# A control's accessible name, as assistive technology works it out.
NAMELESS = """() => [...document.querySelectorAll("button, a[href], input, textarea")]
  .filter((each) => each.checkVisibility({visibilityProperty: true}))
  .filter((each) => !(each.getAttribute("aria-label") || each.innerText?.trim() || each.textContent?.trim()
    || [...(each.labels ?? [])].some((label) => label.textContent.trim())))
  .map((each) => each.outerHTML.slice(0, 120))"""
# Controls of the form that lie over each other.
OVERLAPPING = """() => {
  const boxes = [...document.querySelectorAll("#zi-compose :is(.zi-option, .zi-field, button, #zi-negative)")]
    .filter((each) => each.checkVisibility() && !each.closest(".zi-field button"))
    .map((each) => [each.outerHTML.slice(0, 80), each.getBoundingClientRect(), each]);
  const overlap = ([, a, one], [, b, other]) => !one.contains(other) && !other.contains(one)
    && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const later = (place) => boxes.slice(place + 1);
  return boxes.flatMap((one, place) => later(place).filter((other) => overlap(one, other)).map(([name]) => name));
}"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def is_inside(part: Locator, size: dict[str, int]) -> bool:
    box = box_of(part)
    fits_across = box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    return fits_across and box["y"] >= 0 and box["y"] + box["height"] <= size["height"]


def test_on_a_desk_everything_that_matters_is_on_one_screen(shared: Studio, visit: Visiting) -> None:
    person = visit(shared, viewport=DESKTOP).open()
    person.make("one screen")
    expect(person.page.locator("zi-chart .barlayer .bars")).to_have_count(6)
    parts = [
        person.prompt,
        person.generate,
        person.picture,
        person.account,
        person.thumbs.first,
        person.page.locator("zi-machine"),
        person.page.locator("zi-chart"),
        person.page.get_by_role("button", name="中文"),
    ]
    for part in parts:
        assert is_inside(part, DESKTOP), part
    assert person.read("document.documentElement.scrollHeight") == DESKTOP["height"]
    assert not person.read(SIDEWAYS)
    assert box_of(person.picture)["height"] > DESKTOP["height"] * 0.5
    assert person.read(NAMELESS) == []


def test_on_a_phone_the_picture_comes_first_and_the_form_is_at_the_thumb(shared: Studio, visit: Visiting) -> None:
    person = visit(shared, viewport=PHONE, has_touch=True, is_mobile=True).open()
    person.make("in one hand")
    assert box_of(person.picture)["y"] < PHONE["height"] * 0.2
    assert box_of(person.picture)["width"] > PHONE["width"] * 0.9
    for part in (person.prompt, person.generate):
        assert is_inside(part, PHONE)
        assert box_of(part)["y"] > PHONE["height"] * 0.75
    assert box_of(person.generate)["height"] >= 44
    assert not person.read(SIDEWAYS)

    machine = person.page.locator("zi-machine")
    assert box_of(machine)["y"] > box_of(person.account)["y"]
    machine.scroll_into_view_if_needed()
    assert is_inside(person.generate, PHONE)

    person.page.get_by_role("button", name="More", exact=True).tap()
    expect(person.page.locator("#zi-steps input")).to_be_visible()
    assert is_inside(person.page.locator("#zi-compose"), PHONE)
    person.page.get_by_role("button", name="Fewer steps").tap()
    expect(person.page.locator("#zi-steps input")).to_have_value("7")


def test_nothing_sticks_out_at_any_width(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    for width in (360, 640, 768, 1024, 1099, 1100, 1280, 1920):
        size = {"width": width, "height": 800}
        person.page.set_viewport_size(size)  # type: ignore[arg-type]
        assert not person.read(SIDEWAYS), width
        assert is_inside(person.generate, size), width
        assert person.read(OVERLAPPING) == [], width


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_screenshots(tmp_path: Path, run_studio: StudioMaker, visit: Visiting, size: dict[str, int]) -> None:
    """For people to look at; and both schemes are really drawn."""
    kind = "desktop" if size is DESKTOP else "phone"
    gate = StepGate(4)
    with run_studio(tmp_path, generator=FakeGenerator(gate=gate)) as studio:
        person = visit(studio, viewport=size, reduced_motion="reduce").open()
        person.prompt.fill("A celadon vase with one branch of plum blossom, studio photo, soft window light")
        person.generate.click()
        expect(person.account).to_contain_text("Step 4 of 8")
        person.shot(f"{kind}-running")
        gate.set()
        expect(person.account.locator(".zi-total")).to_be_visible()
        person.page.locator("zi-chart").scroll_into_view_if_needed()
        expect(person.page.locator("zi-chart .barlayer .bars")).to_have_count(6)
        person.read("window.scrollTo(0, 0)")
        for language, button in (("en", "EN"), ("zh", "中文")):
            person.page.get_by_role("button", name=button, exact=True).click()
            for scheme, paper in (("light", "rgb(244, 246, 243)"), ("dark", "rgb(13, 17, 16)")):
                person.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                expect(person.page.locator("body")).to_have_css("background-color", paper)
                expect(person.page.locator("zi-chart")).to_have_attribute("data-scheme", scheme)
                person.shot(f"{kind}-{scheme}-{language}")


def test_chinese_reaches_every_part_and_every_control_has_a_name(shared: Studio, visit: Visiting) -> None:
    person = visit(shared, locale="zh-CN").open()
    person.make("一只猫")
    for selector, words in {
        "zi-header": "就绪",
        "zi-machine": "机器",
        "zi-chart": "最近任务",
        "zi-model": "计算精度",
        "zi-timings": "总计",
        "#zi-seed-field": "种子",
        "#zi-steps-field": "步数",
        "#zi-count-field": "张数",
        "#zi-generate": "生成",
    }.items():
        expect(person.page.locator(selector)).to_contain_text(words)
    expect(person.prompt).to_have_attribute("placeholder", re.compile("描述"))
    expect(person.page.get_by_role("button", name="随机种子")).to_be_visible()
    person.page.get_by_role("button", name="更多").click()
    assert person.read(NAMELESS) == []
    assert person.page.locator("img:not([alt])").count() == 0
    assert person.page.locator("html[lang='zh-Hans']").count() == 1


def test_the_choice_of_language_outlives_the_page(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.page.get_by_role("button", name="中文").click()
    expect(person.generate).to_have_text("生成")
    person.page.reload()
    person.until_ready()
    expect(person.generate).to_have_text("生成")


def test_enter_generates_but_not_while_a_word_is_being_composed(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    before = len(shared.board.recent(200))
    person.prompt.fill("one line")
    person.prompt.press("Shift+Enter")
    person.prompt.press_sequentially("two lines")
    expect(person.prompt).to_have_value("one line\ntwo lines")
    person.prompt.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert len(shared.board.recent(200)) == before

    person.prompt.press("Enter")
    expect(person.account.locator(".zi-prompt-line")).to_have_attribute("title", "one line\ntwo lines")
    person.page.locator("#zi-seed input").focus()
    person.page.keyboard.press("Control+Enter")
    shared.wait_for(lambda: len(shared.board.recent(200)) == before + 2)


def test_a_guided_model_shows_guidance_and_a_trained_one_no_warning(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = replace(BASE, num_inference_steps=5)
    monkeypatch.setattr("zimage_ui.generator.fake.FAKE_PROFILE", guided)
    with run_studio(tmp_path, generator=TrainedGenerator()) as studio:
        person = visit(studio, viewport={"width": 1150, "height": 800}).open()
        expect(person.page.locator("#zi-steps input")).to_have_value("5")
        expect(person.page.locator("zi-choice[name=size] input")).to_have_count(len(guided.sizes))
        person.page.get_by_role("radio", name="512 × 512").check(force=True)
        person.page.get_by_role("button", name="More", exact=True).click()
        person.page.get_by_label("Negative prompt").fill("fog")
        expect(person.page.get_by_label("Guidance")).to_have_value("4")
        assert person.read(OVERLAPPING) == []
        person.make("a clear day")
        (record,) = studio.board.recent(2)
        assert (record.request.negative_prompt, record.request.guidance_scale) == ("fog", 4.0)
        assert person.page.get_by_text("untrained").count() == 0
