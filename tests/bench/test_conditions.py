import threading

from bench.conditions import Watch
from zimage_ui.telemetry.probe import GpuReading, Snapshot


class Scripted:
    """A probe that reads what it is given, the last for ever."""

    def __init__(self, *readings: GpuReading, note: str = "") -> None:
        self.readings = list(readings)
        self.note = note
        self.rounds = 0
        self.read_four = threading.Event()

    def read(self) -> Snapshot:
        place = min(self.rounds, len(self.readings) - 1)
        self.rounds += 1
        if self.rounds >= 4:
            self.read_four.set()
        return Snapshot(at_s=0, unix_s=0, gpus=tuple(self.readings[place : place + 1]), gpu_note=self.note)

    def close(self) -> None:
        pass


def reading(clock: float, watts: float, *reasons: str) -> GpuReading:
    return GpuReading(
        index=0, name="H100", driver="580", sm_clock_mhz=clock, power_w=watts, temperature_c=40 + watts / 10,
        nvml_used_bytes=int(watts), throttle_reasons=reasons,
    )  # fmt: skip


def test_the_conditions_before_during_and_after():
    probe = Scripted(reading(345, 70), reading(1980, 690), reading(1700, 700, "power cap"), reading(1600, 700))
    with Watch(probe, interval_s=0.001) as watch:
        assert probe.read_four.wait(10)
    told = watch.summary()
    assert (told["gpu"], told["driver"]) == ("H100", "580")
    assert told["before"]["sm_clock_mhz"] == 345
    assert told["after"]["sm_clock_mhz"] == 1600
    assert told["during"]["sm_clock_mhz"] | {"median": 0} == {"min": 1600, "median": 0, "max": 1980}
    assert told["during"]["power_w"]["max"] == 700
    assert told["during"]["memory_clock_mhz"] is None
    assert told["throttled_share"] == {"power cap": round(1 / told["during"]["readings"], 3)}
    assert told["nvml_peak_bytes"] == 700


def test_nothing_read_in_between_leaves_the_two_ends():
    with Watch(Scripted(reading(345, 70), reading(1980, 690)), interval_s=3600) as watch:
        pass
    assert watch.summary()["during"]["sm_clock_mhz"] == {"min": 345, "median": 1162.5, "max": 1980}


def test_without_a_gpu_there_is_a_note():
    with Watch(Scripted(note="No NVIDIA GPU.")) as watch:
        pass
    assert watch.summary() == {"note": "No NVIDIA GPU."}
