"""Whatever fails, and whenever it is killed: every listed picture opens, every finished one is listed or recoverable.

The disk is made to fail, and a real process is killed, at its first, second, third ... call until a save goes through.
"""

import errno
import io
import itertools
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from zimage_ui.request import ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage.encoders import read_metadata
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver

WAIT_S = 20.0
LONG = "😀" * 8000  # does not fit into a JPEG: a second file, the sidecar, is written with it
CALLS = {
    "open": ("open",),
    "write": ("write",),
    "fsync": ("fsync",),
    "rename": ("link", "rename", "unlink"),
    "mkdir": ("mkdir",),
    "any": ("open", "write", "fsync", "link", "rename", "unlink", "mkdir", "fstat", "close"),
}


def _opens(data):
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
    return True


def _check_visible(folder):
    """No partial file is to be seen, and each picture knows its settings."""
    for path in folder.root.glob("2*/*"):
        if path.suffix != ".json" and not path.name.startswith("."):
            assert _opens(path.read_bytes())
            assert read_metadata(path).picture_id == path.stem


def _check_listed(library, read):
    rows = library.newest(1000)
    assert len(rows) == library.count()
    assert all(_opens(read(row)) for row in rows)
    return {row.picture_id for row in rows}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("calls", CALLS)
def test_a_save_that_fails_at_any_call_loses_no_picture(tmp_path, listener, fail_disk, calls, code):
    for nth in itertools.count(1):
        folder = OutputFolder(tmp_path / str(nth))
        folder.prepare()
        with closing(Library(folder)) as library:
            saver = Saver(folder, library, threads=1, retry_s=3600)
            saver.start()
            disk, failed_before = fail_disk(CALLS[calls], nth, code), len(listener.failed)
            order = listener.order(ImageFormat.JPEG, LONG, request={"negative_prompt": LONG})
            saver.submit(order)
            assert saver.drain(WAIT_S)
            failed_once = disk.has_failed
            fail_disk()

            _check_visible(folder)
            saved = {picture.picture_id for picture in listener.saved} & {order.picture_id}
            assert _check_listed(library, lambda row, saver=saver: saver.read(row.picture_id)[0]) == saved
            assert len(saved) + len(listener.failed) - failed_before == 1
            assert _opens(saver.read(order.picture_id)[0])

            assert saver.close(WAIT_S)  # the disk works again: what it refused is saved now
            assert _check_listed(library, lambda row, folder=folder: folder.read(row.path)) == {order.picture_id}
            assert read_metadata(folder.root / library.get(order.picture_id).path).request.prompt == LONG
        folder.prepare()
        assert list(folder.root.glob("2*/.*")) == []
        if not failed_once:
            break
    assert nth > 1
    assert saved


def _run_and_kill(root, stop_at, rounds, kill_after_saves=10**9):
    """Save in a process of its own and kill it: at its n-th call to the disk, or as soon as some pictures are saved."""
    script = Path(__file__).with_name("saving_process.py")
    command = [sys.executable, str(script), str(root), str(stop_at), str(rounds), LONG]
    saved, reached = [], ""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            reached = line.strip()
            if reached.startswith("saved"):
                saved.append(reached.split()[1])
            if not reached.startswith("saved") or len(saved) == kill_after_saves:
                break
        child.kill()
        # What it had said before it died counts too.
        saved += [line.split()[1] for line in child.stdout if line.startswith("saved")]
    assert reached, "the process ended by itself"
    return saved, reached


def _check_after_the_kill(root, promised):
    folder = OutputFolder(root)
    _check_visible(folder)
    folder.prepare()
    assert list(root.glob("2*/.*")) == []
    with closing(Library(folder)) as library:
        listed = _check_listed(library, lambda row: folder.read(row.path))
        assert promised <= listed
        assert listed == {path.stem for path in root.glob("2*/*") if path.suffix != ".json"}
        assert all(row.prompt == LONG for row in library.newest(1000))
    assert not [path.name for path in (root / files.INTERNAL).iterdir() if "damaged" in path.name]


@pytest.mark.service
def test_a_process_killed_at_any_call_of_a_save_leaves_no_partial_file(tmp_path):
    root, promised, calls = tmp_path / "outputs", set(), []
    for stop_at in itertools.count(1, 2):
        saved, reached = _run_and_kill(root, stop_at, rounds=1)
        promised |= set(saved)
        calls.append(reached)
        _check_after_the_kill(root, promised)
        if reached == "done":
            break
    assert len(calls) > 20
    assert {"stopped write", "stopped fsync", "stopped link", "stopped open"} <= set(calls)


@pytest.mark.service
def test_a_busy_process_killed_leaves_no_partial_file(tmp_path):
    root, promised = tmp_path / "outputs", set()
    for kill_after in (1, 2, 3, 5, 8):
        saved, _ = _run_and_kill(root, 10**9, rounds=20, kill_after_saves=kill_after)
        promised |= set(saved)
        _check_after_the_kill(root, promised)
    assert len(promised) >= 19
