"""The same way with a real (small, untrained) model in place of the fake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from zimage_ui.storage.encoders import read_metadata

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visiting


@pytest.mark.model
def test_a_real_model_paints_what_the_page_shows(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    from zimage_ui.generator.untrained import TINY, build_untrained_model
    from zimage_ui.generator.zimage import ZImageGenerator

    folder = build_untrained_model(tmp_path / "tiny", TINY)
    generator = ZImageGenerator(str(folder), embedding_cache_bytes=2**20)
    with run_studio(tmp_path, generator=generator) as studio:
        person = visit(studio).open()
        expect(person.page.locator("zi-model")).to_contain_text("fp32")
        person.page.get_by_role("radio", name="256 × 256").check(force=True)
        person.make("一只猫 by the window")
        expect(person.account).to_contain_text("8 forwards")
        expect(person.account).to_contain_text(re.compile(r"previews [\d.]+\sms"))
        expect(person.page.locator("zi-canvas .zi-untrained")).to_be_visible()

        (picture,) = studio.client.get("/api/pictures").json()["pictures"]
        metadata = read_metadata(studio.services.settings.output_dir / picture["path"])
        assert metadata is not None
        assert metadata.request.prompt == "一只猫 by the window"
        assert metadata.model_trained is False
