"""The composition root: the only place that names concrete parts and joins them.

`serve` runs the studio until it is told to stop; `run_errand` makes pictures once, without page, queue or threads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from zimage_ui import errand as errands
from zimage_ui.errors import SettingsError, ZImageError
from zimage_ui.generator.base import Generator
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.service import JobService
from zimage_ui.jobs.worker import in_one_tree
from zimage_ui.settings import Settings, tame_third_parties, visible_cuda_devices
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver
from zimage_ui.telemetry.nvml import open_probe
from zimage_ui.telemetry.sampler import Sampler

logger = logging.getLogger(__name__)

EXIT_SOFTWARE = 70
# How long a service whose model failed stays up, so that whoever waits for it (prewarm.py, the page) hears why.
FAREWELL_S = 5.0
GRACE_S = 5
DRAIN_S = 60.0
# The fake's pace when it is served: slow enough to watch it grow.
_SERVED_FAKE = FakeScript(load_s=0.4, warmup_s=0.4, encode_s=0.03, step_s=0.12, decode_s=0.05)


def make_generator(settings: Settings) -> Generator:
    """The generator that `settings.model` names; nothing is loaded yet."""
    if settings.model == "fake":
        return FakeGenerator(_SERVED_FAKE)
    from zimage_ui.generator.zimage import ZImageGenerator

    return ZImageGenerator(
        settings.model,
        cache_dir=settings.cache_dir,
        embedding_cache_bytes=settings.embedding_cache_mib * 2**20,
    )


def run_errand(errand: errands.Errand, settings: Settings, tell: errands.Tell) -> dict[str, Any]:
    """Make the pictures of `errand` in this process; see `zimage_ui.errand.run`."""
    tame_third_parties()
    with in_one_tree():
        return errands.run(errand, settings, make_generator(settings), tell)


class Studio:
    """All parts of one running service, joined.

    Attributes:
        failed: set when no picture can be made any more.

    Raises:
        OutputFolderError: pictures could not be kept in `settings.output_dir`.
    """

    def __init__(self, settings: Settings, generator: Generator | None = None) -> None:
        self.settings = settings
        self.failed = threading.Event()
        self.generator = generator or make_generator(settings)
        self.folder = OutputFolder(settings.output_dir)
        self.folder.prepare()
        self.library = Library(self.folder)
        self.saver = Saver(self.folder, self.library, threads=settings.saver_threads)
        self.jobs = JobService(self.generator, self.saver, queue_size=settings.queue_size, on_fatal=self._fatal)
        self.sampler = Sampler(open_probe(visible_cuda_devices()), settings.telemetry_interval_s)
        self.on_failed: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start every thread; the worker's first work is to load and warm the model."""
        self.sampler.start()
        self.saver.start()
        self.jobs.start()

    def close(self) -> None:
        """Finish what is running, write what is waiting, release everything."""
        self.jobs.close(DRAIN_S)
        self.saver.close(DRAIN_S)
        self.library.close()
        self.sampler.close()

    def _fatal(self, error: ZImageError) -> None:
        self.failed.set()
        self.on_failed()


def serve(settings: Settings, tell: errands.Tell) -> int:
    """Run the studio until SIGINT or SIGTERM; `tell` gets its address. Returns the exit code.

    Raises:
        SettingsError: the port is taken or the address cannot be bound.
        OutputFolderError: pictures could not be kept.
    """
    tame_third_parties()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    started_at_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        studio = Studio(settings)
        stack.callback(studio.close)
        _Service(studio, started_at_s, listener, tell).run(sockets=[listener])
        return EXIT_SOFTWARE if studio.failed.is_set() else 0


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to `host`:`port`, not yet listening: nobody is let in before there is something to see.

    Raises:
        SettingsError: the port is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"{host}:{port} cannot be listened on: {error.strerror}.",
            "Stop the program that holds the port, or choose another with --port or ZIMAGE_PORT.",
        ) from error
    return listener


class _Service(uvicorn.Server):
    """uvicorn, which starts the studio's threads once the port answers and ends open streams when it stops."""

    def __init__(self, studio: Studio, started_at_s: float, listener: socket.socket, tell: errands.Tell) -> None:
        from zimage_ui.ui.page import build_page
        from zimage_ui.web.server import Services, create_app, end_streams

        self._studio = studio
        self._tell = tell
        host, port = listener.getsockname()[:2]
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        services = Services(
            jobs=studio.jobs,
            saver=studio.saver,
            library=studio.library,
            sampler=studio.sampler,
            settings=studio.settings,
            generator_stats=studio.generator.cache_stats,
            started_at_s=started_at_s,
        )
        app = create_app(services, build_page(studio.jobs, studio.settings))
        self._end_streams = partial(end_streams, app)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody forwards to a service that only this machine reaches
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        studio.on_failed = self._say_farewell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let people in, then begin to load: torch and diffusers would hold up the first page."""
        await super().startup(sockets)
        self._studio.start()
        self._tell(f"zimage-ui is at {self._address}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal, at once on a second one.

        Unlike uvicorn's own, this does not raise the signal again afterwards: a stop that was asked for ends with 0,
        after the studio is closed. Open streams end now, or uvicorn would wait for the pages to go away.
        """
        self._end_streams()
        self.force_exit = self.should_exit
        self.should_exit = True

    def _say_farewell(self) -> None:
        timer = threading.Timer(FAREWELL_S, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        self._end_streams()
        self.should_exit = True
