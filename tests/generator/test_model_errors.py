"""Foreign errors become ours, each with a hint; those that the hub answers with are tested over HTTP in test_hub."""

import errno

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from zimage_ui.errors import ModelDownloadError
from zimage_ui.generator.model_errors import HUB_ERRORS, as_download_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
        (ConnectionError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("a reconstruction failed\nand more"), "a reconstruction failed and more"),
        (ValueError("Expecting value: line 1 column 1 (char 0)"), "Expecting value"),
        (LocalEntryNotFoundError("not here"), "not here"),
        (OSError("x" * 10_000), "xxx..."),
    ],
)
def test_a_failed_download_says_what_happened_and_what_to_do(error: Exception, said: str):
    assert isinstance(error, HUB_ERRORS)
    ours = as_download_error(error, "someone/model", "main")
    assert type(ours) is ModelDownloadError
    assert said in ours.message
    assert ours.hint
    assert len(ours.message) < 500


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), LocalEntryNotFoundError("not here")])
def test_offline_is_named_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, error: Exception):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ours = as_download_error(error, "someone/model", "main")
    assert type(ours) is ModelDownloadError
    assert "HF_HUB_OFFLINE" in ours.message
    assert "ZIMAGE_MODEL" in ours.hint
