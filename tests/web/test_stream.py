from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from PIL import Image

from zimage_ui.errors import GenerationError
from zimage_ui.events import JobFailed, JobQueued, StageStarted, StepDone
from zimage_ui.generator.base import ModelInfo, ProgressListener
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobRecord
from zimage_ui.request import GenerationRequest, Preview
from zimage_ui.stages import Stage
from zimage_ui.telemetry.fake import FakeProbe
from zimage_ui.telemetry.probe import Snapshot
from zimage_ui.web import stream as stream_module
from zimage_ui.web.stream import MAILBOX_EVENTS, RECENT_JOBS, Mailbox

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

FOX = GenerationRequest(prompt="a red fox", width=256, height=256, num_inference_steps=4, seed=7)


@dataclass(frozen=True)
class Received:
    """One server-sent event."""

    number: int
    name: str
    data: dict[str, Any]


class Page:
    """What a page hears: an open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.comments = 0

    def read(self) -> Received:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                return Received(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            else:
                fields = {}
        raise EOFError("the stream has ended")

    def until(self, holds: Callable[[Received], bool]) -> list[Received]:
        """All events up to the first of which something is true."""
        events = [self.read()]
        while not holds(events[-1]):
            events.append(self.read())
        return events


@contextmanager
def opened(studio: Studio) -> Iterator[Page]:
    with httpx.Client(timeout=30) as client, client.stream("GET", f"{studio.server.url}/telemetry") as response:
        yield Page(response)


def submit(studio: Studio, request: GenerationRequest = FOX) -> str:
    return studio.services.jobs.submit(request, "test").job_id


def finish(studio: Studio, job_id: str) -> None:
    studio.services.jobs.future(job_id).result(30)


def test_a_page_hears_the_whole_present_state_first(studio: Studio) -> None:
    ended = [submit(studio) for _ in range(RECENT_JOBS + 3)]
    for job_id in ended:
        finish(studio, job_id)

    with opened(studio) as page:
        assert page.response.headers["content-type"].startswith("text/event-stream")
        assert page.response.headers["cache-control"] == "no-store"
        events = page.until(lambda event: event.data.get("job_id") == ended[-1])

    assert events[0].name == "readiness"
    assert events[0].data["ready"] is True
    assert events[0].data["model"]["profile"]["sizes"][0] == [384, 384]
    assert "telemetry" in [event.name for event in events]
    assert [event.data["job_id"] for event in events if event.name == "job"] == ended[3:]
    assert [event.number for event in events] == sorted({event.number for event in events})


def test_a_page_hears_once_what_was_measured_before_it_came(studio: Studio) -> None:
    with opened(studio) as page:
        seen = [page.until(lambda event: event.name == "telemetry")[-1].data for _ in range(3)]
    with opened(studio) as page:
        events = page.until(lambda event: event.name == "telemetry")
        events += page.until(lambda event: event.name == "telemetry")

    (history,) = [event.data for event in events if event.name == "history"]
    assert [event.name for event in events if event.name != "job"] == ["readiness", "history", "telemetry", "telemetry"]
    (gpu,) = history["gpus"]
    looks = len(history["host"]["cpu_pct"])
    assert {len(values) for name, values in gpu.items() if name != "index"} == {looks}
    now = next(event.data["gpus"][0]["temperature_c"] for event in events if event.name == "telemetry")
    line = iter([*gpu["temperature_c"], now])  # a page that reads slowly has not seen all of it
    assert all(each["gpus"][0]["temperature_c"] in line for each in seen)


def test_telemetry_goes_on_and_says_what_the_contract_says(studio: Studio) -> None:
    with opened(studio) as page:
        first, second = (page.until(lambda event: event.name == "telemetry")[-1].data for _ in range(2))

    assert second["at_s"] > first["at_s"]
    assert set(first) >= {
        "at_s",
        "unix_s",
        "gpus",
        "gpu_note",
        "host",
        "queue_length",
        "pending_saves",
        "embedding_cache",
    }
    (gpu,) = first["gpus"]
    assert gpu["name"] == "Fake GPU 16 GB"
    assert set(gpu) >= {"utilization_pct", "sm_clock_mhz", "temperature_c", "power_w", "throttle_reasons", "fan_pct"}
    assert first["host"]["cpu_name"] == "Fake CPU"
    assert set(first["embedding_cache"]) == {"hits", "misses", "entries", "size_bytes", "capacity_bytes", "saved_ms"}


def test_a_job_is_followed_from_the_queue_to_the_disk(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(FakeScript(step_s=0.01))
    with run_studio(tmp_path, generator=generator) as studio, opened(studio) as page:
        studio.wait_until_ready()
        job_id = submit(studio)
        events = page.until(lambda event: event.data.get("phase") == "done" and event.name == "job")

    views = [event.data for event in events if event.data.get("job_id") == job_id]
    revisions = [view["revision"] for view in views]
    assert revisions == sorted(revisions)
    order = ["queued", "running", "saving", "done"]
    phases = [view["phase"] for view in views]
    assert phases == sorted(phases, key=order.index)
    done = views[-1]
    assert (done["seed"], done["width"], done["nfe"], done["client"], done["untrained"]) == (7, 256, 4, "test", True)
    assert done["preview"] is None
    assert (done["step"], done["num_steps"]) == (4, 4)
    assert set(done["timings_ms"]) == {"queue", "encode", "sample", "decode", "save", "other", "total"}
    (picture,) = done["pictures"]
    assert picture["url"] == f"/pictures/{picture['picture_id']}"
    assert picture["path"].endswith(".png")


def test_a_preview_is_a_picture_made_once_for_all_pages(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = stream_module.views.preview_data_url

    def counting(preview: Preview) -> str:
        encoded.append(preview.width)
        return encode(preview)

    monkeypatch.setattr(stream_module.views, "preview_data_url", counting)
    with ExitStack() as stack:
        pages = [stack.enter_context(opened(studio)) for _ in range(5)]
        for page in pages:
            page.read()
        studio.board.publish(JobQueued(job_id="seen", request=FOX, client="test"))
        studio.board.publish(StageStarted(job_id="seen", stage=Stage.SAMPLE))
        for step in range(1, 4):
            preview = Preview(width=32, height=16, pixels=bytes([60 * step]) * (32 * 16 * 3))
            studio.board.publish(StepDone(job_id="seen", step=step, num_steps=4, preview=preview))
            urls = {
                page.until(lambda event, step=step: event.data.get("step") == step)[-1].data["preview"]
                for page in pages
            }
            (url,) = urls
            kind, _, data = url.partition(",")
            assert kind == "data:image/jpeg;base64"
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert image.size == (32, 16)
            assert abs(image.getpixel((5, 5))[0] - 60 * step) < 8

    assert encoded == [32, 32, 32]


def test_an_ended_job_with_an_error_says_what_and_what_to_do(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(FakeScript(out_of_memory_at=Stage.SAMPLE))
    with run_studio(tmp_path, generator=generator) as studio, opened(studio) as page:
        submit(studio)
        failed = page.until(lambda event: event.data.get("phase") == "failed" and event.name == "job")[-1].data

    assert failed["error"] == {
        "message": "Out of memory in sample, as told.",
        "hint": "Ask for a smaller size.",
        "code": "out_of_memory",
    }


def test_the_warm_up_is_followed_to_the_end(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False) as studio, opened(studio) as page:
        first = page.read()
        assert (first.name, first.data["ready"], first.data["model"]) == ("readiness", False, None)
        studio.services.jobs.start()
        events = page.until(lambda event: event.data.get("ready") is True)

    progress = [event.data["progress"] for event in events if event.name == "readiness"]
    assert progress == sorted(progress)
    assert progress[-1] == 1


class LostOnCue(FakeProbe):
    """Sensors that stop answering when told."""

    lost = False

    def read(self) -> Snapshot:
        snapshot = super().read()
        return replace(snapshot, gpus=(), gpu_note="lost", gpu_lost=True) if self.lost else snapshot


class OnGpu(FakeGenerator):
    """Says that it works on a GPU."""

    def load(self, progress: ProgressListener) -> ModelInfo:
        return replace(super().load(progress), device="cuda:0")


def test_a_gpu_that_is_lost_makes_the_page_unready_at_once(tmp_path: Path, run_studio: StudioMaker) -> None:
    probe = LostOnCue()
    with run_studio(tmp_path, generator=OnGpu(), probe=probe, interval_s=0.01) as studio:
        studio.wait_until_ready()
        with opened(studio) as page:
            assert page.read().data["ready"] is True
            probe.lost = True
            lost = page.until(lambda event: event.name == "readiness")[-1].data
            probe.lost = False
            found = page.until(lambda event: event.name == "readiness")[-1].data

    assert (lost["ready"], lost["error"]) == (False, "lost")
    assert (found["ready"], found["error"]) == (True, "")


@pytest.mark.parametrize("error", [ValueError("nan"), KeyError("missing"), RuntimeError("broken")])
def test_a_state_that_cannot_be_encoded_takes_no_other_with_it(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    view = stream_module.views.job_view

    def failing(record: JobRecord, *rest: Any) -> dict[str, Any]:
        if record.job_id == "bad":
            raise error
        return view(record, *rest)

    monkeypatch.setattr(stream_module.views, "job_view", failing)
    with opened(studio) as page:
        page.read()
        # Both are changes of one batch: the loop that collects them is kept busy while they are published.
        with held_up(studio):
            for job_id in ("bad", "good"):
                studio.board.publish(JobQueued(job_id=job_id, request=FOX, client="test"))
        page.until(lambda event: event.data.get("job_id") == "good")
        studio.board.publish(JobFailed(job_id="good", error=GenerationError("as told")))
        page.until(lambda event: event.data.get("phase") == "failed")
    with opened(studio) as late:  # the whole present state, but for the bad one
        late.until(lambda event: event.data.get("job_id") == "good")

    assert any(record.exc_info and record.exc_info[1] is error for record in caplog.records)


@contextmanager
def held_up(studio: Studio) -> Iterator[None]:
    """Let the server's event loop wait meanwhile."""
    arrived, released = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        released.wait(30)

    streams = studio.server.config.app.state.streams  # type: ignore[union-attr]
    streams._loop.call_soon_threadsafe(hold)
    assert arrived.wait(30)
    try:
        yield
    finally:
        released.set()


