"""The one stream of a page: server-sent events about readiness, the machine and every job.

One task watches the board and the sampler. It encodes each event once, however many pages are open, and puts it into
each page's mailbox, where a newer state replaces the older one of the same thing: a page that reads slowly misses
states in between and costs no memory. Without pages nothing is encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from zimage_ui.jobs.board import Changes
from zimage_ui.jobs.records import JobRecord
from zimage_ui.request import Preview
from zimage_ui.telemetry.probe import Snapshot
from zimage_ui.web import views
from zimage_ui.web.services import Services

_log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
RECONNECT_MS = 2_000
RECENT_JOBS = 20
# As many as the page's lines have points.
HISTORY_LOOKS = 90
# More changed things than any page shows; a reader that falls behind further loses the oldest.
MAILBOX_EVENTS = 256
# What is on its way to a page cannot be replaced any more, so not too much of it at once.
_CHUNK_BYTES = 65_536
_HEARTBEAT = b": still here\n\n"
_READINESS, _HISTORY, _TELEMETRY = "readiness", "history", "telemetry"
_ONCE = frozenset({_READINESS, _HISTORY, _TELEMETRY})

ChangesListener = Callable[[Changes], None]


def encode_event(name: str, view: dict[str, Any]) -> bytes:
    """One server-sent event, but for its id; JSON in ASCII has no line breaks to mind."""
    data = json.dumps(view, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\ndata: {data}\n\n".encode("ascii")


class Mailbox:
    """What one page has not been sent yet: the newest state of each thing, in the order of their changes."""

    def __init__(self, capacity: int = MAILBOX_EVENTS) -> None:
        self._capacity = capacity
        self._events: OrderedDict[str, bytes] = OrderedDict()
        self._filled = asyncio.Event()
        self._closed = False

    def post(self, thing: str, event: bytes) -> None:
        """Put in `event`, in place of an older one about the same `thing`."""
        self._events.pop(thing, None)
        self._events[thing] = event
        if len(self._events) > self._capacity:
            del self._events[next(thing for thing in self._events if thing not in _ONCE)]
        self._filled.set()

    def close(self) -> None:
        """Let the reader end."""
        self._closed = True
        self._filled.set()

    async def take(self, timeout_s: float) -> list[bytes] | None:
        """Wait for events and take them out, oldest first, up to a chunk; empty after `timeout_s` of silence.

        None when closed.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._filled.wait()
        if self._closed:
            return None
        events: list[bytes] = []
        room_bytes = _CHUNK_BYTES
        while self._events and room_bytes > 0:
            _, event = self._events.popitem(last=False)
            events.append(event)
            room_bytes -= len(event)
        if not self._events:
            self._filled.clear()
        return events

    def __len__(self) -> int:
        return len(self._events)


