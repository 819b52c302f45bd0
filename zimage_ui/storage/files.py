"""Names and files: sortable ids made here alone, and files that appear whole or not at all.

A file is written under a temporary name in its own folder, synced, linked to its final name (which never replaces
anything), and the folder is synced. A process killed in between leaves a hidden `.*.tmp` that the next start removes.
Every path is built from an id and a date and opened step by step without following symbolic links, so nothing is
written or read outside the output folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from zimage_ui.errors import OutputFolderError, PictureNotFoundError, StorageError
from zimage_ui.request import ImageFormat

INTERNAL = ".zimage"
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_DAY = r"\d{4}-\d\d-\d\d"
_PICTURE_PATH = re.compile(rf"({_DAY})/({_ID}\.(?:png|jpg|webp|json))", re.ASCII)
_PICTURE_NAME = re.compile(rf"{_ID}\.(?:png|jpg|webp)", re.ASCII)
_TEMPORARY_NAME = re.compile(rf"\.{_ID}\.[a-z]+\.[0-9a-f]{{8}}\.tmp", re.ASCII)
_CHECK_NAME = re.compile(rf"{_ID}\.check", re.ASCII)
# A check's file lives for milliseconds, unlocked for the last of them: one that is older has lost its process.
_CHECK_LIFE_S = 60.0
_RANDOM_BITS = 80
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_HINTS = {
    errno.ENOSPC: "Free some space there; the picture can be downloaded from the page until then.",
    errno.EDQUOT: "Free some of this user's space there; the picture can be downloaded from the page until then.",
    errno.EACCES: "Give the user that runs zimage-ui the right to write there.",
    errno.EPERM: "Give the user that runs zimage-ui the right to write there.",
    errno.EROFS: "The disk is mounted read-only: remount it for writing, or choose another output folder.",
    errno.ELOOP: "It is a symbolic link, and pictures are never written through one: remove the link.",
    errno.ENOTDIR: "It is not a folder, or a symbolic link to one: move it out of the way.",
    errno.EEXIST: "Another file has this name and is not replaced: move it out of the way.",
    errno.EIO: "The disk reports an error: look at its health and at the system's log.",
    errno.EMFILE: "The process has too many files open: raise its limit (ulimit -n).",
}


class _IdMaker:
    """ULIDs that only ever rise, also when the clock goes back (https://github.com/ulid/spec, "monotonicity")."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def make(self) -> str:
        """A new id: 48 bits of milliseconds, then 80 of chance; within the same millisecond the last one plus one."""
        with self._lock:
            fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
            same_or_earlier = fresh >> _RANDOM_BITS <= self._last >> _RANDOM_BITS
            self._last = number = self._last + 1 if same_or_earlier else fresh
        return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


_id_maker = _IdMaker()


def new_picture_id() -> str:
    """A ULID: 26 characters that sort by time of making; rising within the process even when the clock jumps back."""
    return _id_maker.make()


class OutputFolder:
    """The folder that pictures lie in: `<root>/<yyyy-mm-dd>/<id>.<suffix>`, ours alone in `<root>/.zimage`.

    Attributes:
        root: absolute; a symbolic link given as the root is resolved once, here.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def prepare(self) -> None:
        """Create the folder, prove that a file can be written and read there, and sweep what killed processes left.

        Raises:
            OutputFolderError: it cannot be used.
        """
        try:
            self.check(b"zimage-ui")
            self._sweep()
        except (StorageError, OSError) as error:
            reason = error.message if isinstance(error, StorageError) else str(error)
            raise OutputFolderError(
                f"The output folder {self.root} cannot be used: {reason}",
                getattr(error, "hint", "") or "Set ZIMAGE_OUTPUT_DIR to a folder that this user may write to.",
            ) from error

    def path_for(self, picture_id: str, created_at: datetime, image_format: ImageFormat) -> Path:
        """Where a picture lies; the date is that of `created_at` in its own time zone.

        Raises:
            ValueError: `picture_id` is none of ours.
        """
        relative = f"{created_at.date().isoformat()}/{picture_id}.{image_format.suffix}"
        self._split(relative)
        return self.root / relative

    def relative(self, path: Path) -> str:
        """`path` below the root, with forward slashes.

        Raises:
            ValueError: it is not below the root.
        """
        return path.relative_to(self.root).as_posix()

    def has(self, relative: str) -> bool:
        """Whether this file lies here."""
        if not _PICTURE_PATH.fullmatch(relative):
            return False
        with contextlib.suppress(OSError):
            return stat.S_ISREG(os.lstat(self.root / relative).st_mode)
        return False

    def pictures(self) -> Iterator[str]:
        """The relative paths of all files named like a picture of ours, day by day.

        Raises:
            OSError: a folder cannot be listed.
        """
        for day in self._days():
            with os.scandir(self.root / day) as entries:
                names = [
                    e.name for e in entries if _PICTURE_NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False)
                ]
            yield from (f"{day}/{name}" for name in sorted(names))

    def write(self, path: Path, data: bytes) -> None:
        """Put a file in its place, whole and synced to disk; the same file once more is no error.

        Raises:
            StorageError: it could not be written, or another file has its name. Nothing is visible then, or (where
                only the folder could not be synced) the whole file is, which a power cut might take back.
        """
        failure = self.write_all([(path, data)])[0]
        if failure is not None:
            raise failure

    def write_all(self, files: Sequence[tuple[Path, bytes]]) -> list[StorageError | None]:
        """`write` for several: each folder is synced once. For each file, in order: None, or why it failed."""
        failures = [self._place(path, data) for path, data in files]
        folders = {path.parent for (path, _), failure in zip(files, failures, strict=True) if failure is None}
        unsynced = {folder: self._sync(folder) for folder in folders}
        return [failure or unsynced.get(path.parent) for (path, _), failure in zip(files, failures, strict=True)]

    def read(self, relative: str) -> bytes:
        """The bytes of a file here.

        Raises:
            PictureNotFoundError: there is no such file.
            StorageError: it cannot be read.
        """
        day, name = self._split(relative)
        try:
            with self._opened(day) as folder_fd:
                return _read(folder_fd, name)
        except FileNotFoundError:
            raise PictureNotFoundError(
                f"The file {self.root / relative} is gone.", "It was deleted or moved by another program."
            ) from None
        except OSError as error:
            raise self._error(error, self.root / relative, "read") from error

    def check(self, data: bytes) -> None:
        """Write `data` as a picture is written, sync, read it back and delete it, out of sight.

        Raises:
            StorageError: one of these failed, or something else came back.
        """
        name = f"{new_picture_id()}.check"
        path = self.root / INTERNAL / name
        try:
            with self._opened(INTERNAL, create=True) as folder_fd:
                _write_whole(folder_fd, name, data)
                os.fsync(folder_fd)
                returned = _read(folder_fd, name)
                os.unlink(name, dir_fd=folder_fd)
        except OSError as error:
            raise self._error(error, path, f"written ({len(data):,} bytes) and read back") from error
        if returned != data:
            raise StorageError(f"{path} came back changed from the disk.", _HINTS[errno.EIO])

    def internal(self) -> Path:
        """The folder of our own files, made if need be.

        Raises:
            StorageError: it cannot be made, or is a symbolic link.
        """
        path = self.root / INTERNAL
        try:
            with self._opened(INTERNAL, create=True):
                return path
        except OSError as error:
            raise self._error(error, path, "opened") from error

    def _split(self, relative: str) -> tuple[str, str]:
        match = _PICTURE_PATH.fullmatch(relative)
        if match is None:
            raise ValueError(f"{relative!r} is no path of a picture")
        return match[1], match[2]

    def _days(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            return sorted(e.name for e in entries if re.fullmatch(_DAY, e.name) and e.is_dir(follow_symlinks=False))
        return []

    @contextlib.contextmanager
    def _opened(self, name: str, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder `name` in the root; neither of the two may be a symbolic link."""
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        with _folder_fd(self.root) as root_fd:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=root_fd)
                    os.fsync(root_fd)
            with _folder_fd(name, root_fd) as folder_fd:
                yield folder_fd

    def _place(self, path: Path, data: bytes) -> StorageError | None:
        day, name = self._split(self.relative(path))
        try:
            with self._opened(day, create=True) as folder_fd:
                _write_whole(folder_fd, name, data)
        except OSError as error:
            return self._error(error, path, f"written ({len(data):,} bytes)")
        return None

    def _sync(self, folder: Path) -> StorageError | None:
        try:
            with self._opened(folder.name) as folder_fd:
                os.fsync(folder_fd)
        except OSError as error:
            return self._error(error, folder, "synced to disk")
        return None

    def _error(self, error: OSError, path: Path, done: str) -> StorageError:
        """The one place where the disk's errors become ours."""
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(self.root).free:,} bytes free)"
        return StorageError(
            f"{path} could not be {done}: {error.strerror or error}{free}.",
            _HINTS.get(error.errno or 0, "Look at the disk and at the rights of the output folder."),
        )

    def _sweep(self) -> None:
        for folder in (INTERNAL, *self._days()):
            with self._opened(folder) as folder_fd:
                with os.scandir(folder_fd) as entries:
                    names = [entry.name for entry in entries]
                for name in names:
                    if _TEMPORARY_NAME.fullmatch(name):
                        _remove_orphan(folder_fd, name)
                    elif folder == INTERNAL and _CHECK_NAME.fullmatch(name):
                        _remove_orphan(folder_fd, name, older_than_s=_CHECK_LIFE_S)


