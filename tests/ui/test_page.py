from __future__ import annotations

import json
import re
from typing import Any, cast

import pytest

from zimage_ui.generator.profiles import MINI
from zimage_ui.jobs.service import JobService
from zimage_ui.settings import Settings
from zimage_ui.ui.page import Page, build_page
from zimage_ui.ui.texts import catalogue


@pytest.fixture(scope="module")
def page() -> Page:
    return build_page(cast(JobService, None), Settings())


@pytest.fixture(scope="module")
def blocks_config(page: Page) -> dict[str, Any]:
    config: dict[str, Any] = page.blocks.get_config_file()
    return config


def embedded(page: Page) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="zi-config">(.*?)</script>', page.head, re.DOTALL)
    assert match
    config: dict[str, Any] = json.loads(match[1])
    return config


def test_the_configuration_travels_in_the_head(page: Page) -> None:
    config = embedded(page)
    assert config["texts"] == catalogue()
    assert config["language"] == "auto"
    assert config["examples"] == [{"en": each.en, "zh": each.zh} for each in MINI.examples]
    assert config["plotly_url"].startswith("/assets/plotly.min.js?v=")


def test_no_text_can_end_the_script_that_carries_it(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from zimage_ui.ui import page as module

    head = module._head({"text": "</script><script>alert(1)</script>"})
    assert head.count("</script>") == page.head.count("</script>")
    assert "<script>alert" not in head


def test_the_page_needs_nothing_from_elsewhere(page: Page, blocks_config: dict[str, Any]) -> None:
    assert not re.search(r"(src|href)=\"(https?:)?//", page.head)
    assert blocks_config.get("stylesheets") == []


def test_no_second_stream_is_kept_open(blocks_config: dict[str, Any]) -> None:
    """Gradio's heartbeat would take another of the browser's six connections, for each tab."""
    assert blocks_config["connect_heartbeat"] is False


def test_no_handler_is_public_or_queued(blocks_config: dict[str, Any]) -> None:
    behind = [each for each in blocks_config["dependencies"] if each["backend_fn"]]
    assert len(behind) == 2
    assert all(each["queue"] is False and each["api_visibility"] == "private" for each in behind)


def test_what_gradio_would_queue_is_not_open_around_its_queue(page: Page) -> None:
    """No handler is queued today; one that is by mistake must not be open either."""
    assert page.blocks.api_open is False


def test_the_language_of_the_settings_reaches_the_page() -> None:
    assert embedded(build_page(cast(JobService, None), Settings(language="zh")))["language"] == "zh"


def test_gradio_writes_nothing_beside_our_modules() -> None:
    from importlib.resources import files

    assert not [entry.name for entry in files("zimage_ui.ui").iterdir() if entry.name.endswith(".pyi")]