def test_text_that_cannot_be_encoded_does_not_end_the_stream(studio: Studio) -> None:
    """A path that is no UTF-8 comes as half characters; it must not stop the news of other jobs."""
    with opened(studio) as page:
        page.read()
        generator = studio.generator
        generator.gate = threading.Event()
        job_id = submit(studio)
        assert generator.entered.wait(10)
        studio.board.publish(JobFailed(job_id=job_id, error=GenerationError("bad file \udcff", "rename it")))
        failed = page.until(lambda event: event.data.get("phase") == "failed")[-1].data
        generator.gate.set()

    assert failed["error"]["message"] == "bad file \udcff"


def test_silence_is_filled_with_a_comment(
    tmp_path: Path, run_studio: StudioMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.05)
    probe = FakeProbe(gate=threading.Event())  # hangs: nothing to tell
    with run_studio(tmp_path, probe=probe) as studio, opened(studio) as page:
        studio.wait_until_ready()
        for line in page.response.iter_lines():
            if line.startswith(":"):
                break
        assert probe.gate is not None
        probe.gate.set()


def test_hanging_sensors_show_by_their_age(tmp_path: Path, run_studio: StudioMaker) -> None:
    class AnswersOnce(FakeProbe):
        def read(self) -> Snapshot:
            if self.entered.is_set():
                hanging.set()
                released.wait()
            return super().read()

    hanging, released = threading.Event(), threading.Event()
    with run_studio(tmp_path, probe=AnswersOnce()) as studio:
        studio.wait_until_ready()
        assert hanging.wait(10)
        with opened(studio) as page:
            first = page.until(lambda event: event.name == "telemetry")[-1].data
        with opened(studio) as page:
            second = page.until(lambda event: event.name == "telemetry")[-1].data
        released.set()

    assert first["at_s"] == second["at_s"]
    assert second["age_s"] > first["age_s"] >= 0


