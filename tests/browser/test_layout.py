"""How it looks and feels: one screen on a desk, a thumb's reach on a phone, two languages, two schemes, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.browser.conftest import Visiting
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


@pytest.mark.parametrize("width", [360, 640, 768, 1024, 1100, 1280, 1920])
def test_nothing_sticks_out_at_any_width(shared: Studio, visit: Visiting, width: int) -> None:
    person = visit(shared, viewport={"width": width, "height": 800}).open()
    assert not person.read(SIDEWAYS)
    assert is_inside(person.generate, {"width": width, "height": 800})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_screenshots(
    studio_of_screens: Studio, visit: Visiting, size: dict[str, int], locale: str, scheme: str
) -> None:
    kind = "desktop" if size is DESKTOP else "phone"
    name = f"{kind}-{scheme}-{locale[:2]}"
    person = visit(studio_of_screens, viewport=size, locale=locale, color_scheme=scheme).open()
    person.prompt.fill("A celadon vase with one branch of plum blossom, studio photo, soft window light")
    person.generate.click()
    expect(person.preview).to_be_visible()
    person.shot(f"{name}-running")
    expect(person.account.locator(".zi-total")).to_be_visible()
    if size is DESKTOP:
        expect(person.page.locator("zi-chart .barlayer .bars")).to_have_count(6)
    person.shot(name)
    paper = person.read("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(244, 246, 243)" if scheme == "light" else "rgb(13, 17, 16)")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_every_control_has_a_name(shared: Studio, visit: Visiting, locale: str) -> None:
    person = visit(shared, locale=locale).open()
    person.prompt.fill("named")
    person.prompt.press("Enter")
    expect(person.account.locator(".zi-total")).to_be_visible()
    person.page.locator("zi-more button").click()
    assert person.read(NAMELESS) == []
    assert person.page.locator("img:not([alt])").count() == 0


def test_chinese_reaches_every_part(shared: Studio, visit: Visiting) -> None:
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
    assert person.prompt.get_attribute("placeholder", timeout=1000) != ""
    expect(person.page.get_by_role("button", name="随机种子")).to_be_visible()


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


def test_radio_buttons_follow_the_arrow_keys(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.page.get_by_role("radio", name="256 × 256").focus()
    person.page.keyboard.press("ArrowDown")
    expect(person.page.get_by_role("radio", name="384 × 384")).to_be_checked()
    person.make("by keys alone")
    expect(person.account).to_contain_text("384 × 384")
