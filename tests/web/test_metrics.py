from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from zimage_ui.generator.base import ShapeState
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.request import GenerationRequest
from zimage_ui.stages import Stage
from zimage_ui.telemetry.fake import FakeProbe, fake_gpu
from zimage_ui.telemetry.probe import GpuReading, Snapshot

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

FOX = GenerationRequest(prompt="a fox", width=64, height=64, num_inference_steps=4, num_images_per_prompt=2)


def read(studio: Studio) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample, by its name and the values of its labels."""
    response = studio.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def make(studio: Studio, request: GenerationRequest = FOX) -> None:
    job = studio.services.jobs.submit(request)
    studio.services.jobs.future(job.job_id).result(30)


def test_jobs_and_pictures_are_counted(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(FakeScript(encode_s=0.01))
    with run_studio(tmp_path, generator=generator) as studio:
        studio.wait_until_ready()
        make(studio)
        make(studio)
        generator.script = FakeScript(encode_s=0.01, fail_at=Stage.SAMPLE, failures=1)
        make(studio)
        metrics = read(studio)

    assert metrics["zimage_jobs_total", ("done",)] == 2
    assert metrics["zimage_jobs_total", ("failed",)] == 1
    assert metrics["zimage_jobs_total", ("cancelled",)] == 0
    assert metrics["zimage_pictures_total", ("saved",)] == 4
    assert metrics["zimage_pictures_total", ("failed",)] == 0
    assert metrics["zimage_pending_saves", ()] == 0
    assert metrics["zimage_queue_length", ()] == 0
    assert metrics["zimage_queue_capacity", ()] == 32
    assert metrics["zimage_transformer_forwards_total", ()] == 8
    assert metrics["zimage_embedding_cache_misses_total", ()] == 1
    assert metrics["zimage_embedding_cache_hits_total", ()] == 2
    assert metrics["zimage_embedding_cache_saved_seconds_total", ()] > 0


def test_the_time_of_each_stage_adds_up_to_the_jobs(studio: Studio) -> None:
    for _ in range(3):
        make(studio)

    metrics = read(studio)

    stages = ("queue", "encode", "sample", "decode", "save", "other")
    assert {metrics["zimage_stage_seconds_count", (stage,)] for stage in stages} == {3}
    total_s = metrics["zimage_job_seconds_sum", ()]
    assert metrics["zimage_job_seconds_count", ()] == 3
    assert abs(sum(metrics["zimage_stage_seconds_sum", (stage,)] for stage in stages) - total_s) < 1e-4


def test_a_waiting_queue_is_seen(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator) as studio:
        studio.wait_until_ready()
        for _ in range(3):
            studio.services.jobs.submit(FOX)
        assert generator.entered.wait(10)
        metrics = read(studio)

    assert metrics["zimage_queue_length", ()] == 2
    assert metrics["zimage_jobs_under_way", ()] == 1


def test_readiness_and_the_time_of_the_warm_up(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False) as studio:
        cold = read(studio)
        assert cold["zimage_ready", ()] == 0
        assert ("zimage_warmup_seconds", ()) not in cold
        studio.services.jobs.start()
        studio.wait_until_ready()
        make(studio)
        warm = read(studio)

    assert warm["zimage_ready", ()] == 1
    assert warm["zimage_warmup_progress_ratio", ()] == 1
    assert 0 < warm["zimage_warmup_seconds", ()] < 30


def test_shapes_are_counted_by_how_they_stand_where_there_are_any(
    tmp_path: Path, run_studio: StudioMaker, shared: Studio
) -> None:
    with run_studio(tmp_path, generator=FakeGenerator(FakeScript(prepare_s=0.0))) as studio:
        studio.wait_for(lambda: {shape.state for shape in studio.board.shapes} == {ShapeState.WARM})
        metrics = read(studio)
    assert [metrics["zimage_shapes", (state.value,)] for state in ShapeState] == [0, 0, 5]
    assert not [name for name, _ in read(shared) if name == "zimage_shapes"]


def wait_for_a_snapshot(studio: Studio) -> None:
    read_once = threading.Event()
    with studio.services.sampler.subscribe(read_once.set):
        assert read_once.wait(10)


def test_the_gpu_is_measured_in_base_units(tmp_path: Path, run_studio: StudioMaker) -> None:
    probe = FakeProbe([Snapshot(at_s=0, unix_s=0, gpus=(fake_gpu(1.0),))])
    with run_studio(tmp_path, probe=probe) as studio:
        wait_for_a_snapshot(studio)
        metrics = read(studio)

    card = ("0", "Fake GPU 16 GB")
    assert metrics["zimage_gpu_utilization_ratio", card] == 1
    assert metrics["zimage_gpu_sm_clock_hertz", card] == 2.4e9
    assert metrics["zimage_gpu_temperature_celsius", card] == 78
    assert metrics["zimage_gpu_power_watts", card] == 160
    assert metrics["zimage_gpu_nvml_total_bytes", card] == 16 * 2**30
    assert metrics["zimage_gpu_throttled", ("0", "power cap")] == 1
    assert metrics["zimage_gpu_lost", ()] == 0
    assert metrics["zimage_telemetry_age_seconds", ()] >= 0


def test_sensors_that_are_not_there_have_no_line(tmp_path: Path, run_studio: StudioMaker) -> None:
    probe = FakeProbe([Snapshot(at_s=0, unix_s=0, gpus=(GpuReading(index=0, name='A "quoted"\\\ncard', power_w=5.0),))])
    with run_studio(tmp_path, probe=probe) as studio:
        wait_for_a_snapshot(studio)
        metrics = read(studio)

    gpu_lines = {name for name, _ in metrics if name.startswith("zimage_gpu_")}
    assert gpu_lines == {"zimage_gpu_lost", "zimage_gpu_power_watts"}
    assert metrics["zimage_gpu_power_watts", ("0", 'A "quoted"\\\ncard')] == 5
    assert not any(name.startswith("zimage_host_") for name, _ in metrics)


def test_the_process_itself_is_measured(studio: Studio) -> None:
    metrics = read(studio)

    assert metrics["process_resident_memory_bytes", ()] > 2**20
    assert metrics["process_open_fds", ()] > 0
    assert any(name == "zimage_build_info" for name, _ in metrics)


def test_two_services_in_one_process_count_apart(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path / "a") as one, run_studio(tmp_path / "b") as other:
        one.wait_until_ready()
        make(one)
        assert read(one)["zimage_jobs_total", ("done",)] == 1
        assert read(other)["zimage_jobs_total", ("done",)] == 0
