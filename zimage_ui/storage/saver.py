"""Pictures are encoded and written on background threads, so that saving never delays the next one.

::

    submit -> [encoding threads] -> on_ready -> [one writing thread: files, then rows] -> on_saved | on_failed

Orders are never dropped: `submit` waits while too many are under way. Files and rows that have piled up are synced and
listed together. A picture whose file could not be written stays readable from memory and is tried again when the disk
takes another one, or after a while; only when such pictures outgrow `unsaved_bytes` is the oldest given up, and logged.
A picture whose format cannot be encoded becomes a PNG, which needs nothing but memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from zimage_ui.errors import NotReadyError, StorageError, ZImageError
from zimage_ui.events import PictureRef
from zimage_ui.request import GeneratedImage, GenerationRequest, ImageFormat
from zimage_ui.storage.encoders import EncodedPicture, encode_picture
from zimage_ui.storage.files import OutputFolder, new_picture_id
from zimage_ui.storage.library import Library, LibraryRow
from zimage_ui.storage.memory import PictureMemory
from zimage_ui.storage.metadata import PictureMetadata

logger = logging.getLogger(__name__)

MAX_PENDING = 16
RECENT_BYTES = 64 * 2**20
UNSAVED_BYTES = 256 * 2**20
RETRY_S = 30.0
_MAX_BATCH = 16
_MAX_UNLISTED_ROWS = 10_000
_CHECK_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOrder:
    """A picture to be saved, and who wants to hear of it.

    Attributes:
        picture_id: from `new_picture_id`.
        image: the pixels.
        metadata: goes into the file, and with the time of saving into the library.
        image_format: of the file.
        on_ready: the picture is encoded and `Saver.read` gives it; it is not safe yet.
        on_saved: its file is synced to disk and its row is in the library.
        on_failed: it could not be saved, for now. Each order ends in exactly one of `on_saved` and `on_failed`; only
            `on_saved` may still follow on `on_failed`, when the disk takes the picture after all.

    The three are called on the saver's threads and should return at once; what they raise is logged.
    """

    picture_id: str
    image: GeneratedImage
    metadata: PictureMetadata
    image_format: ImageFormat
    on_ready: Callable[[PictureRef], None]
    on_saved: Callable[[PictureRef], None]
    on_failed: Callable[[ZImageError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaverStats:
    """The saver in numbers, since its start.

    Attributes:
        pending: orders that have met no end yet.
        saved, failed: orders by their end.
        recovered: of the failed, those that were saved later after all.
        unsaved: of the failed, those still held in memory to be tried again.
        lost: of the failed, those given up because too many were held, or because they could not be encoded at all.
        encode_ms, write_ms, index_ms: summed over all pictures; write is files and their syncs, index the rows.
        encoded_bytes: of all files.
        batches: how often files were written; below `saved`, when several went together.
        memory_bytes: encoded pictures held in memory.
        replaced_threads: threads that died and were replaced.
    """

    pending: int = 0
    saved: int = 0
    failed: int = 0
    recovered: int = 0
    unsaved: int = 0
    lost: int = 0
    encode_ms: float = 0.0
    write_ms: float = 0.0
    index_ms: float = 0.0
    encoded_bytes: int = 0
    batches: int = 0
    memory_bytes: int = 0
    replaced_threads: int = 0


@dataclass(eq=False, slots=True)
class _Saving:
    """An order on its way: `safe` once its file is synced, `ended` once `on_saved` or `on_failed` was called."""

    order: SaveOrder
    path: Path
    submitted_at_s: float
    encoded: EncodedPicture | None = None
    safe: bool = False
    ended: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.encoded.data) if self.encoded else 0


class Saver:
    """Saves pictures in the background."""

    def __init__(
        self,
        folder: OutputFolder,
        library: Library,
        *,
        threads: int = 2,
        max_pending: int = MAX_PENDING,
        recent_bytes: int = RECENT_BYTES,
        unsaved_bytes: int = UNSAVED_BYTES,
        retry_s: float = RETRY_S,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            folder: where pictures go; prepared.
            library: its index.
            threads: that encode; one more writes.
            max_pending: orders under way at once; `submit` waits beyond it.
            recent_bytes: saved pictures kept in memory.
            unsaved_bytes: pictures kept in memory because their file could not be written.
            retry_s: between two tries of these.
        """
        self._folder, self._library = folder, library
        self._threads_wanted, self._max_pending = threads, max_pending
        self._unsaved_bytes, self._retry_s = unsaved_bytes, retry_s
        self._memory = PictureMemory(recent_bytes)
        self._changed = threading.Condition()  # guards all below
        self._to_encode: deque[_Saving] = deque()
        self._to_write: deque[_Saving] = deque()
        self._unsaved: OrderedDict[str, _Saving] = OrderedDict()
        self._retry_at_s = 0.0
        self._unlisted: OrderedDict[str, LibraryRow] = OrderedDict()
        self._threads: list[threading.Thread] = []
        self._stats = SaverStats()
        self._closing = self._last_try_made = False

    @property
    def pending(self) -> int:
        """Orders that have met no end yet."""
        with self._changed:
            return self._stats.pending

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._threads_wanted):
            self._start_thread(f"saver-encode-{number}", self._encode_orders)
        self._start_thread("saver-write", self._write_orders)

    def submit(self, order: SaveOrder) -> None:
        """Take an order; waits while `max_pending` are under way.

        Raises:
            NotReadyError: the saver is closed, or was while this waited; none of the order's callbacks is called.
            ValueError: the order's id was not made by `new_picture_id`.
        """
        path = self._folder.path_for(order.picture_id, order.metadata.created_at, order.image_format)
        saving = _Saving(order, path, time.monotonic())
        with self._changed:
            self._changed.wait_for(lambda: self._stats.pending < self._max_pending or self._closing)
            if self._closing:
                raise NotReadyError(f"Picture {order.picture_id} was not saved: the service is stopping.")
            self._add("pending", 1)
            self._to_encode.append(saving)
            self._changed.notify_all()

    def read(self, picture_id: str) -> tuple[bytes, ImageFormat]:
        """The bytes of a picture's file: from memory while it is not safe on disk or still recent, else from disk.

        Raises:
            PictureNotFoundError: there is no such picture, or its file is gone.
            StorageError: it cannot be read.
        """
        held = self._memory.get(picture_id)
        if held is not None:
            return held
        with self._changed:
            unlisted = self._unlisted.get(picture_id)
        row = unlisted or self._library.get(picture_id)
        return self._folder.read(row.path), row.image_format

    def stats(self) -> SaverStats:
        """The saver in numbers."""
        with self._changed:
            return replace(self._stats, unsaved=len(self._unsaved), memory_bytes=self._memory.size_bytes)

    def self_check(self) -> None:
        """Encode a small picture in every format, write, sync, read back and delete one: the warm-up of saving.

        Raises:
            StorageError: one of these failed.
        """
        image, metadata = _check_picture()
        encoded = [encode_picture(image, metadata, image_format) for image_format in ImageFormat]
        self._folder.check(encoded[0].data)
        self._library.count()

    def drain(self, timeout_s: float) -> bool:
        """Wait until no order is under way; whether that came within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stats.pending == 0, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Take no more orders, finish those under way, try the unsaved ones a last time, stop the threads.

        Returns:
            Whether every picture is safe; those that are not are logged.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            lost_before = self._stats.lost
            self._changed.notify_all()
        while (left_s := deadline_s - time.monotonic()) > 0 and (alive := self._alive()):
            alive[0].join(left_s)
        with self._changed:
            at_risk = [*self._to_encode, *self._to_write, *self._unsaved.values()]
            pending, lost = self._stats.pending, self._stats.lost - lost_before
        if at_risk or pending:
            names = ", ".join(saving.order.picture_id for saving in at_risk)
            logger.error("the saver was closed with pictures not on disk, %d under way: %s", pending, names)
        return not at_risk and not pending and not lost

    # Threads

    def _start_thread(self, name: str, loop: Callable[[], None]) -> None:
        def run() -> None:
            finished = False
            try:
                loop()
                finished = True
            finally:
                if not finished:
                    logger.critical("the thread %s died and is replaced", name)
                    self._add("replaced_threads", 1)
                    self._start_thread(name, loop)

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._changed:
            thread.start()
            self._threads = [*self._alive(), thread]

    def _alive(self) -> list[threading.Thread]:
        with self._changed:
            return [thread for thread in self._threads if thread.is_alive()]

    def _encode_orders(self) -> None:
        while (saving := self._next_to_encode()) is not None:
            self._carry_out(self._encode, [saving])

    def _write_orders(self) -> None:
        while (batch := self._next_to_write()) is not None:
            self._carry_out(self._write, batch)

    def _next_to_encode(self) -> _Saving | None:
        with self._changed:
            self._changed.wait_for(lambda: self._to_encode or self._closing)
            return self._to_encode.popleft() if self._to_encode else None

    def _next_to_write(self) -> list[_Saving] | None:
        """What has piled up; else pictures to try again, when it is time; None when all is done and closing."""
        with self._changed:
            while True:
                if self._to_write:
                    return [self._to_write.popleft() for _ in range(min(_MAX_BATCH, len(self._to_write)))]
                if self._closing and self._stats.pending == 0:
                    if not self._unsaved or self._last_try_made:
                        return None
                    self._last_try_made = True
                    return list(self._unsaved.values())
                wait_s = self._retry_at_s - time.monotonic() if self._unsaved else None
                if wait_s is not None and wait_s <= 0:
                    return [next(iter(self._unsaved.values()))]
                self._changed.wait(wait_s)

    def _carry_out(self, action: Callable[[list[_Saving]], None], savings: list[_Saving]) -> None:
        """Do it; whatever happens, even the end of this thread, orders that cannot go on meet their end."""
        failure: ZImageError | None = StorageError("The thread that was saving the picture died.", "The log says why.")
        try:
            failure = _attempt(lambda: action(savings))
        finally:
            if failure is not None:
                for saving in savings:
                    if saving.encoded is None:
                        self._lose(saving.order.picture_id, "it could not be encoded")
                    elif not saving.safe:
                        self._keep_unsaved(saving)
                    self._fail(saving, failure)

    # One picture's way

    def _encode(self, savings: list[_Saving]) -> None:
        (saving,) = savings
        began_s = time.perf_counter()
        saving.encoded = encoded = self._encoded(saving)
        order = saving.order
        self._add("encode_ms", _ms_since(began_s))
        self._add("encoded_bytes", len(encoded.data))
        self._memory.hold(order.picture_id, encoded.data, order.image_format)
        saving.order = replace(order, image=replace(order.image, pixels=b""))  # the bytes are enough from here on
        _tell(lambda: order.on_ready(self._reference(saving)))
        with self._changed:
            self._to_write.append(saving)
            self._changed.notify_all()

    def _encoded(self, saving: _Saving) -> EncodedPicture:
        """The picture in the format that was asked for, or else as PNG; the order and its path then say so."""
        order = saving.order
        try:
            return encode_picture(order.image, order.metadata, order.image_format)
        except Exception as error:  # whatever it is: these pixels are all that there is of the picture
            if order.image_format is ImageFormat.PNG:
                raise
            logger.error("picture %s becomes a PNG: %s", order.picture_id, error)
        metadata = replace(order.metadata, request=replace(order.metadata.request, image_format=ImageFormat.PNG))
        saving.order = replace(order, metadata=metadata, image_format=ImageFormat.PNG)
        saving.path = self._folder.path_for(order.picture_id, metadata.created_at, ImageFormat.PNG)
        return encode_picture(order.image, metadata, ImageFormat.PNG)

    def _write(self, batch: list[_Saving]) -> None:
        began_s = time.perf_counter()
        failures = self._write_files(batch)
        written_at_s = time.monotonic()
        self._add("write_ms", _ms_since(began_s))
        self._add("batches", 1)
        written = []
        for saving, failure in zip(batch, failures, strict=True):
            if failure is None:
                saving.safe = True
                written.append(saving)
            else:
                self._keep_unsaved(saving)
                self._fail(saving, failure)
        if written:
            self._list(written, written_at_s)

    def _write_files(self, batch: Sequence[_Saving]) -> list[StorageError | None]:
        """Write each picture behind its sidecar, if it has one; why each failed, or None."""
        files: list[tuple[Path, bytes]] = []
        owners: list[int] = []
        for number, saving in enumerate(batch):
            assert saving.encoded is not None, "only encoded pictures are written"
            if saving.encoded.sidecar is not None:
                files.append((saving.path.with_suffix(".json"), saving.encoded.sidecar))
                owners.append(number)
            files.append((saving.path, saving.encoded.data))
            owners.append(number)
        failures: list[StorageError | None] = [None] * len(batch)
        for owner, failure in zip(owners, self._folder.write_all(files), strict=True):
            failures[owner] = failures[owner] or failure
        return failures

    def _list(self, written: list[_Saving], written_at_s: float) -> None:
        """Put files that are safe into the library, with rows that it would not take before."""
        rows = {saving.order.picture_id: self._row(saving, written_at_s) for saving in written}
        began_s = time.perf_counter()
        failure = _attempt(lambda: self._library.add([*self._unlisted.values(), *rows.values()]))
        self._add("index_ms", _ms_since(began_s))
        with self._changed:
            self._unlisted.update(rows)
            while self._unlisted and (failure is None or len(self._unlisted) > _MAX_UNLISTED_ROWS):
                self._unlisted.popitem(last=False)
        for picture_id in rows:
            self._memory.release(picture_id)  # from here on `read` finds the file
        for saving in written:
            self._forget_unsaved(saving)
            if failure is None:
                self._succeed(saving)
            else:
                self._fail(saving, _unlisted_error(saving.path, failure))

    def _succeed(self, saving: _Saving) -> None:
        def tell() -> None:
            saving.order.on_saved(self._reference(saving))

        if saving.ended:  # it was told as failed, and is saved after all
            _tell(tell)
        else:
            self._end(saving, "saved", tell)

    def _fail(self, saving: _Saving, error: ZImageError) -> None:
        self._end(saving, "failed", lambda: saving.order.on_failed(error))

    def _end(self, saving: _Saving, how: str, tell: Callable[[], None]) -> None:
        if saving.ended:
            return
        saving.ended = True
        try:
            _tell(tell)
        finally:
            with self._changed:
                self._add(how, 1)
                self._add("pending", -1)
                self._changed.notify_all()

    def _forget_unsaved(self, saving: _Saving) -> None:
        """The disk took a picture: one that it had refused before is unsaved no more, and the others may follow."""
        with self._changed:
            self._retry_at_s = 0.0
            if self._unsaved.pop(saving.order.picture_id, None) is None:
                return
        self._add("recovered", 1)
        logger.info("picture %s is saved after all", saving.order.picture_id)

    def _keep_unsaved(self, saving: _Saving) -> None:
        """Hold on to a picture that the disk refused, and let the oldest such go when they are too many."""
        with self._changed:
            self._unsaved[saving.order.picture_id] = saving
            self._unsaved.move_to_end(saving.order.picture_id)  # so that one hopeless picture does not block the rest
            self._retry_at_s = time.monotonic() + self._retry_s
            held_bytes = sum(other.size_bytes for other in self._unsaved.values())
            given_up = []
            while held_bytes > self._unsaved_bytes:
                _, oldest = self._unsaved.popitem(last=False)
                held_bytes -= oldest.size_bytes
                given_up.append(oldest.order.picture_id)
        for picture_id in given_up:
            self._memory.release(picture_id)
            self._lose(picture_id, "too many could not be saved")

    def _lose(self, picture_id: str, why: str) -> None:
        logger.error("picture %s is given up: %s", picture_id, why)
        self._add("lost", 1)

    def _row(self, saving: _Saving, written_at_s: float) -> LibraryRow:
        save_ms = round((written_at_s - saving.submitted_at_s) * 1e3, 3)
        metadata = saving.order.metadata.with_timings({"save": save_ms})
        return LibraryRow.of(metadata, path=self._folder.relative(saving.path), size_bytes=saving.size_bytes)

    def _reference(self, saving: _Saving) -> PictureRef:
        image = saving.order.image
        return PictureRef(
            picture_id=saving.order.picture_id,
            seed=image.seed,
            width=image.width,
            height=image.height,
            image_format=saving.order.image_format,
            size_bytes=saving.size_bytes,
            path=self._folder.relative(saving.path) if saving.safe else "",
        )

    def _add(self, name: str, more: float) -> None:
        with self._changed:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + more})


def _attempt(action: Callable[[], None]) -> ZImageError | None:
    """Do it; what went wrong, as an error of our tree."""
    try:
        action()
    except ZImageError as error:
        return error
    except Exception as error:  # the thread goes on with the next picture, and the log has all of this one
        logger.exception("unexpected error while saving")
        return StorageError(f"Saving failed unexpectedly: {type(error).__name__}: {error}", "The log says more.")
    return None


def _tell(listener: Callable[[], None]) -> None:
    """Call one of an order's callbacks: what is wrong with it must not cost the picture."""
    failure = _attempt(listener)
    if failure is not None:
        logger.error("a listener of the saver failed: %s", failure)


def _ms_since(began_s: float) -> float:
    return (time.perf_counter() - began_s) * 1e3


def _unlisted_error(path: Path, failure: ZImageError) -> StorageError:
    return StorageError(
        f"{path} is written but could not be listed: {failure.message}",
        "It is listed with the next picture, or at the next start.",
    )


def _check_picture() -> tuple[GeneratedImage, PictureMetadata]:
    side = _CHECK_SIDE
    image = GeneratedImage(index=0, seed=0, width=side, height=side, pixels=bytes(range(side)) * (side * 3))
    metadata = PictureMetadata(
        picture_id=new_picture_id(),
        created_at=datetime.now(UTC),
        request=GenerationRequest(prompt="self-check", width=side, height=side, seed=0),
        index=0,
        nfe=0,
        model_name="none",
        model_fingerprint="",
        model_trained=False,
        dtype="",
    )
    return image, metadata
