"""A failed attempt is logged with its reason, and is no error; but for those that are the caller's."""

import gc
import logging
import weakref

import pytest

from zimage_ui.generator.fast.attempts import attempt


def fail(error: Exception) -> int:
    raise error


def test_what_works_is_answered():
    assert attempt(lambda: 3, "nothing happens instead") == 3


def test_what_fails_is_logged_with_its_reason(caplog):
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert attempt(lambda: fail(RuntimeError("no compiler here")), "the stock module works on") is None
    assert "the stock module works on: RuntimeError: no compiler here" in caplog.text


def test_what_is_logged_keeps_nothing_of_the_failed_work_alive(caplog):
    class Activations:
        pass

    held = []

    def work() -> int:
        activations = Activations()
        held.append(weakref.ref(activations))
        raise RuntimeError("no compiler here")

    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert attempt(work, "the stock module works on") is None
    gc.collect()
    assert held[0]() is None
    assert "in work" in caplog.text


def test_what_is_the_callers_is_raised(caplog):
    with pytest.raises(MemoryError):
        attempt(lambda: fail(MemoryError()), "the stock module works on", but=(MemoryError,))
    assert not caplog.text
