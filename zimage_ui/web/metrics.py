"""`GET /metrics`: the service in numbers, for Prometheus; units are in the names, absent sensors have no line.

Counts and gauges are read from the other rooms when asked for; only the histograms of times are kept here, fed with
each job that is done.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from zimage_ui import __version__
from zimage_ui.generator.base import ShapeState, WarmupPhase
from zimage_ui.jobs.board import Changes
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.telemetry.probe import GpuReading, Snapshot
from zimage_ui.web.health import readiness
from zimage_ui.web.services import Services

_STAGES = ("queue", "encode", "sample", "decode", "save", "other")
# From a cached encoding (under a millisecond) to a large picture on a processor (minutes).
_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)
_REMEMBERED_JOBS = 1_000

_GpuSensor = tuple[str, str, Callable[[GpuReading], float | None]]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


_GPU_SENSORS: tuple[_GpuSensor, ...] = (
    ("utilization_ratio", "Share of time in which a kernel ran.", lambda gpu: _scaled(gpu.utilization_pct, 0.01)),
    ("sm_clock_hertz", "Clock of the multiprocessors.", lambda gpu: _scaled(gpu.sm_clock_mhz, 1e6)),
    ("max_sm_clock_hertz", "Highest clock of the multiprocessors.", lambda gpu: _scaled(gpu.max_sm_clock_mhz, 1e6)),
    ("memory_clock_hertz", "Clock of the memory.", lambda gpu: _scaled(gpu.memory_clock_mhz, 1e6)),
    ("temperature_celsius", "Of the chip.", lambda gpu: gpu.temperature_c),
    ("power_watts", "Drawn.", lambda gpu: gpu.power_w),
    ("power_limit_watts", "Allowed.", lambda gpu: gpu.power_limit_w),
    ("nvml_used_bytes", "Memory in use by all processes, as NVML counts.", lambda gpu: gpu.nvml_used_bytes),
    ("nvml_total_bytes", "Memory of the card, as NVML counts.", lambda gpu: gpu.nvml_total_bytes),
    ("fan_ratio", "Speed of the fan.", lambda gpu: _scaled(gpu.fan_pct, 0.01)),
)


class Metrics(Collector):
    """The numbers of one application, in a registry of its own."""

    def __init__(self, services: Services, viewers: Callable[[], int]) -> None:
        self._services = services
        self._viewers = viewers
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._warmup_s: float | None = None
        self.registry = CollectorRegistry()
        self._stage_s = Histogram(
            "zimage_stage_seconds",
            "Time of a job in each stage.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._job_s = Histogram(
            "zimage_job_seconds", "Time of a job from its submission to the last saved picture.",
            buckets=_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self._forwards = Counter(
            "zimage_transformer_forwards", "Transformer forwards run (nfe).", registry=self.registry
        )
        for stage in _STAGES:
            self._stage_s.labels(stage)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def observe(self, changes: Changes) -> None:
        """Count what has just happened; called on one thread, with every change of the board."""
        if changes.readiness is not None and changes.readiness.phase is WarmupPhase.READY and self._warmup_s is None:
            self._warmup_s = time.monotonic() - self._services.started_at_s
        for record in changes.jobs:
            if record.timings is not None and record.job_id not in self._counted:
                self._count(record)

    def _count(self, record: JobRecord) -> None:
        self._counted[record.job_id] = None  # a job may change once more after it was done
        while len(self._counted) > _REMEMBERED_JOBS:
            self._counted.popitem(last=False)
        times_ms = record.timings.as_dict() if record.timings else {}
        self._job_s.observe(times_ms.pop("total") / 1e3)
        for stage, stage_ms in times_ms.items():
            self._stage_s.labels(stage).observe(stage_ms / 1e3)
        self._forwards.inc(record.nfe or 0)

    def collect(self) -> Iterator[Metric]:
        """All that is read at this moment."""
        yield InfoMetricFamily("zimage_build", "What is running.", {"version": __version__})
        yield from self._service()
        yield from self._jobs()
        yield from self._pictures()
        yield from self._embedding_cache()
        snapshot = self._services.sampler.latest
        if snapshot is not None:
            yield from _machine(snapshot)

    def _service(self) -> Iterator[Metric]:
        view = readiness(self._services)
        yield _gauge("zimage_ready", "1 when a picture would be made at once.", float(view["ready"]))
        yield _gauge("zimage_warmup_progress_ratio", "How far the warm-up is.", view["progress"])
        if shapes := self._services.jobs.board.shapes:
            standing = GaugeMetricFamily("zimage_shapes", "Shapes of pictures, prepared or to be.", labels=["state"])
            for state in ShapeState:
                standing.add_metric([state.value], sum(shape.state is state for shape in shapes))
            yield standing
        yield _gauge("zimage_telemetry_viewers", "Open pages.", self._viewers())
        if self._warmup_s is not None:
            yield _gauge("zimage_warmup_seconds", "From the start of the process until ready.", self._warmup_s)
        age_s = self._services.sampler.age_s()
        if age_s is not None:
            yield _gauge("zimage_telemetry_age_seconds", "Since the sensors were read.", age_s)

    def _jobs(self) -> Iterator[Metric]:
        jobs = self._services.jobs
        ended = CounterMetricFamily("zimage_jobs", "Jobs that ended.", labels=["outcome"])
        for phase, count in jobs.board.ended_counts().items():
            ended.add_metric([phase.value], count)
        yield ended
        under_way = sum(record.phase is not JobPhase.QUEUED for record in jobs.board.active())
        yield _gauge("zimage_queue_length", "Jobs that wait.", jobs.queue_length)
        yield _gauge("zimage_queue_capacity", "Jobs that may wait.", self._services.settings.queue_size)
        yield _gauge("zimage_jobs_under_way", "Jobs being made or saved.", under_way)

    def _pictures(self) -> Iterator[Metric]:
        stats = self._services.saver.stats()
        ended = CounterMetricFamily("zimage_pictures", "Pictures that were saved or could not be.", labels=["outcome"])
        ended.add_metric(["saved"], stats.saved)
        ended.add_metric(["failed"], stats.failed)
        yield ended
        yield _gauge("zimage_pending_saves", "Pictures that wait to be saved.", stats.pending)
        yield _gauge("zimage_unsaved_pictures", "Pictures in memory that the disk has refused.", stats.unsaved)
        yield CounterMetricFamily(
            "zimage_lost_pictures", "Pictures given up because the disk refused too many.", stats.lost
        )

    def _embedding_cache(self) -> Iterator[Metric]:
        stats, name = self._services.generator_stats(), "zimage_embedding_cache"
        yield CounterMetricFamily(f"{name}_hits", "Prompts that needed no text encoder.", stats.hits)
        yield CounterMetricFamily(f"{name}_misses", "Prompts that did.", stats.misses)
        yield CounterMetricFamily(f"{name}_saved_seconds", "Time that hits did not spend.", stats.saved_ms / 1e3)
        yield _gauge(f"{name}_entries", "Prompts kept.", stats.entries)
        yield _gauge(f"{name}_bytes", "Their size.", stats.size_bytes)
        yield _gauge(f"{name}_capacity_bytes", "The size they may have.", stats.capacity_bytes)


def metrics_router(metrics: Metrics) -> APIRouter:
    """`GET /metrics`."""
    router = APIRouter()

    @router.get("/metrics")
    def text() -> Response:
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value)


def _machine(snapshot: Snapshot) -> Iterator[Metric]:
    host = snapshot.host
    readings = (
        ("zimage_host_cpu_ratio", "All cores together, 1 = all busy.", _scaled(host.cpu_pct, 0.01)),
        ("zimage_host_memory_used_bytes", "Memory in use on the host.", host.memory_used_bytes),
        ("zimage_host_memory_total_bytes", "Memory of the host.", host.memory_total_bytes),
        ("zimage_host_load_1m", "Load average.", host.load_1m),
    )
    yield from (_gauge(name, text, value) for name, text, value in readings if value is not None)
    yield _gauge("zimage_gpu_lost", "1 when a GPU has stopped answering.", float(snapshot.gpu_lost))
    for name, text, sensor in _GPU_SENSORS:
        family = GaugeMetricFamily(f"zimage_gpu_{name}", text, labels=["gpu", "name"])
        for gpu in snapshot.gpus:
            value = sensor(gpu)
            if value is not None:
                family.add_metric([str(gpu.index), gpu.name], value)
        if family.samples:
            yield family
    throttled = GaugeMetricFamily("zimage_gpu_throttled", "Why clocks are held down.", labels=["gpu", "reason"])
    for gpu in snapshot.gpus:
        for reason in gpu.throttle_reasons or ():
            throttled.add_metric([str(gpu.index), reason], 1)
    if throttled.samples:
        yield throttled