def test_streams_end_when_the_server_does(tmp_path: Path, run_studio: StudioMaker) -> None:
    with ExitStack() as stack:
        with run_studio(tmp_path) as studio:
            studio.wait_until_ready()
            pages = [stack.enter_context(opened(studio)) for _ in range(10)]
            for page in pages:
                page.read()
            begun_s = time.monotonic()
            studio.server.stop()
            assert time.monotonic() - begun_s < 3
        for page in pages:
            with pytest.raises(EOFError):
                page.until(lambda event: False)


def test_closed_pages_are_forgotten(studio: Studio) -> None:
    for _ in range(3):
        with opened(studio) as page:
            page.read()
    with opened(studio) as page:
        page.until(lambda event: viewers(studio) == 1)
        assert viewers(studio) == 1


def viewers(studio: Studio) -> int:
    for line in studio.client.get("/metrics").text.splitlines():
        if line.startswith("zimage_telemetry_viewers "):
            return int(float(line.split()[1]))
    raise AssertionError("no such metric")


def test_a_page_that_does_not_read_costs_no_memory_and_holds_up_no_one(studio: Studio) -> None:
    """What waits for it is all that it can cost: a full mailbox, and what is on its way in one chunk."""
    long = GenerationRequest(prompt="x" * 8_000, width=256, height=256, seed=1)
    streams = studio.server.config.app.state.streams  # type: ignore[union-attr]
    most = {"events": 0, "bytes": 0}

    def flood(first: int, last: int) -> None:
        for number in range(first, last):
            studio.board.publish(JobQueued(job_id=str(number), request=long, client="test"))
            studio.board.publish(JobFailed(job_id=str(number), error=GenerationError("as told")))

    def measure(_: object) -> None:  # on the event loop, whenever something has changed
        for mailbox in streams._mailboxes:
            most["events"] = max(most["events"], len(mailbox))
            most["bytes"] = max(most["bytes"], sum(map(len, mailbox._events.values())))

    streams.add_listener(measure)
    with opened(studio) as idle, opened(studio) as reading:
        idle.read()
        reading.read()
        for first in range(0, 5_000, 100):  # 70 MB of events for each page
            flood(first, first + 100)
            last = str(first + 99)  # which is waited for: a server that is kept from its loop tells of the newest alone
            while (event := reading.read()).data.get("job_id") != last or event.data["phase"] != "failed":
                pass
        measure(None)

    assert most["events"] == MAILBOX_EVENTS
    assert most["bytes"] < MAILBOX_EVENTS * 20_000


