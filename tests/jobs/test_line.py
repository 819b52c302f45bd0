"""The line from request to file with the real saver: what the board says is what lies on the disk."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.jobs.service import JobService
from zimage_ui.request import GenerationRequest
from zimage_ui.storage.encoders import read_metadata
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver


class Line:
    """Generator, jobs and storage as they run in the service."""

    def __init__(self, root: Path, **saver_options: float) -> None:
        self.folder = OutputFolder(root)
        self.folder.prepare()
        self.library = Library(self.folder)
        self.saver = Saver(self.folder, self.library, **saver_options)  # type: ignore[arg-type]
        script = FakeScript(encode_s=0.002, step_s=0.004, decode_s=0.002)
        self.service = JobService(FakeGenerator(script), self.saver)
        self.saver.start()
        self.service.start()

    def make(self, **fields: object) -> JobRecord:
        request = GenerationRequest(**{"prompt": "一只猫", "width": 128, "height": 128, **fields})  # type: ignore[arg-type]
        return self.service.future(self.service.submit(request).job_id).result(30)

    def close(self) -> None:
        assert self.service.close(30)
        self.saver.close(30)
        self.library.close()


@pytest.fixture
def open_line(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(**saver_options: float) -> Line:
        lines.append(Line(tmp_path / "outputs", **saver_options))
        return lines[-1]

    yield make
    for line in lines:
        line.close()


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_job_that_is_done_has_its_files_their_settings_and_their_rows(
    open_line: Callable[..., Line], image_format: str
):
    line = open_line()
    record = line.make(seed=7, num_images_per_prompt=2, image_format=image_format)
    assert record.phase is JobPhase.DONE
    assert line.library.count() == 2
    for index, picture in enumerate(record.pictures):
        file = line.folder.root / picture.path
        assert file.stat().st_size == picture.size_bytes
        metadata = read_metadata(file)
        assert metadata is not None
        assert (metadata.request.prompt, metadata.request.seed, metadata.index) == ("一只猫", 7 + index, index)
        assert metadata.picture_id == picture.picture_id
        assert line.library.get(picture.picture_id).path == picture.path


def test_the_account_adds_up_with_real_files_too(open_line: Callable[..., Line]):
    line = open_line(threads=1)
    others: list[float] = []
    for _ in range(5):
        timings = line.make(num_inference_steps=20, num_images_per_prompt=4).timings
        assert timings is not None
        parts = timings.as_dict()
        total = parts.pop("total")
        assert sum(parts.values()) == pytest.approx(total, abs=0.01)
        assert parts["save"] > 0
        others.append(parts["other"] / total)
    # The median: on a busy machine the worker may lose the processor just between two readings of the clock.
    assert statistics.median(others) < 0.01


def test_a_saver_that_is_behind_slows_the_worker_down_and_drops_nothing(open_line: Callable[..., Line]):
    line = open_line(threads=1, max_pending=1)
    jobs = [
        line.service.submit(
            GenerationRequest(prompt="a", width=512, height=512, num_inference_steps=1, num_images_per_prompt=4)
        )
        for _ in range(5)
    ]
    assert {line.service.future(job.job_id).result(60).phase for job in jobs} == {JobPhase.DONE}
    assert line.library.count() == 20


def test_a_picture_that_the_disk_refuses_is_shown_and_the_next_one_is_saved(open_line: Callable[..., Line]):
    """Fault 32: something is in the way of today's folder, then it is gone."""
    line = open_line()
    first = line.make()
    today = (line.folder.root / first.pictures[0].path).parent
    moved = today.with_name("moved")
    today.rename(moved)
    today.write_text("in the way")

    record = line.make(seed=3)
    assert record.phase is JobPhase.FAILED
    assert "made and can be seen" in str(record.error)
    (picture,) = record.pictures
    assert picture.path == ""
    data, _ = line.saver.read(picture.picture_id)
    assert read_metadata(data) is not None

    today.unlink()
    assert line.make(seed=4).phase is JobPhase.DONE
    assert line.saver.close(30)  # which tries it again, if that has not come yet
    assert line.library.count() == 3
    told = line.service.board.get(record.job_id)
    assert told is not None
    assert [picture.path for picture in told.pictures] == [line.library.get(picture.picture_id).path]
    assert line.saver.read(picture.picture_id)[0] == data


def test_closing_writes_what_is_waiting(open_line: Callable[..., Line]):
    line = open_line(threads=1)
    jobs = [line.service.submit(GenerationRequest(prompt="a", width=512, height=512)) for _ in range(3)]
    for job in jobs:
        line.service.future(job.job_id)
    line.service.future(jobs[0].job_id).result(30)
    assert line.service.close(30)
    ended = [line.service.board.get(job.job_id) for job in jobs]
    done = [record for record in ended if record is not None and record.phase is JobPhase.DONE]
    assert line.library.count() == len(done) >= 1
    assert line.saver.pending == 0
