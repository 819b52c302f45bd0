from __future__ import annotations

import pytest

from zimage_ui.telemetry.fake import FakeProbe, fake_gpu, fake_host
from zimage_ui.telemetry.probe import Snapshot


def test_the_script_is_played_over_and_over_with_true_times() -> None:
    probe = FakeProbe([Snapshot(at_s=0, unix_s=0, gpus=(fake_gpu(busy),), host=fake_host()) for busy in (0.0, 1.0)])

    readings = [probe.read() for _ in range(4)]

    assert [reading.gpus[0].utilization_pct for reading in readings] == [0, 100, 0, 100]
    assert 0 < readings[0].at_s <= readings[3].at_s


def test_errors_of_the_script_are_raised() -> None:
    probe = FakeProbe([OSError("no sensor")])

    with pytest.raises(OSError, match="no sensor"):
        probe.read()


def test_a_busy_fake_card_is_held_back_by_its_power_limit() -> None:
    assert fake_gpu(1.0).throttle_reasons == ("power cap",)
    assert fake_gpu(0.5).throttle_reasons == ()
