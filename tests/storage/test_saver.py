import errno
import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from zimage_ui.errors import NotReadyError, PictureNotFoundError, StorageError
from zimage_ui.request import ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage import saver as saver_module
from zimage_ui.storage.encoders import read_metadata
from zimage_ui.storage.files import new_picture_id
from zimage_ui.storage.saver import Saver

WAIT_S = 20.0


@pytest.fixture
def gate(monkeypatch):
    """Encoding waits for it."""
    gate, real = threading.Event(), saver_module.encode_picture

    def encode(*arguments):
        assert gate.wait(WAIT_S)
        return real(*arguments)

    monkeypatch.setattr(saver_module, "encode_picture", encode)
    return gate


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_picture_becomes_ready_then_saved_and_listed(saver, library, folder, listener, image_format):
    order = listener.order(image_format)
    saver.submit(order)
    assert saver.drain(WAIT_S)
    (ready,), (saved,) = listener.ready, listener.saved
    row = library.get(order.picture_id)
    data, stored_format = saver.read(order.picture_id)
    assert listener.failed == []
    assert (ready.picture_id, ready.path) == (order.picture_id, "")
    assert saved == replace(ready, path=f"2026-11-21/{order.picture_id}.{image_format.suffix}")
    assert (saved.seed, saved.width, saved.height, saved.size_bytes) == (7, 64, 64, len(data))
    assert (row.path, row.size_bytes, row.image_format) == (saved.path, len(data), image_format)
    assert (folder.root / row.path).read_bytes() == data
    assert stored_format is image_format
    assert read_metadata(data) == order.metadata


def test_the_row_has_the_time_of_saving_that_the_file_cannot_have(saver, library, listener):
    order = listener.order()
    saver.submit(order)
    assert saver.drain(WAIT_S)
    in_row = json.loads(library.get(order.picture_id).metadata_json)["timings_ms"]
    assert 0 < in_row.pop("save") < WAIT_S * 1e3
    assert in_row == order.metadata.timings_ms == read_metadata(saver.read(order.picture_id)[0]).timings_ms


def test_a_picture_is_encoded_once_and_shown_before_it_is_on_disk(saver, folder, listener, monkeypatch):
    encoded, may_write, real = [], threading.Event(), folder.write_all

    def write_all(batch):
        assert may_write.wait(WAIT_S)
        return real(batch)

    monkeypatch.setattr(folder, "write_all", write_all)
    real_encode = saver_module.encode_picture
    monkeypatch.setattr(saver_module, "encode_picture", lambda *a: encoded.append(real_encode(*a)) or encoded[-1])
    order = listener.order()
    saver.submit(order)
    assert listener.made_ready.wait(WAIT_S)
    shown, _ = saver.read(order.picture_id)
    assert list(folder.pictures()) == []
    assert listener.saved == []
    may_write.set()
    assert saver.drain(WAIT_S)
    assert len(encoded) == 1
    assert folder.read(listener.saved[0].path) == shown == encoded[0].data


def test_many_pictures_of_many_threads_are_all_saved(saver_with, library, listener):
    saver = saver_with(threads=3, max_pending=4)
    orders = [listener.order(image_format) for image_format in ImageFormat for _ in range(10)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(saver.submit, orders))
    assert saver.drain(WAIT_S)
    assert {picture.picture_id for picture in listener.saved} == {order.picture_id for order in orders}
    assert library.count() == 30
    stats = saver.stats()
    assert (stats.saved, stats.failed, stats.pending, stats.unsaved, stats.lost) == (30, 0, 0, 0, 0)
    assert min(stats.encode_ms, stats.write_ms, stats.index_ms) > 0
    assert stats.encoded_bytes == sum(picture.size_bytes for picture in listener.saved)


def test_what_has_piled_up_is_written_and_listed_together(saver_with, library, listener, folder, monkeypatch):
    saver = saver_with(max_pending=10)
    first, may_go, batches, real = threading.Event(), threading.Event(), [], folder.write_all

    def write_all(batch):
        first.set()
        assert may_go.wait(WAIT_S)
        batches.append(len(batch))
        return real(batch)

    added, real_add = [], library.add
    monkeypatch.setattr(folder, "write_all", write_all)
    monkeypatch.setattr(library, "add", lambda rows: added.append(len(rows)) or real_add(rows))
    saver.submit(listener.order())
    assert first.wait(WAIT_S)
    ready = threading.Semaphore(0)
    for _ in range(6):
        saver.submit(replace(listener.order(), on_ready=lambda _: ready.release()))
    assert all(ready.acquire(timeout=WAIT_S) for _ in range(6))
    may_go.set()
    assert saver.drain(WAIT_S)
    assert sum(batches) == sum(added) == 7
    assert len(batches) == len(added) == saver.stats().batches <= 3


