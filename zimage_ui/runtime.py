"""The composition root: the only place that names concrete parts and joins them.

`serve` runs the studio until it is told to stop; `run_errand` makes pictures once, without page, queue or threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from zimage_ui import errand as errands
from zimage_ui.errors import SettingsError, ZImageError
from zimage_ui.generator.base import Generator
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.imports import collector_paused
from zimage_ui.jobs.service import MIN_SAVER_DRAIN_S, JobService
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
# How long open connections may take to end on a stop, and for how much of that a call may still get its picture.
GRACE_S = 5
ANSWER_S = 3.0
DRAIN_S = 60.0
# The fake's pace when it is served: slow enough to watch it grow.
SERVED_FAKE = FakeScript(load_s=0.4, warmup_s=0.4, encode_s=0.03, step_s=0.12, decode_s=0.05, prepare_s=0.4)
# Nobody watches an errand.
ERRAND_FAKE = FakeScript(step_s=0.04)


def make_generator(settings: Settings, fake: FakeScript = SERVED_FAKE) -> Generator:
    """The generator that `settings.model` names; nothing is loaded yet. The fake one follows `fake`."""
    if settings.model == "fake":
        return FakeGenerator(fake)
    from zimage_ui.generator.zimage import ZImageGenerator

    return ZImageGenerator(
        settings.model,
        embedding_cache_bytes=settings.embedding_cache_mib * 2**20,
        precision=settings.precision,
    )


def run_errand(errand: errands.Errand, settings: Settings, tell: errands.Tell) -> dict[str, Any]:
    """Make the pictures of `errand` in this process; see `zimage_ui.errand.run`."""
    tame_third_parties()
    with in_one_tree():
        return errands.run(errand, settings, make_generator(settings, ERRAND_FAKE), tell)


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
        self.hurried = False
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

    def close(self) -> bool:
        """Finish what is running, write what is waiting, release everything; whether no picture was lost on the way."""
        deadline_s = time.monotonic() + DRAIN_S
        ended = self.jobs.close(DRAIN_S)
        saved = self.saver.close(max(MIN_SAVER_DRAIN_S, 0.0 if self.hurried else deadline_s - time.monotonic()))
        self.library.close()
        self.sampler.close()
        if not ended:
            logger.error("stopped before everything had ended: the worker hangs, or pictures were still to be saved")
        if not saved:
            logger.error("stopped with pictures that could not be saved in %s: they are lost", self.folder.root)
        return ended and saved

    def hurry(self) -> None:
        """Cancel the running picture, and let `close` wait no longer than saving what is made should take."""
        logger.warning("told to stop once more: the running picture is cancelled, %d to save", self.saver.pending)
        self.hurried = True
        self.jobs.hurry()

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
        kept = False
        try:
            service = _Service(studio, started_at_s, listener, tell)
            stack.enter_context(_signals_go_to(service.handle_exit))
            service.run(sockets=[listener])
        finally:
            kept = studio.close()
        return 0 if kept and not studio.failed.is_set() else EXIT_SOFTWARE


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
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> SettingsError:
    return SettingsError(
        f"{host}:{port} cannot be listened on: {error.strerror}.",
        "Stop the program that holds the port, or choose another with --port or ZIMAGE_PORT.",
    )


@contextlib.contextmanager
def _signals_go_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` hear of SIGINT and SIGTERM, if this is the main thread, which alone may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class _Service(uvicorn.Server):
    """uvicorn, which starts the studio's threads once the port answers and ends open streams when it stops."""

    def __init__(self, studio: Studio, started_at_s: float, listener: socket.socket, tell: errands.Tell) -> None:
        with collector_paused():  # gradio
            from zimage_ui.ui.page import build_page
            from zimage_ui.web.server import Services, create_app, end_streams

        self._studio = studio
        self._tell = tell
        host, port = listener.getsockname()[:2]
        self._host, self._port = host, port
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
        """Let people in, then begin to load: torch and diffusers would hold up the first page.

        Raises:
            SettingsError: another process began to listen on the port since it was bound.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise _cannot_listen(self._host, self._port, error) from error
        self._studio.start()
        self._tell(f"zimage-ui is at {self._address}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer everybody: waiting calls at once, those of the running picture within `ANSWER_S`; end the streams."""
        logger.info(
            "stopping: the running picture is finished, %d to save; ask once more to cancel it",
            self._studio.saver.pending,
        )
        self._end_streams()  # or uvicorn would wait for the pages to go away
        self._studio.jobs.stop()
        dismissal = asyncio.get_running_loop().call_later(ANSWER_S, self._studio.jobs.dismiss)
        try:
            await super().shutdown(sockets)
        finally:
            dismissal.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: `serve` holds them until the studio is closed, which is longer than this runs."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal; on a second one, cancel what is running. Either way a stop that was asked for ends with 0.

        It interrupts whatever the main thread does, locks in its hands: hence the thread.
        """
        if self.should_exit:
            threading.Thread(target=self._studio.hurry, name="hurry", daemon=True).start()
        self.should_exit = True

    def _say_farewell(self) -> None:
        timer = threading.Timer(FAREWELL_S, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        self.should_exit = True