def test_a_hundred_pages_cost_little(tmp_path: Path, run_studio: StudioMaker) -> None:
    """A look at the machine, sent to 100 pages, takes 50 ms of a processor at most: 5 % of a core at one per second."""
    looks = 10
    with run_studio(tmp_path, interval_s=0.1) as studio, ExitStack() as stack:
        studio.wait_until_ready()
        client = stack.enter_context(httpx.Client(timeout=30, limits=httpx.Limits(max_connections=200)))
        pages = [Page(stack.enter_context(client.stream("GET", f"{studio.server.url}/telemetry"))) for _ in range(100)]
        for page in pages:
            page.until(lambda event: event.name == "telemetry")
        process = psutil.Process(os.getpid())
        cpu_s = sum(process.cpu_times()[:2])
        for _ in range(looks):
            pages[0].until(lambda event: event.name == "telemetry")
        assert (sum(process.cpu_times()[:2]) - cpu_s) / looks < 0.05


def take(mailbox: Mailbox, timeout_s: float = 0.0) -> list[bytes] | None:
    return asyncio.run(mailbox.take(timeout_s))


def test_a_mailbox_keeps_the_newest_state_of_each_thing() -> None:
    mailbox = Mailbox()
    mailbox.post("a", b"a1")
    mailbox.post("b", b"b1")
    mailbox.post("a", b"a2")

    assert take(mailbox) == [b"b1", b"a2"]
    assert take(mailbox) == []


def test_a_full_mailbox_loses_the_oldest_job_but_not_the_readiness() -> None:
    mailbox = Mailbox()
    mailbox.post("readiness", b"ready")
    for number in range(10 * MAILBOX_EVENTS):
        mailbox.post(str(number), b"%d" % number)

    events = take(mailbox)

    assert events is not None
    assert len(events) == MAILBOX_EVENTS
    assert events[0] == b"ready"
    assert events[1] == b"%d" % (9 * MAILBOX_EVENTS + 1)


def test_much_is_taken_in_chunks_that_may_still_be_overtaken() -> None:
    mailbox = Mailbox()
    for number in range(10):
        mailbox.post(str(number), bytes(30_000))

    assert len(take(mailbox) or []) == 3
    mailbox.post("9", b"newer")
    assert [len(take(mailbox) or []) for _ in range(4)] == [3, 3, 1, 0]


def test_a_closed_mailbox_says_so() -> None:
    mailbox = Mailbox()
    mailbox.post("a", b"a1")
    mailbox.close()

    assert take(mailbox) is None
