import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from zimage_ui.errors import OutputFolderError, PictureNotFoundError, StorageError
from zimage_ui.request import ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage.files import OutputFolder, new_picture_id

AT = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def path(folder):
    return folder.path_for(ID, AT, ImageFormat.PNG)


def _hidden(folder):
    return [path.name for path in folder.root.rglob(".*") if path.is_file()]


# Ids


def test_ids_are_ulids_that_rise():
    ids = [new_picture_id() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert {len(picture_id) for picture_id in ids} == {26}
    assert set("".join(ids)) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def test_an_id_begins_with_its_time(monkeypatch):
    # The example of the ULID specification: 1469918176385 ms is 01ARYZ6S41.
    monkeypatch.setattr(files.time, "time_ns", lambda: 1_469_918_176_385 * 1_000_000)
    assert files._IdMaker().make().startswith("01ARYZ6S41")


@pytest.mark.parametrize("jump", [timedelta(days=-1), timedelta(hours=-1), timedelta(0), timedelta(days=1)], ids=str)
def test_ids_rise_when_the_clock_jumps(monkeypatch, jump):
    start_ns, jump_ns = 1_800_000_000 * 10**9, round(jump.total_seconds()) * 10**9
    clock = iter([start_ns] * 3 + [start_ns + jump_ns] * 3 + [start_ns] * 3)
    monkeypatch.setattr(files.time, "time_ns", lambda: next(clock))
    maker = files._IdMaker()
    ids = [maker.make() for _ in range(9)]
    assert ids == sorted(set(ids))


def test_ids_rise_when_chance_is_used_up(monkeypatch):
    monkeypatch.setattr(files.time, "time_ns", lambda: 1_800_000_000 * 10**9)
    monkeypatch.setattr(files.secrets, "randbits", lambda bits: 2**bits - 1)
    maker = files._IdMaker()
    ids = [maker.make() for _ in range(3)]
    assert ids == sorted(set(ids))
    assert {len(picture_id) for picture_id in ids} == {26}


def test_ids_of_many_threads_are_all_different():
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_picture_id(), range(4000)))
    assert len(set(ids)) == 4000


# Paths


def test_a_picture_lies_in_the_folder_of_its_day(folder):
    late = datetime(2026, 11, 21, 0, 30, tzinfo=timezone(timedelta(hours=8)))
    assert folder.path_for(ID, late, ImageFormat.JPEG) == folder.root / "2026-11-21" / f"{ID}.jpg"
    assert folder.relative(folder.path_for(ID, AT, ImageFormat.WEBP)) == f"2026-11-21/{ID}.webp"


HOSTILE = ["../../x", "CON", "a" * 300, "%00", f"{ID}\n", ID.lower(), f"{ID}/..", "", "/etc/passwd", "8" + ID[1:], "\0"]


@pytest.mark.parametrize("picture_id", HOSTILE)
def test_only_ids_of_ours_become_paths(folder, picture_id):
    with pytest.raises(ValueError, match="no path of a picture"):
        folder.path_for(picture_id, AT, ImageFormat.PNG)


@pytest.mark.parametrize(
    "relative",
    ["../secret.png", "/etc/passwd", f"2026-11-21/../{ID}.png", f"2026-11-21/{ID}.png/", ".zimage/library.sqlite3",
     f"2026-11-21\n/{ID}.png", f"２０２６-11-21/{ID}.png", f"2026-11-21/{ID}.exe", ""],
)  # fmt: skip
def test_nothing_else_is_read(folder, relative):
    assert not folder.has(relative)
    with pytest.raises(ValueError, match="no path of a picture"):
        folder.read(relative)


# Writing


def test_a_file_is_written_whole_and_read_back(folder, path):
    data = os.urandom(3_000_000)
    folder.write(path, data)
    assert path.read_bytes() == data
    assert folder.read(folder.relative(path)) == data
    assert folder.has(folder.relative(path))
    assert list(folder.pictures()) == [folder.relative(path)]
    assert _hidden(folder) == []


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(folder, path, monkeypatch):
    calls = []

    class Watched:
        def __getattr__(self, name):
            real = getattr(os, name)
            if name in ("fsync", "link"):
                return lambda *a, **k: (calls.append(name), real(*a, **k))[1]
            return real

    path.parent.mkdir()
    monkeypatch.setattr(files, "os", Watched())
    folder.write(path, b"data")
    assert calls == ["fsync", "link", "fsync"]


