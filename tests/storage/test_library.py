import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from zimage_ui.errors import OutputFolderError, PictureNotFoundError, StorageError
from zimage_ui.request import ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage import library as library_module
from zimage_ui.storage.encoders import encode_picture
from zimage_ui.storage.files import new_picture_id
from zimage_ui.storage.library import SCHEMA_VERSION, Library, LibraryRow
from zimage_ui.storage.metadata import PictureMetadata


@pytest.fixture
def put(folder, image_of, metadata_of):
    """Puts a picture into the folder, as the saver does, without a row."""

    def put(prompt="a cat", image_format=ImageFormat.PNG, **fields):
        metadata = metadata_of(prompt, request={"image_format": image_format}, **fields)
        encoded = encode_picture(image_of(), metadata, image_format)
        path = folder.path_for(metadata.picture_id, metadata.created_at, image_format)
        folder.write(path, encoded.data)
        return LibraryRow.of(metadata, path=folder.relative(path), size_bytes=len(encoded.data))

    return put


@pytest.fixture
def database(folder):
    return folder.root / files.INTERNAL / library_module.FILE_NAME


def test_a_row_comes_back_as_it_was(library, put):
    at = datetime(2026, 11, 21, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=-3)))
    row = put("一只猫 😀 <script>", created_at=at)
    library.add([row])
    assert library.get(row.picture_id) == row
    assert library.newest(5) == [row]
    assert row.path == f"2026-11-21/{row.picture_id}.png"


def test_newest_first_page_after_page(library, put):
    rows = [put(str(number)) for number in range(7)]
    library.add(rows)
    first = library.newest(3)
    second = library.newest(3, before_id=first[-1].picture_id)
    third = library.newest(3, before_id=second[-1].picture_id)
    assert [row.prompt for row in (*first, *second, *third)] == ["6", "5", "4", "3", "2", "1", "0"]
    assert library.newest(3, before_id=third[-1].picture_id) == []
    assert library.newest(0) == []
    assert library.count() == 7


def test_pages_do_not_shift_when_a_picture_is_added(library, put):
    library.add([put(str(number)) for number in range(4)])
    first = library.newest(2)
    library.add([put("new")])
    assert [row.prompt for row in library.newest(2, before_id=first[-1].picture_id)] == ["1", "0"]


def test_a_page_deep_in_a_large_library_is_found_by_its_key(library):
    steps = library._reader.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM pictures WHERE picture_id < ? ORDER BY picture_id DESC LIMIT ?", ("x", 5)
    ).fetchall()
    assert len(steps) == 1
    assert "SEARCH pictures USING INDEX" in steps[0][3]


def test_the_same_picture_again_replaces_its_row(library, put):
    row = put()
    library.add([row])
    library.add([replace(row, size_bytes=5), put("another")])
    assert library.count() == 2
    assert library.get(row.picture_id).size_bytes == 5


@pytest.mark.parametrize("picture_id", ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "' OR 1=1 --", "", "x" * 100_000, "\0"])
def test_an_unknown_id_is_told(library, put, picture_id):
    library.add([put()])
    with pytest.raises(PictureNotFoundError, match="No picture has the id") as caught:
        library.get(picture_id)
    assert len(caught.value.message) < 200


def test_pictures_whose_file_was_deleted_are_left_out(library, folder, put):
    rows = [put(str(number)) for number in range(5)]
    library.add(rows)
    for row in rows[2:4]:
        (folder.root / row.path).unlink()
    assert [row.prompt for row in library.newest(3)] == ["4", "1", "0"]


