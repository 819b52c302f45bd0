"""The empty canvas: prompts that fit the model, one click from the first picture, in either language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE, QUICK, TrainedGenerator, Visit, box_of
from zimage_ui.generator.fake import FakeScript
from zimage_ui.generator.profiles import MINI, TURBO
from zimage_ui.jobs.records import JobPhase

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.browser.conftest import StudioMaker, Visiting
    from tests.web.conftest import Studio
    from zimage_ui.generator.base import ModelProfile

SHOWN = 4
ENGLISH = [example.en for example in MINI.examples]
CHINESE = [example.zh for example in MINI.examples]
TOUCH_PX = 44
# Two clicks before the page could have heard of anything.
CLICK_TWICE = "(button) => { button.click(); button.click(); }"


@pytest.fixture
def as_turbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake generator says that it is the large model."""
    monkeypatch.setattr("zimage_ui.generator.fake.FAKE_PROFILE", replace(TURBO, sizes=MINI.sizes))


def welcome(person: Visit) -> Locator:
    return person.page.locator("zi-welcome")


def chips(person: Visit) -> Locator:
    return welcome(person).get_by_role("list", name="Example prompts").get_by_role("button")


def test_a_click_on_an_example_makes_its_picture(studio: Studio, visit: Visiting) -> None:
    person = visit(studio).open()
    expect(chips(person)).to_have_text(ENGLISH[:SHOWN])

    chips(person).nth(1).click()
    expect(person.picture).to_be_visible()
    expect(welcome(person)).to_have_count(0)
    expect(person.prompt).to_have_value(ENGLISH[1])
    expect(person.prompt).to_be_focused()
    (record,) = studio.board.recent(5)
    assert record.request.prompt == ENGLISH[1]

    person.page.reload()
    person.until_ready()
    expect(person.picture).to_be_visible()
    expect(welcome(person)).to_have_count(0)