def test_short_writes_are_continued(folder, path, monkeypatch):
    class Slow:
        def __getattr__(self, name):
            return (lambda fd, view: os.write(fd, view[:7])) if name == "write" else getattr(os, name)

    monkeypatch.setattr(files, "os", Slow())
    folder.write(path, b"0123456789" * 10)
    assert path.read_bytes() == b"0123456789" * 10


def test_the_same_file_once_more_is_no_error(folder, path):
    folder.write(path, b"data")
    folder.write(path, b"data")
    assert path.read_bytes() == b"data"


def test_a_file_is_never_replaced(folder, path):
    folder.write(path, b"first")
    with pytest.raises(StorageError, match="File exists") as caught:
        folder.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert "not replaced" in caught.value.hint
    assert _hidden(folder) == []


def test_a_file_of_a_persons_own_name_is_replaced_whole(tmp_path):
    for data in (b"first", b"second"):
        files.replace_file(tmp_path / "picture.png", data)
        assert (tmp_path / "picture.png").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, call, refuse)
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["picture.png"]


def test_a_taken_temporary_name_is_left_alone(folder, path, monkeypatch):
    path.parent.mkdir()
    taken = path.parent / f".{path.name}.00000000.tmp"
    taken.write_bytes(b"somebody else's")
    tokens = iter(["00000000", "11111111"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: next(tokens))
    folder.write(path, b"data")
    assert (taken.read_bytes(), path.read_bytes()) == (b"somebody else's", b"data")


def test_several_files_fail_each_for_itself(folder):
    paths = [folder.path_for(new_picture_id(), AT, ImageFormat.PNG) for _ in range(3)]
    folder.write(paths[1], b"in the way")
    outcomes = folder.write_all([(path, b"data") for path in paths])
    assert [outcome is None for outcome in outcomes] == [True, False, True]
    assert [path.read_bytes() for path in paths] == [b"data", b"in the way", b"data"]


class NoHardLinks:
    def __getattr__(self, name):
        return self._refuse if name == "link" else getattr(os, name)

    def _refuse(self, *_arguments, **_options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_disk_without_hard_links_works_too(folder, path, monkeypatch):
    monkeypatch.setattr(files, "os", NoHardLinks())
    folder.write(path, b"first")
    folder.write(path, b"first")
    with pytest.raises(StorageError, match="File exists"):
        folder.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert _hidden(folder) == []


@pytest.mark.parametrize("name", ["write", "fsync", "link"])
@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EACCES, "right to write"), (errno.EROFS, "read-only"),
     (errno.EIO, "disk reports"), (errno.EDQUOT, "user's space")],
)  # fmt: skip
def test_what_the_disk_refuses_is_told_with_path_value_and_hint(folder, path, fail_disk, name, code, hint):
    path.parent.mkdir()
    fail_disk((name,), 1, code)
    with pytest.raises(StorageError) as caught:
        folder.write(path, b"x" * 12_345)
    assert str(path) in caught.value.message
    assert "12,345 bytes" in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert hint in caught.value.hint
    assert (code in (errno.ENOSPC, errno.EDQUOT)) == ("bytes free" in caught.value.message)
    assert not path.exists()
    assert _hidden(folder) == []


def test_a_folder_that_cannot_be_synced_is_an_error_and_the_next_try_mends_it(folder, path, fail_disk):
    path.parent.mkdir()
    fail_disk(("fsync",), 2)
    with pytest.raises(StorageError, match="could not be synced"):
        folder.write(path, b"data")
    folder.write(path, b"data")
    assert path.read_bytes() == b"data"


def test_a_deleted_output_folder_is_made_again(folder, path):
    files.shutil.rmtree(folder.root)
    folder.write(path, b"data")
    assert path.read_bytes() == b"data"


# Symbolic links