def test_many_threads_add_and_read_at_once(library, put):
    rows = [put(str(number)) for number in range(40)]
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for row in rows[number::8]:
            library.add([row])
            assert library.get(row.picture_id) == row
            assert library.newest(3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert library.count() == 40


def test_two_processes_wait_for_each_other(library, folder, put, monkeypatch):
    """As two connections do, one of which holds the lock: the other waits instead of failing."""
    rows, waiting = [put("mine"), put("theirs")], threading.Event()
    other = sqlite3.connect(library._path, isolation_level=None, check_same_thread=False)
    with closing(other), ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN IMMEDIATE")
        library._writer.set_trace_callback(lambda _: waiting.set())
        added = pool.submit(library.add, rows)
        assert waiting.wait(10)
        assert not added.done()
        other.execute("COMMIT")
        added.result(10)
    assert library.count() == 2


# The index follows the files


def test_files_without_a_row_are_found_at_the_start(library, folder, put):
    rows = [put("png"), put("jpeg", ImageFormat.JPEG), put("webp", ImageFormat.WEBP)]
    with closing(Library(folder)) as again:
        assert sorted(again.newest(9), key=lambda row: row.picture_id) == rows


def test_rows_without_a_file_are_dropped_at_the_start(library, folder, put):
    rows = [put("kept"), put("deleted")]
    library.add(rows)
    (folder.root / rows[1].path).unlink()
    with closing(Library(folder)) as again:
        assert again.count() == 1
        assert again.newest(9) == rows[:1]


def test_a_row_that_knows_more_than_its_file_is_kept(library, folder, put):
    row = put()
    full = PictureMetadata.from_json(row.metadata_json).with_timings({"save": 12.5})
    library.add([replace(row, metadata_json=full.to_json())])
    with closing(Library(folder)) as again:
        assert json.loads(again.get(row.picture_id).metadata_json)["timings_ms"]["save"] == 12.5


def test_only_whole_pictures_of_ours_are_found(folder, put, image_of, metadata_of, caplog):
    ours = put()
    day = (folder.root / ours.path).parent
    data = (folder.root / ours.path).read_bytes()
    (day / "holiday.png").write_bytes(data)
    (day / f"{new_picture_id()}.png").write_bytes(data)  # a copy under another name is no second picture
    (day / f"{new_picture_id()}.png").write_bytes(b"not a picture")
    (day / f"{new_picture_id()}.png").write_bytes(b"")
    cut = metadata_of()
    (day / f"{cut.picture_id}.png").write_bytes(encode_picture(image_of(), cut, ImageFormat.PNG).data[:-20])
    (folder.root / "not-a-day").mkdir()
    (folder.root / "not-a-day" / f"{cut.picture_id}.png").write_bytes(data)
    with closing(Library(folder)) as library, caplog.at_level("INFO"):
        assert library.newest(9) == [ours]
        assert library.rebuild() == 1
    assert "5 pictures found without a row (1 of them ours, and whole)" in caplog.text


def test_rebuild_makes_the_index_anew(library, put, monkeypatch):
    monkeypatch.setattr(library_module, "_BATCH_ROWS", 2)
    rows = [put(str(number)) for number in range(5)]
    library.add([replace(row, prompt="wrong") for row in rows[:3]])
    assert library.rebuild() == 5
    assert [row.prompt for row in library.newest(9)] == ["4", "3", "2", "1", "0"]


def test_the_full_prompt_beside_a_jpeg_is_found(library, folder, image_of, metadata_of):
    prompt = "😀" * 8000
    request = {"negative_prompt": prompt, "image_format": "jpeg"}
    metadata = metadata_of(prompt, request=request)
    encoded = encode_picture(image_of(), metadata, ImageFormat.JPEG)
    path = folder.path_for(metadata.picture_id, metadata.created_at, ImageFormat.JPEG)
    folder.write_all([(path.with_suffix(".json"), encoded.sidecar), (path, encoded.data)])
    assert library.rebuild() == 1
    assert library.get(metadata.picture_id).prompt == prompt


# Damage


def _damage_zero(path):
    path.write_bytes(b"")


def _damage_text(path):
    path.write_text("this is no database " * 100)


def _damage_cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def _damage_pages(path):
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    path.write_bytes(bytes(data))


def _damage_schema(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE pictures")


def _damage_column(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE pictures RENAME COLUMN prompt TO words")


@pytest.mark.parametrize(
    "damage", [_damage_zero, _damage_text, _damage_cut, _damage_pages, _damage_schema, _damage_column]
)
def test_a_damaged_library_is_put_aside_and_made_anew(folder, put, database, damage, caplog):
    rows = [put(str(number)) for number in range(30)]
    with closing(Library(folder)) as library:
        library.add(rows)
    damage(database)
    damaged = database.read_bytes()
    with closing(Library(folder)) as library:
        assert library.newest(100) == rows[::-1]
        library.add([put("more")])
        assert library.count() == 31
    aside = [path for path in database.parent.iterdir() if ".damaged-" in path.name]
    assert [path.read_bytes() for path in aside if not path.name.endswith(("-wal", "-shm"))] == [damaged]
    assert "is damaged: put aside" in caplog.text


def test_a_sound_library_is_not_put_aside(folder, put, database):
    for _ in range(3):
        with closing(Library(folder)) as library:
            library.add([put()])
    assert [path.name for path in database.parent.iterdir()] == [database.name]


def test_a_library_of_a_newer_version_is_refused_and_left_as_it_is(folder, database):
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.execute("CREATE TABLE future (x)")
    before = database.read_bytes()
    with pytest.raises(OutputFolderError, match=f"it has version {SCHEMA_VERSION + 1}, this one knows") as caught:
        Library(folder)
    assert "newer zimage-ui" in caught.value.hint
    assert database.read_bytes() == before


def test_a_folder_in_the_place_of_the_library_is_told(folder, database):
    database.mkdir()
    with pytest.raises(OutputFolderError, match="cannot be opened"):
        Library(folder)


def test_a_library_deleted_while_it_is_open_is_made_again(library, folder, put, database):
    first = put("first")
    library.add([first])
    database.unlink()
    second = put("second")
    library.add([second])
    assert library.newest(9) == [second, first]
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM pictures").fetchone() == (2,)


def test_an_output_folder_deleted_while_it_is_open_is_made_again(library, folder, put):
    library.add([put("lost")])
    files.shutil.rmtree(folder.root)
    row = put("new")
    library.add([row])
    assert library.newest(9) == [row]


def test_errors_of_sqlite_become_ours(library, put, database):
    row = put()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE pictures")
    for call in (lambda: library.add([row]), library.count, lambda: library.get("x"), lambda: library.newest(1)):
        with pytest.raises(StorageError, match="no such table") as caught:
            call()
        assert str(database) in caught.value.message


def test_a_failed_transaction_leaves_nothing_behind(library, put):
    rows = [put("good"), replace(put("bad"), seed="x" * 10)]
    library._writer.execute("CREATE TRIGGER refuse BEFORE INSERT ON pictures WHEN NEW.prompt = 'bad' "
                            "BEGIN SELECT RAISE(ABORT, 'refused'); END")  # fmt: skip
    with pytest.raises(StorageError, match="refused"):
        library.add(rows)
    assert library.count() == 0
    library.add(rows[:1])
    assert library.count() == 1


def test_a_closed_library_says_so(folder):
    library = Library(folder)
    library.close()
    with pytest.raises(StorageError, match="could not be read"):
        library.count()
