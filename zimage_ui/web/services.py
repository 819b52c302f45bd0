"""What the web room needs of the other rooms; the composition root fills it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zimage_ui.generator.base import CacheStats
from zimage_ui.jobs.service import JobService
from zimage_ui.settings import Settings
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver
from zimage_ui.telemetry.sampler import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The running parts that HTTP shows.

    Attributes:
        jobs, saver, library, sampler: see their classes.
        settings: of this process.
        generator_stats: the prompt-embedding cache so far.
        started_at_s: monotonic seconds at the start of the process.
    """

    jobs: JobService
    saver: Saver
    library: Library
    sampler: Sampler
    settings: Settings
    generator_stats: Callable[[], CacheStats]
    started_at_s: float