def test_nothing_is_written_through_a_linked_day(folder, path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    path.parent.symlink_to(outside)
    with pytest.raises(StorageError) as caught:
        folder.write(path, b"data")
    assert "symbolic link" in caught.value.hint
    assert list(outside.iterdir()) == []
    (outside / path.name).write_bytes(b"foreign")
    assert list(folder.pictures()) == []
    with pytest.raises(StorageError):
        folder.read(folder.relative(path))


def test_nothing_is_written_through_a_root_swapped_for_a_link(folder, path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.root.rename(tmp_path / "moved")
    folder.root.symlink_to(outside)
    with pytest.raises(StorageError):
        folder.write(path, b"data")
    with pytest.raises(StorageError):
        folder.internal()
    assert list(outside.iterdir()) == []


def test_a_linked_picture_is_not_read(folder, path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path.parent.mkdir()
    path.symlink_to(secret)
    assert not folder.has(folder.relative(path))
    assert list(folder.pictures()) == []
    with pytest.raises(StorageError, match="could not be read"):
        folder.read(folder.relative(path))


def test_a_link_given_as_the_output_folder_is_followed(tmp_path, path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    folder = OutputFolder(tmp_path / "link")
    folder.prepare()
    folder.write(folder.path_for(ID, AT, ImageFormat.PNG), b"data")
    assert (tmp_path / "disk" / "2026-11-21" / f"{ID}.png").read_bytes() == b"data"


# Reading


def test_a_file_that_is_gone_is_told(folder, path):
    with pytest.raises(PictureNotFoundError, match="is gone"):
        folder.read(folder.relative(path))


# The start


def test_prepare_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = OutputFolder(tmp_path / "a" / "b")
    folder.prepare()
    folder.prepare()
    assert [path.name for path in folder.root.rglob("*")] == [files.INTERNAL]


def test_prepare_refuses_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/zimage-ui")):
        with pytest.raises(OutputFolderError, match="cannot be used") as caught:
            OutputFolder(root).prepare()
        assert str(root) in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_prepare_refuses_a_folder_that_cannot_be_written(tmp_path, fail_disk, code):
    fail_disk(("open",), 3, code)  # the root, the folder of our own files, and then the file
    with pytest.raises(OutputFolderError, match=os.strerror(code)):
        OutputFolder(tmp_path).prepare()


def test_a_disk_that_changes_what_it_is_given_is_found_out(folder, monkeypatch):
    monkeypatch.setattr(files, "_read", lambda *_: b"rotten")
    with pytest.raises(StorageError, match="came back changed"):
        folder.check(b"sound")


def test_prepare_sweeps_what_killed_processes_left_and_nothing_else(folder, path):
    folder.write(path, b"data")
    orphans = [path.parent / f".{path.name}.{n:08x}.tmp" for n in range(3)]
    orphans.append(folder.root / files.INTERNAL / f".{ID}.check.0123abcd.tmp")
    orphans.append(folder.root / files.INTERNAL / f"{ID}.check")
    young = folder.root / files.INTERNAL / f"{ID[:-1]}W.check"
    others = [young, path.parent / "mine.tmp", path.parent / ".notes.tmp", folder.root / f".{ID}.png.00000000.tmp"]
    for file in (*orphans, *others):
        file.write_bytes(b"half")
    os.utime(orphans[-1], (0, 0))
    folder.prepare()
    assert [file for file in orphans if file.exists()] == []
    assert [file for file in others if not file.exists()] == []
    assert path.read_bytes() == b"data"


def test_a_sweep_leaves_the_file_that_is_being_written(folder, path, monkeypatch):
    """Another process may start on the same folder while this one writes."""
    swept = []

    class Sweeping:
        def __getattr__(self, name):
            if name == "link":
                swept.append(True)
                monkeypatch.setattr(files, "os", os)
                OutputFolder(folder.root).prepare()
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Sweeping())
    folder.write(path, b"data")
    assert swept
    assert path.read_bytes() == b"data"


def test_a_file_swept_before_it_was_locked_is_written_again(folder, path, monkeypatch):
    real, names = fcntl.flock, []

    def swept_first(descriptor, operation):
        if not names:
            names.extend(_hidden(folder))
            (path.parent / names[0]).unlink()
        real(descriptor, operation)

    path.parent.mkdir()
    monkeypatch.setattr(files.fcntl, "flock", swept_first)
    folder.write(path, b"data")
    assert names
    assert path.read_bytes() == b"data"
    assert _hidden(folder) == []


def test_many_threads_write_into_a_new_day_at_once(folder):
    start = threading.Barrier(8)

    def write(_):
        path = folder.path_for(new_picture_id(), AT, ImageFormat.PNG)
        start.wait()
        folder.write(path, b"data")
        return path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(write, range(8)))
    assert all(path.read_bytes() == b"data" for path in paths)