def test_submit_waits_while_too_many_are_under_way(saver_with, listener, gate):
    saver = saver_with(max_pending=2)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            saver.submit(listener.order())
        third = pool.submit(saver.submit, listener.order())
        with pytest.raises(TimeoutError):
            third.result(0.05)
        assert saver.pending == 2
        gate.set()
        third.result(WAIT_S)
    assert saver.drain(WAIT_S)
    assert len(listener.saved) == 3


def test_an_id_that_is_not_ours_is_refused_at_once(saver, listener):
    with pytest.raises(ValueError, match="no path of a picture"):
        saver.submit(replace(listener.order(), picture_id="../../x"))
    assert saver.pending == 0


# Memory


def test_recent_pictures_are_read_from_memory_and_older_ones_from_disk(saver_with, folder, listener, monkeypatch):
    saver = saver_with(recent_bytes=30_000)  # two of these, not three
    orders = [listener.order() for _ in range(3)]
    for order in orders:
        saver.submit(order)
        assert saver.drain(WAIT_S)
    read, real = [], folder.read
    monkeypatch.setattr(folder, "read", lambda path: read.append(path) or real(path))
    for order in orders:
        data, image_format = saver.read(order.picture_id)
        assert image_format is ImageFormat.PNG
        assert read_metadata(data).picture_id == order.picture_id
    assert read == [listener.saved[0].path]
    assert saver.stats().memory_bytes <= 30_000


def test_an_unknown_or_deleted_picture_is_told(saver_with, folder, listener):
    saver = saver_with(recent_bytes=0)
    with pytest.raises(PictureNotFoundError):
        saver.read(new_picture_id())
    saver.submit(listener.order())
    assert saver.drain(WAIT_S)
    (folder.root / listener.saved[0].path).unlink()
    with pytest.raises(PictureNotFoundError, match="is gone"):
        saver.read(listener.saved[0].picture_id)


def test_a_picture_can_be_read_at_every_moment_of_its_way(saver_with, folder, library, listener, monkeypatch):
    saver, readable = saver_with(recent_bytes=0), []

    def reading(function):
        def call(*arguments):
            before = saver.read(order.picture_id)
            result = function(*arguments)
            readable.append(saver.read(order.picture_id) == before)
            return result

        return call

    monkeypatch.setattr(folder, "write_all", reading(folder.write_all))
    monkeypatch.setattr(library, "add", reading(library.add))
    monkeypatch.setattr(saver._memory, "release", reading(saver._memory.release))
    order = listener.order()
    saver.submit(order)
    assert saver.drain(WAIT_S)
    assert readable == [True, True, True]


# When it goes wrong


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_picture_that_the_disk_refuses_stays_readable_and_is_saved_when_it_takes_the_next(
    saver, library, listener, fail_disk, code
):
    disk = fail_disk(("write",), 1, code)
    lost, next_one = listener.order(), listener.order()
    saver.submit(lost)
    assert saver.drain(WAIT_S)
    assert disk.has_failed
    (error,) = listener.failed
    assert isinstance(error, StorageError)
    assert lost.picture_id in error.message
    assert error.hint
    assert read_metadata(saver.read(lost.picture_id)[0]) == lost.metadata
    assert (saver.stats().unsaved, saver.stats().failed, library.count()) == (1, 1, 0)
    assert saver._unsaved[lost.picture_id].order.image.pixels == b""  # its bytes are enough
    saver.submit(next_one)
    assert saver.close(WAIT_S)
    assert {row.picture_id for row in library.newest(9)} == {lost.picture_id, next_one.picture_id}
    told = {picture.picture_id: picture.path for picture in listener.saved}
    assert told == {row.picture_id: row.path for row in library.newest(9)}  # it is told that it is saved after all
    assert len(listener.failed) == 1
    assert (saver.stats().recovered, saver.stats().unsaved, saver.stats().pending) == (1, 0, 0)


def test_a_refused_picture_is_tried_again_after_a_while_and_told(saver_with, library, listener, fail_disk):
    told = threading.Event()
    saver = saver_with(retry_s=0.01)
    fail_disk(("fsync",), 1)
    order = listener.order()
    saver.submit(replace(order, on_saved=lambda picture: (listener.saved.append(picture), told.set())))
    assert told.wait(WAIT_S)
    assert len(listener.failed) == 1
    assert [picture.path for picture in listener.saved] == [library.get(order.picture_id).path]
    assert (saver.stats().failed, saver.stats().saved, saver.stats().recovered) == (1, 0, 1)
    assert saver.pending == 0


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_a_picture_that_cannot_be_encoded_as_asked_becomes_a_png(
    saver, library, folder, listener, monkeypatch, image_format
):
    def refuse(_name):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    order = listener.order(image_format)
    saver.submit(order)
    assert saver.close(WAIT_S)
    (saved,), row = listener.saved, library.get(order.picture_id)
    assert listener.failed == []
    assert listener.ready[0].image_format is saved.image_format is row.image_format is ImageFormat.PNG
    assert saved.path == row.path == f"2026-11-21/{order.picture_id}.png"
    kept = read_metadata(folder.root / saved.path)
    assert kept == replace(order.metadata, request=replace(order.metadata.request, image_format=ImageFormat.PNG))


