"""Imports without the collector."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from zimage_ui.imports import collector_paused


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What is frozen here is all that the other tests have made: it may go again."""
    gc.unfreeze()
    yield
    gc.unfreeze()


class Knot:
    """Refers to itself: only the collector takes it away."""

    def __init__(self) -> None:
        self.myself = self


def test_nothing_is_collected_meanwhile_and_what_was_imported_is_not_looked_through_again():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_what_comes_later_is_collected_as_ever():
    with collector_paused():
        pass
    knot = weakref.ref(Knot())
    gc.collect()
    assert knot() is None


def test_whoever_ends_first_does_not_end_it_for_the_others():
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with collector_paused():
            begun.set()
            end.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(10)
    with collector_paused():
        pass
    assert not gc.isenabled()
    end.set()
    thread.join()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError, match="no such"), collector_paused():
        raise ImportError("no such library")
    assert gc.isenabled()


def test_a_collector_that_somebody_turned_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


@pytest.mark.model
def test_the_engine_is_imported_so():
    code = """
import gc
from zimage_ui.generator.zimage import import_engine
import_engine()
frozen = gc.get_freeze_count()
import_engine()
print(gc.isenabled(), gc.get_stats()[2]["collections"], frozen, gc.get_freeze_count() - frozen)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    enabled, collections, frozen, later = run.stdout.split()
    assert enabled == "True"
    assert int(collections) == 0, "of the oldest generation, which all that was imported is"
    assert int(frozen) > 100_000
    assert int(later) <= 0, "what has been made since then is not kept for ever"
