from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from zimage_ui.telemetry.fake import FakeProbe, fake_gpu
from zimage_ui.telemetry.probe import Probe, Snapshot
from zimage_ui.telemetry.sampler import Sampler

WAIT_S = 10.0


@contextmanager
def sampling(probe: Probe, interval_s: float = 0.001) -> Iterator[Sampler]:
    sampler = Sampler(probe, interval_s)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.close()


class Count:
    """A wake callback that can be waited on."""

    def __init__(self) -> None:
        self._seen = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self._seen += 1
            self._changed.notify_all()

    @property
    def seen(self) -> int:
        return self._seen

    def wait_for(self, reached: Callable[[int], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: reached(self._seen), WAIT_S)


def shown(*utilizations: float) -> tuple[Snapshot, ...]:
    return tuple(Snapshot(at_s=0, unix_s=0, gpus=(fake_gpu(busy),)) for busy in utilizations)


def test_snapshots_are_published_kept_and_announced() -> None:
    with sampling(FakeProbe()) as sampler:
        count = Count()
        with sampler.subscribe(count) as subscription:
            assert count.wait_for(lambda seen: seen >= 3)
            assert subscription.latest is not None
            assert subscription.latest.gpus[0].name == "Fake GPU 16 GB"
        kept = sampler.history.since()

    assert len(kept) >= 3
    assert [snapshot.at_s for snapshot in kept] == sorted(snapshot.at_s for snapshot in kept)


def test_nothing_is_known_before_the_first_reading() -> None:
    sampler = Sampler(FakeProbe(), 1.0)

    assert sampler.latest is None
    assert sampler.age_s() is None
    sampler.close()


def test_whoever_closed_the_subscription_is_left_alone() -> None:
    with sampling(FakeProbe()) as sampler:
        gone, stays = Count(), Count()
        subscription = sampler.subscribe(gone)
        sampler.subscribe(stays)
        subscription.close()
        subscription.close()
        before = gone.seen
        now = stays.seen
        assert stays.wait_for(lambda seen: seen >= now + 3)

    assert gone.seen <= before + 1  # one wake may have been under way


def test_a_probe_that_raises_is_logged_once_for_each_kind_and_read_again(caplog: pytest.LogCaptureFixture) -> None:
    error, other = OSError("sensor"), ValueError("sensor")
    (good,) = shown(0.5)
    count = Count()
    with caplog.at_level(logging.ERROR), sampling(FakeProbe((error, error, other, good, error))) as sampler:
        sampler.subscribe(count)
        assert count.wait_for(lambda seen: seen >= 3)

    assert sampler.latest is not None
    assert sampler.latest.gpus == good.gpus
    assert len(caplog.records) == 2


class HangsAtTheSecond(FakeProbe):
    """A driver that answers once."""

    def __init__(self) -> None:
        super().__init__(shown(0.5))
        self.hanging, self.released, self.readings = threading.Event(), threading.Event(), 0

    def read(self) -> Snapshot:
        self.readings += 1
        if self.readings == 2:
            self.hanging.set()
            self.released.wait()
        return super().read()


def test_a_probe_that_hangs_holds_up_no_one_and_its_age_shows() -> None:
    probe = HangsAtTheSecond()
    with sampling(probe) as sampler:
        assert probe.hanging.wait(WAIT_S)
        latest, age_s = sampler.latest, sampler.age_s()
        assert latest is not None
        assert age_s is not None
        assert age_s == pytest.approx(time.monotonic() - latest.at_s, abs=1.0)
        later_s = sampler.age_s()
        assert later_s is not None
        assert later_s > age_s
        assert sampler.latest is latest
        probe.released.set()


def test_closing_leaves_a_hanging_reading_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zimage_ui.telemetry.sampler._CLOSE_WAIT_S", 0.01)
    probe = FakeProbe(gate=threading.Event())
    sampler = Sampler(probe, 1.0)
    sampler.start()
    assert probe.entered.wait(WAIT_S)
    begun_s = time.monotonic()

    sampler.close()

    assert time.monotonic() - begun_s < WAIT_S / 2
    assert not probe.closed  # closing a driver in the middle of a call is asking for worse
    assert probe.gate is not None
    probe.gate.set()


def test_closing_ends_the_thread_and_releases_the_probe() -> None:
    probe = FakeProbe()
    with sampling(probe, interval_s=60.0):
        assert probe.entered.wait(WAIT_S)

    assert probe.closed
    assert not any(thread.name == "telemetry-sampler" for thread in threading.enumerate() if thread.is_alive())


def test_there_is_one_thread_for_any_number_of_watchers() -> None:
    with sampling(FakeProbe()) as sampler:
        for _ in range(100):
            sampler.subscribe(lambda: None)
        names = [thread.name for thread in threading.enumerate()]

    assert names.count("telemetry-sampler") == 1
