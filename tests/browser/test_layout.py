"""How it looks and feels: one screen on a desk, a thumb's reach on a phone, two languages, two schemes, keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE, StepGate
from zimage_ui.generator.fake import FakeGenerator

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
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def box_of(part: Locator) -> dict[str, Any]:
    box = part.bounding_box()
    assert box is not None
    return dict(box)


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
