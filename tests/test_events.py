import time
from dataclasses import FrozenInstanceError

import pytest

from zimage_ui import events
from zimage_ui.events import Event, JobCancelled, JobQueued, PictureRef
from zimage_ui.jobs.records import _FOLDS
from zimage_ui.request import ImageFormat


def test_an_event_knows_when_it_happened():
    before_s = time.monotonic()
    event = JobCancelled(job_id="job")
    assert before_s <= event.at_s <= time.monotonic()
    assert JobCancelled(job_id="job", at_s=3.0).at_s == 3.0


def test_events_and_references_are_frozen():
    with pytest.raises(FrozenInstanceError):
        JobCancelled(job_id="job").job_id = "other"  # type: ignore[misc]
    picture = PictureRef(picture_id="id", seed=1, width=8, height=8, image_format=ImageFormat.PNG, size_bytes=1)
    assert picture.path == ""
    with pytest.raises(FrozenInstanceError):
        picture.path = "a.png"  # type: ignore[misc]


def test_the_board_understands_every_event_there_is():
    """`JobQueued` makes a record, every other event changes one."""
    classes = [kind for kind in vars(events).values() if isinstance(kind, type)]
    kinds = {kind for kind in classes if issubclass(kind, Event)} - {Event}
    assert set(_FOLDS) == kinds - {JobQueued}