class TelemetryStreams:
    """All open streams of one application."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._board = services.jobs.board
        self._listeners: list[ChangesListener] = []
        self._mailboxes: set[Mailbox] = set()
        self._ids = itertools.count(1)
        self._preview: tuple[Preview | None, str] = (None, "")
        self._ended: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._snapshot: Snapshot | None = None  # the newest that was sent to all
        self._history: tuple[Snapshot | None, bytes] = (None, b"")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return len(self._mailboxes)

    def add_listener(self, listener: ChangesListener) -> None:
        """Let `listener` hear of every change on the board too, on the event loop, pages or not."""
        self._listeners.append(listener)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the board and the sampler while the application runs."""
        self._loop = loop = asyncio.get_running_loop()
        news, snapshots = asyncio.Event(), asyncio.Event()
        with (
            self._board.subscribe(lambda: _wake(loop, news)) as changes,
            self._services.sampler.subscribe(lambda: _wake(loop, snapshots)),
        ):
            tasks = [
                asyncio.create_task(self._watch(news, lambda: self._post_changes(changes.changed()))),
                asyncio.create_task(self._watch(snapshots, self._post_snapshot)),
            ]
            news.set()
            snapshots.set()
            try:
                yield
            finally:
                self._close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End all streams now, and those to come at once; may be called from any thread or a signal handler."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the streams with it
                self._loop.call_soon_threadsafe(self._close)

    async def events(self) -> AsyncIterator[bytes]:
        """The stream of one page: first the whole present state, then every change, with a comment in long silence."""
        if self._closed:
            return
        mailbox = Mailbox()
        self._mailboxes.add(mailbox)
        try:
            self._post_present_state(mailbox)
            yield b"retry: %d\n\n" % RECONNECT_MS
            while (events := await mailbox.take(HEARTBEAT_S)) is not None:
                yield b"".join(b"id: %d\n%b" % (next(self._ids), event) for event in events) or _HEARTBEAT
        finally:
            self._mailboxes.discard(mailbox)

    def _close(self) -> None:
        self._closed = True
        for mailbox in self._mailboxes:
            mailbox.close()

    async def _watch(self, woken: asyncio.Event, post: Callable[[], None]) -> None:
        while True:
            await woken.wait()
            woken.clear()
            with _survived("The news could not be sent to the pages."):
                post()

    def _post_changes(self, changes: Changes) -> None:
        for listener in self._listeners:
            with _survived("A listener failed at a change."):
                listener(changes)
        if changes.readiness is not None:
            self._post_all(_READINESS, self._readiness_event)
        for record in changes.jobs:
            self._post_all(record.job_id, lambda record=record: self._job_event(record))  # type: ignore[misc]

    def _post_snapshot(self) -> None:
        before, snapshot = self._snapshot, self._services.sampler.latest
        if snapshot is None:
            return
        self._snapshot = snapshot
        self._post_all(_TELEMETRY, lambda: self._telemetry_event(snapshot))
        if snapshot.gpu_lost != (before is not None and before.gpu_lost):
            self._post_all(_READINESS, self._readiness_event)

    def _post_all(self, thing: str, encode: Callable[[], bytes]) -> None:
        if self._mailboxes:
            _post(self._mailboxes, thing, encode)

    def _post_present_state(self, mailbox: Mailbox) -> None:
        to = (mailbox,)
        _post(to, _READINESS, self._readiness_event)
        if (snapshot := self._snapshot) is not None:
            _post(to, _HISTORY, lambda: self._history_event(snapshot))
            _post(to, _TELEMETRY, lambda: self._telemetry_event(snapshot))
        for record in (*reversed(self._board.recent(RECENT_JOBS)), *self._board.active()):
            _post(to, record.job_id, lambda record=record: self._job_event(record))  # type: ignore[misc]

    def _readiness_event(self) -> bytes:
        board, sampler = self._board, self._services.sampler
        view = views.readiness_view(board.readiness, board.model, sampler.latest, board.shapes)
        return encode_event(_READINESS, view)

    def _history_event(self, newest: Snapshot) -> bytes:
        """What was measured before `newest`; encoded once for all pages that come before the next look."""
        snapshot, event = self._history
        if snapshot is not newest:
            before = [each for each in self._services.sampler.history.since() if each.at_s < newest.at_s]
            event = encode_event(_HISTORY, views.history_view(before[-HISTORY_LOOKS:]))
            self._history = (newest, event)
        return event

    def _telemetry_event(self, snapshot: Snapshot) -> bytes:
        services = self._services
        view = views.telemetry_view(
            snapshot, services.jobs.queue_length, services.saver.pending, services.generator_stats()
        )
        return encode_event(_TELEMETRY, view)

    def _job_event(self, record: JobRecord) -> bytes:
        """The event of `record`; kept for a job that has ended, as each new page asks for it again."""
        revision, event = self._ended.get(record.job_id, (-1, b""))
        if revision == record.revision:
            return event
        event = encode_event("job", views.job_view(record, self._board.model, self._preview_url(record)))
        if record.phase.ended:
            self._ended[record.job_id] = (record.revision, event)
            while len(self._ended) > 2 * RECENT_JOBS:
                self._ended.popitem(last=False)
        return event

    def _preview_url(self, record: JobRecord) -> str | None:
        """The job's preview, encoded once for all pages and all changes until the next one.

        One is kept: the GPU has one owner, so one job at a time has previews that change.
        """
        if record.preview is None:
            return None
        preview, url = self._preview
        if preview is not record.preview:
            url = views.preview_data_url(record.preview)
            self._preview = (record.preview, url)
        return url


def stream_router(streams: TelemetryStreams) -> APIRouter:
    """`GET /telemetry`."""
    router = APIRouter()

    @router.get("/telemetry")
    async def telemetry() -> StreamingResponse:
        return StreamingResponse(
            streams.events(),
            media_type="text/event-stream",
            # A proxy in between must neither keep nor collect what is meant for now.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return router


def _post(mailboxes: Iterable[Mailbox], thing: str, encode: Callable[[], bytes]) -> None:
    """Encode once and put into all; one state that cannot be encoded must not end the news of all others."""
    with _survived("A state could not be sent to the pages."):
        event = encode()
        for mailbox in mailboxes:
            mailbox.post(thing, event)


@contextlib.contextmanager
def _survived(message: str) -> Iterator[None]:
    """Log whatever goes wrong, and go on: the task that watches must not end while the application runs."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever one state holds, the news of all others goes on
        _log.exception(message)


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    loop.call_soon_threadsafe(woken.set)