def test_a_picture_that_cannot_be_encoded_at_all_counts_as_lost(saver, listener, monkeypatch, caplog):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(saver_module, "encode_picture", refuse)
    order = listener.order(ImageFormat.JPEG)
    saver.submit(order)
    assert saver.drain(WAIT_S)
    assert listener.ready == listener.saved == []
    assert len(listener.failed) == 1
    assert (saver.stats().lost, saver.stats().unsaved) == (1, 0)
    assert f"picture {order.picture_id} is given up" in caplog.text


def test_a_full_disk_is_not_hammered(saver, folder, listener, monkeypatch):
    tries = []

    def write_all(batch):
        tries.append(len(batch))
        return [StorageError("full") for _ in batch]

    monkeypatch.setattr(folder, "write_all", write_all)
    for _ in range(3):
        saver.submit(listener.order())
        assert saver.drain(WAIT_S)
    assert tries == [1, 1, 1]
    assert len(listener.failed) == 3


def test_too_many_refused_pictures_are_given_up_oldest_first(saver_with, folder, listener, monkeypatch, caplog):
    saver = saver_with(unsaved_bytes=30_000, recent_bytes=0)
    monkeypatch.setattr(folder, "write_all", lambda batch: [StorageError("full") for _ in batch])
    orders = [listener.order() for _ in range(4)]
    for order in orders:
        saver.submit(order)
        assert saver.drain(WAIT_S)
    for order in orders[:2]:
        with pytest.raises(PictureNotFoundError):
            saver.read(order.picture_id)
        assert f"picture {order.picture_id} is given up" in caplog.text
    assert all(saver.read(order.picture_id) for order in orders[2:])
    assert (saver.stats().lost, saver.stats().unsaved) == (2, 2)


def test_one_hopeless_picture_does_not_block_the_others(saver, folder, library, listener, fail_disk):
    hopeless, other, third = listener.order(), listener.order(), listener.order()
    in_the_way = folder.path_for(hopeless.picture_id, hopeless.metadata.created_at, ImageFormat.PNG)
    folder.write(in_the_way, b"something else")
    saver.submit(hopeless)
    assert saver.drain(WAIT_S)
    fail_disk(("write",), 1)
    saver.submit(other)
    assert saver.drain(WAIT_S)
    saver.submit(third)
    assert not saver.close(WAIT_S)
    assert {row.picture_id for row in library.newest(9)} == {other.picture_id, third.picture_id}
    assert in_the_way.read_bytes() == b"something else"
    assert saver.read(hopeless.picture_id)


def test_a_file_that_could_not_be_listed_is_read_and_listed_with_the_next(saver_with, library, listener, monkeypatch):
    saver = saver_with(recent_bytes=0)
    real, broken = library.add, [True]

    def add(rows):
        if broken.pop():
            raise StorageError("The library could not be written.")
        real(rows)

    monkeypatch.setattr(library, "add", add)
    first, second = listener.order(), listener.order()
    saver.submit(first)
    assert saver.drain(WAIT_S)
    (error,) = listener.failed
    assert "is written but could not be listed" in error.message
    assert "next start" in error.hint
    assert read_metadata(saver.read(first.picture_id)[0]) == first.metadata
    broken.append(False)
    saver.submit(second)
    assert saver.drain(WAIT_S)
    assert {row.picture_id for row in library.newest(9)} == {first.picture_id, second.picture_id}
    assert len(listener.saved) == 1


def test_an_unexpected_error_fails_that_order_and_the_thread_goes_on(saver, listener, monkeypatch, caplog):
    real, raised = saver_module.encode_picture, [RuntimeError("a bug")]

    def encode(*arguments):
        if raised:
            raise raised.pop()
        return real(*arguments)

    monkeypatch.setattr(saver_module, "encode_picture", encode)
    for _ in range(2):
        saver.submit(listener.order())
    assert saver.drain(WAIT_S)
    assert [error.message for error in listener.failed] == ["Saving failed unexpectedly: RuntimeError: a bug"]
    assert len(listener.saved) == 1
    assert "Traceback" in caplog.text
    assert saver.stats().replaced_threads == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the death is meant