def test_more_ideas_go_round(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    more = person.page.get_by_role("button", name="More ideas")
    more.click()
    expect(chips(person)).to_have_text(ENGLISH[SHOWN : 2 * SHOWN])
    expect(more).to_be_focused()
    person.page.get_by_role("button", name="中文").click()
    chinese = welcome(person).get_by_role("list", name="提示词示例").get_by_role("button")
    expect(chinese).to_have_text(CHINESE[SHOWN : 2 * SHOWN])
    welcome(person).get_by_role("button", name="换一批").click()
    expect(chinese).to_have_text(CHINESE[:SHOWN])


def test_keys_reach_every_example_and_enter_makes_it(studio: Studio, visit: Visiting) -> None:
    person = visit(studio, locale="zh-CN").open()
    buttons = welcome(person).get_by_role("button")
    expect(buttons).to_have_count(SHOWN + 1)
    buttons.first.focus()
    for place in range(1, SHOWN + 1):
        person.page.keyboard.press("Tab")
        expect(buttons.nth(place)).to_be_focused()
    person.page.keyboard.press("Shift+Tab")
    person.page.keyboard.press("Enter")
    expect(person.picture).to_be_visible()
    expect(person.prompt).to_be_focused()
    (record,) = studio.board.recent(5)
    assert record.request.prompt == CHINESE[SHOWN - 1]


def test_an_example_that_stands_in_the_form_already_is_made_too(studio: Studio, visit: Visiting) -> None:
    person = visit(studio).open()
    person.prompt.fill(ENGLISH[0])
    chips(person).first.click()
    expect(person.picture).to_be_visible()
    (record,) = studio.board.recent(5)
    assert record.request.prompt == ENGLISH[0]


def test_two_clicks_ask_once_and_a_cancelled_example_may_be_asked_for_again(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path, started=False) as studio:
        person = visit(studio).open()
        chips(person).first.evaluate(CLICK_TWICE)
        expect(person.page.locator("zi-canvas")).to_contain_text("Waiting for the model to be ready")
        expect(welcome(person)).to_have_count(0)
        person.cancel.click()
        expect(chips(person)).to_have_text(ENGLISH[:SHOWN])
        (cancelled,) = studio.board.recent(5)
        assert cancelled.phase is JobPhase.CANCELLED

        chips(person).nth(2).click()
        expect(person.page.locator("zi-canvas")).to_contain_text("Waiting for the model to be ready")
        studio.services.jobs.start()
        expect(person.picture).to_be_visible()
        made, *_ = studio.board.recent(5)
        assert (made.request.prompt, len(studio.board.recent(5))) == (ENGLISH[2], 2)


def test_a_refused_example_says_why_and_can_be_clicked_again(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path, script=FakeScript(fail_load=True), started=False) as studio:
        person = visit(studio).open()
        studio.services.jobs.start()
        expect(person.page.locator("zi-header")).to_contain_text("Not able to make pictures")
        for place in (0, 1):
            chips(person).nth(place).click()
            expect(person.toasts).to_contain_text("Not ready")
            expect(person.prompt).to_have_value(ENGLISH[place])
            person.toasts.get_by_role("button").click()
            expect(person.toasts).to_have_count(0)


@pytest.mark.usefixtures("as_turbo")
def test_another_model_offers_its_own_once_it_is_known(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path, started=False) as studio:
        person = visit(studio).open()
        expect(chips(person)).to_have_text(ENGLISH[:SHOWN])
        studio.services.jobs.start()
        expect(chips(person)).to_have_text([example.en for example in TURBO.examples[:SHOWN]])
        chips(person).nth(3).click()
        expect(person.picture).to_be_visible()
        (record,) = studio.board.recent(5)
        assert record.request.prompt == TURBO.examples[3].en  # as it is, quotation marks and Chinese within


def test_a_model_without_examples_leaves_it_to_the_person(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zimage_ui.generator.fake.FAKE_PROFILE", replace(MINI, examples=()))
    with run_studio(tmp_path) as studio:
        person = visit(studio).open()
        expect(welcome(person)).to_contain_text("Describe it below.")
        expect(welcome(person).get_by_role("button")).to_have_count(0)


@pytest.mark.usefixtures("as_turbo")
@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_a_thumb_hits_each_example_and_no_keyboard_covers_the_picture(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, width: int
) -> None:
    with run_studio(tmp_path, script=QUICK) as studio:
        person = visit(studio, viewport={**PHONE, "width": width}, has_touch=True, is_mobile=True).open()
        expect(chips(person)).to_have_text([example.en for example in TURBO.examples[:SHOWN]])
        form = box_of(person.page.locator("#zi-compose"))
        for button in welcome(person).get_by_role("button").all():
            box = box_of(button)
            assert box["height"] >= TOUCH_PX
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= form["y"], "under the form"
        chips(person).first.tap()
        expect(person.picture).to_be_visible()
        expect(person.prompt).not_to_be_focused()


@pytest.mark.usefixtures("as_turbo")
@pytest.mark.parametrize("size", [(1100, 620), (1280, 720), (1440, 900)])
def test_on_a_desk_all_of_it_is_seen(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, size: tuple[int, int]
) -> None:
    with run_studio(tmp_path, script=QUICK) as studio:
        person = visit(studio, viewport={"width": size[0], "height": size[1]}).open()
        expect(chips(person)).to_have_count(SHOWN)
        canvas, words = box_of(person.page.locator("zi-canvas")), box_of(welcome(person))
        assert words["y"] >= canvas["y"]
        assert words["y"] + words["height"] <= canvas["y"] + canvas["height"]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("profile", [MINI, TURBO], ids=lambda profile: profile.name)
def test_screenshots(
    tmp_path: Path,
    run_studio: StudioMaker,
    visit: Visiting,
    monkeypatch: pytest.MonkeyPatch,
    size: dict[str, int],
    profile: ModelProfile,
) -> None:
    """For people to look at; and whatever the model, nothing sticks out."""
    monkeypatch.setattr("zimage_ui.generator.fake.FAKE_PROFILE", replace(profile, sizes=MINI.sizes))
    kind = "desktop" if size is DESKTOP else "phone"
    with run_studio(tmp_path, generator=TrainedGenerator()) as studio:
        person = visit(studio, viewport=size, reduced_motion="reduce").open()
        expect(chips(person).first).to_have_text(profile.examples[0].en)
        for language, button in (("en", "EN"), ("zh", "中文")):
            person.page.get_by_role("button", name=button, exact=True).click()
            for scheme in ("light", "dark"):
                person.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                assert not person.read("document.documentElement.scrollWidth > document.documentElement.clientWidth")
                person.shot(f"empty-{profile.name}-{kind}-{scheme}-{language}")