@contextlib.contextmanager
def _folder_fd(path: Path | str, parent_fd: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER_FLAGS, dir_fd=parent_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole and synced to disk, in place of what was there: for files whose names people choose.

    Raises:
        OSError: it could not be written.
    """
    folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _written(folder_fd, path.name, data) as temporary:
            os.rename(temporary, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _write_whole(folder_fd: int, name: str, data: bytes) -> None:
    """Write, sync and publish a file; the folder is left to be synced."""
    with _written(folder_fd, name, data) as temporary:
        _publish(folder_fd, temporary, name, data)


@contextlib.contextmanager
def _written(folder_fd: int, name: str, data: bytes) -> Iterator[str]:
    """`data` in a hidden file beside the one that it shall become, synced; that name of it is gone afterwards."""
    temporary, descriptor = _create_temporary(folder_fd, name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        yield temporary
    finally:
        # What cannot be removed now is hidden, and swept at the next start.
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder_fd)
        os.close(descriptor)


def _create_temporary(folder_fd: int, name: str) -> tuple[str, int]:
    """A new hidden file, locked for as long as it is open, so that a sweep of another process leaves it alone."""
    while True:
        temporary = f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            descriptor = os.open(
                temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=folder_fd
            )
        except FileExistsError:
            continue
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(os.close, descriptor)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody can sweep it by lock either
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # otherwise it was swept between its creation and its lock
                unless_kept.pop_all()
                return temporary, descriptor


def _publish(folder_fd: int, temporary: str, name: str, data: bytes) -> None:
    """Give the file its final name, unless another file has it: `link` refuses where `rename` would replace."""
    try:
        os.link(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except FileExistsError:
        if _read(folder_fd, name) != data:
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # exFAT and some network disks have no hard links; ids are unique, so looking first is the best there is.
        try:
            existing = _read(folder_fd, name)
        except FileNotFoundError:
            os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            return
        if existing != data:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None


def _read(folder_fd: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _remove_orphan(folder_fd: int, name: str, older_than_s: float = 0.0) -> None:
    """Remove what a killed process left; a file whose writer lives is locked by it and stays."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        return
    try:
        if older_than_s and time.time() - os.fstat(descriptor).st_mtime < older_than_s:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder_fd)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(descriptor)