@pytest.mark.parametrize("where", ["encode_picture", "write_all"])
def test_a_thread_that_dies_is_replaced_and_its_order_is_told(saver, folder, listener, monkeypatch, where):
    owner = saver_module if where == "encode_picture" else folder
    real, deaths = getattr(owner, where), [SystemExit()]

    def die_once(*arguments):
        if deaths:
            raise deaths.pop()
        return real(*arguments)

    monkeypatch.setattr(owner, where, die_once)
    saver.submit(listener.order())
    assert saver.drain(WAIT_S)
    assert [error.message for error in listener.failed] == ["The thread that was saving the picture died."]
    saver.submit(listener.order())
    assert saver.close(WAIT_S)
    assert saver.stats().replaced_threads == 1
    assert saver.stats().recovered == (where == "write_all")
    assert len(listener.saved) == 1 + saver.stats().recovered


@pytest.mark.parametrize("callback", ["on_ready", "on_saved", "on_failed"])
def test_a_listener_that_raises_costs_nothing(saver, library, listener, fail_disk, caplog, callback):
    def broken(_):
        raise RuntimeError("a broken listener")

    if callback == "on_failed":
        fail_disk(("write",))
    saver.submit(replace(listener.order(), **{callback: broken}))
    assert saver.drain(WAIT_S)
    saver.submit(listener.order())
    assert saver.close(WAIT_S)
    assert library.count() == 2
    assert "a broken listener" in caplog.text


# Start, check and end


def test_orders_given_before_the_start_are_saved_after_it(folder, library, listener):
    saver = Saver(folder, library)
    saver.submit(listener.order())
    assert not saver.drain(0)
    saver.start()
    assert saver.close(WAIT_S)
    assert len(listener.saved) == 1


def test_closing_finishes_what_is_under_way_and_takes_no_more(saver_with, library, listener, gate):
    saver = saver_with(max_pending=5)
    for _ in range(5):
        saver.submit(listener.order())
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(saver.submit, listener.order())
        closing = pool.submit(saver.close, WAIT_S)
        with pytest.raises(NotReadyError, match="stopping"):
            waiting.result(WAIT_S)
        gate.set()
        assert closing.result(WAIT_S)
    assert (len(listener.saved), library.count()) == (5, 5)
    with pytest.raises(NotReadyError):
        saver.submit(listener.order())
    assert saver.close(WAIT_S)
    assert not saver._alive()


def test_closing_does_not_wait_for_ever(saver_with, listener, gate, caplog):
    saver = saver_with()
    for _ in range(2):
        saver.submit(listener.order())
    assert not saver.drain(0.01)
    assert not saver.close(0.01)
    assert "not on disk, 2 under way" in caplog.text
    gate.set()


def test_closing_tries_the_refused_pictures_a_last_time(saver, library, listener, fail_disk):
    fail_disk(("write",))
    saver.submit(listener.order())
    assert saver.drain(WAIT_S)
    assert saver.close(WAIT_S)
    assert library.count() == 1
    assert saver.stats().recovered == 1


def test_closing_says_which_pictures_are_lost(saver, folder, listener, monkeypatch, caplog):
    monkeypatch.setattr(folder, "write_all", lambda batch: [StorageError("full") for _ in batch])
    order = listener.order()
    saver.submit(order)
    assert saver.drain(WAIT_S)
    assert not saver.close(WAIT_S)
    assert order.picture_id in caplog.text


def test_the_self_check_leaves_nothing_behind(saver, library, folder):
    before = sorted(folder.root.rglob("*"))
    saver.self_check()
    assert sorted(folder.root.rglob("*")) == before
    assert library.count() == library.rebuild() == 0


@pytest.mark.parametrize("name", ["open", "write", "fsync", "link", "unlink"])
def test_the_self_check_finds_what_is_wrong(saver, fail_disk, name):
    fail_disk((name,), 2 if name == "unlink" else 1, errno.ENOSPC)
    with pytest.raises(StorageError, match="could not be"):
        saver.self_check()


def test_the_sidecar_of_a_jpeg_lies_beside_it(saver, library, folder, listener):
    prompt = "😀" * 8000
    order = listener.order(ImageFormat.JPEG)
    request = replace(order.metadata.request, prompt=prompt, negative_prompt=prompt)
    order = replace(order, metadata=replace(order.metadata, request=request))
    saver.submit(order)
    assert saver.drain(WAIT_S)
    path = folder.root / listener.saved[0].path
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        picture.load()
    assert read_metadata(path) == order.metadata
    assert library.get(order.picture_id).prompt == prompt
    assert [file.suffix for file in sorted(path.parent.iterdir())] == [".jpg", ".json"]
    assert files.INTERNAL not in library.get(order.picture_id).path
