"""Hub downloads, against a hub on loopback, each in a process of its own as the environment is read at import."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from safetensors.numpy import save

from tests.generator.fake_hub import COMMIT, REPO_ID, FakeHub
from zimage_ui.errors import ModelDownloadError, ModelError, ModelNotFoundError, NotReadyError
from zimage_ui.generator import hub as hub_room
from zimage_ui.generator.base import WarmupProgress
from zimage_ui.generator.hub import HubId, fetch_model, parse_hub_id

pytestmark = pytest.mark.service  # a server, and each client a process of its own

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
# huggingface_hub hands on and writes 10 MiB at a time, so this one arrives in three parts.
LARGE = save({"weight": np.arange(6_000_000, dtype=np.float32)})
PART_BYTES = 10 * 2**20
SMALL = save({"weight": np.ones(1000, dtype=np.float32)})

DRIVER = """
import json, sys
from zimage_ui.errors import ZImageError
from zimage_ui.generator.hub import fetch_model, parse_hub_id

def report(progress):
    print(json.dumps({"phase": progress.phase, "progress": progress.progress, "detail": progress.detail}), flush=True)

try:
    print(json.dumps({"folder": str(fetch_model(parse_hub_id(sys.argv[1]), report))}))
except ZImageError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""


@dataclass
class Run:
    """What a fetching process said."""

    lines: list[dict[str, object]]

    @property
    def outcome(self) -> dict[str, object]:
        return self.lines[-1]

    @property
    def folder(self) -> Path:
        assert "folder" in self.outcome, self.outcome
        return Path(str(self.outcome["folder"]))

    @property
    def progress(self) -> list[float]:
        return [float(str(line["progress"])) for line in self.lines[:-1]]


@dataclass
class Client:
    """Starts processes that fetch a model into a cache of their own."""

    home: Path
    endpoint: str
    extra: dict[str, str] = field(default_factory=dict)

    def start(self, model: str = REPO_ID) -> subprocess.Popen[str]:
        env = {
            name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "TRANSFORMERS_"))
        }
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "NO_PROXY": "*", **self.extra}
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, model], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def fetch(self, model: str = REPO_ID) -> Run:
        with self.start(model) as process:
            return finish(process)


def finish(process: subprocess.Popen[str]) -> Run:
    out, _ = process.communicate(timeout=60)
    return Run([json.loads(line) for line in out.splitlines()])


def wait_for(process: subprocess.Popen[str], told: Callable[[dict[str, object]], bool]) -> None:
    """Read what the process says until it has said this."""
    assert process.stdout is not None
    for line in process.stdout:
        if told(json.loads(line)):
            return
    raise AssertionError("it ended without saying so")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {
        "model_index.json": b'{"_class_name": "ZImagePipeline"}',
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer/merges.txt": b"a b\n",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": SMALL,
        "transformer/config.json": b"{}",
        TRANSFORMER: LARGE,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": save({"weight": np.zeros(500, dtype=np.float32)}),
        "README.md": b"not needed",
        "assets/teaser.jpg": b"not needed",
        "pytorch_model.bin": b"a pickle",
        "transformer/diffusion_pytorch_model.bin": b"a pickle",
        "vae/old.ckpt": b"a pickle",
    }
    with FakeHub(files).running() as running:
        yield running


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Client:
    return Client(tmp_path / "hf", hub.endpoint)


@pytest.fixture
def here(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets this very process ask the fake hub, which is quicker than one of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()
    yield
    close_session()


@pytest.mark.parametrize(
    ("text", "hub_id"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", HubId("Tongyi-MAI/Z-Image-Turbo", "main")),
        ("someone/model.v2@abc123", HubId("someone/model.v2", "abc123")),
        ("someone/model@refs/pr/3", HubId("someone/model", "refs/pr/3")),
        ("model", None),
        ("a/b/c", None),
        ("/absolute/folder", None),
        ("../up", None),
        ("someone/model@", None),
        ("", None),
    ],
)
def test_a_hub_id_has_an_owner_a_name_and_perhaps_a_revision(text: str, hub_id: HubId | None):
    assert parse_hub_id(text) == hub_id
    assert hub_id is None or str(hub_id) == text


def test_a_model_is_fetched_whole_and_nothing_else(hub: FakeHub, client: Client):
    run = client.fetch()

    needed = {name: content for name, content in hub.files.items() if name.endswith((".json", ".txt", ".safetensors"))}
    fetched = {str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert fetched == needed
    asked_for = {asked.path for asked in hub.asked}
    assert not any(path.endswith((".bin", ".ckpt", ".md", ".jpg")) for path in asked_for)


def test_progress_counts_bytes_from_nothing_to_all(client: Client):
    run = client.fetch()

    assert {line["phase"] for line in run.lines[:-1]} == {"downloading"}
    assert run.progress == sorted(run.progress)
    assert run.progress[0] < 0.01
    assert run.progress[-1] == 1.0
    assert any(0.1 < progress < 0.9 for progress in run.progress)
    assert str(run.lines[-2]["detail"]).startswith("small-z-image-turbo: 24 MB of 24 MB")


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: FakeHub, client: Client):
    client.extra["HF_TOKEN"] = "hf_secret"
    assert client.fetch().folder.is_dir()
    assert {asked.authorization for asked in hub.asked if "/cdn/" in asked.path} == {None}
    assert {asked.authorization for asked in hub.asked if "/api/models/" in asked.path} == {"Bearer hf_secret"}


def test_what_is_in_the_cache_is_not_fetched_again(hub: FakeHub, client: Client):
    first = client.fetch()
    hub.asked.clear()
    second = client.fetch()
    assert second.folder == first.folder
    assert second.progress == []
    assert hub.fetched(".safetensors") == []


def test_a_broken_connection_is_taken_up_where_it_broke(hub: FakeHub, client: Client):
    hub.cut_after = PART_BYTES + 5_000_000
    run = client.fetch()
    assert (run.folder / TRANSFORMER).read_bytes() == LARGE
    assert [asked.range for asked in hub.fetched(TRANSFORMER)] == [None, f"bytes={PART_BYTES}-"]
    assert run.progress == sorted(run.progress)


def test_a_killed_process_leaves_its_part_for_the_next_one(hub: FakeHub, client: Client):
    hub.hold_after = 2 * PART_BYTES + 1_000_000
    with client.start() as process:
        # a part is counted, then written: when the second one has been counted, the first is in the file
        wait_for(process, lambda line: float(str(line["progress"])) > 2 * PART_BYTES / (len(LARGE) + 100_000))
        process.send_signal(signal.SIGKILL)
    hub.hold_after = None
    hub.release.set()
    hub.asked.clear()

    run = client.fetch()

    assert (run.folder / TRANSFORMER).read_bytes() == LARGE
    (asked,) = hub.fetched(TRANSFORMER)
    assert asked.range is not None
    assert int(asked.range.removeprefix("bytes=").rstrip("-")) >= PART_BYTES
    assert run.progress == sorted(run.progress)
    assert run.progress[-1] == 1.0
    assert list(client.home.rglob("*.incomplete")) == []


def test_a_listener_that_raises_ends_the_download(hub: FakeHub, here: None):
    """So a service that stops need not wait for 30 GB."""

    def stop(progress: WarmupProgress) -> None:
        if progress.progress > 0.3:
            raise NotReadyError("The service is stopping.")

    with pytest.raises(NotReadyError):
        fetch_model(HubId(REPO_ID), stop)
    # Four files are fetched at once: how many of the others are cut short, too, is the machine's affair.
    parts = list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert parts
    assert max(part.stat().st_size for part in parts) < len(LARGE)


def test_a_server_that_cannot_resume_is_asked_for_the_whole_file(hub: FakeHub, client: Client):
    hub.cut_after = PART_BYTES + 5_000_000
    hub.ignores_ranges = True
    run = client.fetch()
    assert (run.folder / TRANSFORMER).read_bytes() == LARGE
    assert run.progress == sorted(run.progress)


@pytest.mark.parametrize("forged", [LARGE[:-1] + b"?", LARGE + b"?"], ids=["other bytes", "longer"])
def test_a_file_that_arrives_damaged_is_not_kept(hub: FakeHub, client: Client, forged: bytes):
    hub.forged[TRANSFORMER] = forged
    assert client.fetch().outcome["error"] == "ModelDownloadError"
    hub.forged.clear()
    assert (client.fetch().folder / TRANSFORMER).read_bytes() == LARGE


def test_two_processes_fetch_a_model_once(hub: FakeHub, client: Client):
    hub.hold_after = PART_BYTES + 5_000_000
    with client.start() as first:
        wait_for(first, lambda line: float(str(line["progress"])) > 0.4)
        with client.start() as second:
            wait_for(second, lambda line: "waiting for another process" in str(line["detail"]))
            hub.release.set()
            assert finish(second).folder == finish(first).folder
    assert len(hub.fetched(TRANSFORMER)) == 1


def test_without_the_hub_the_cached_model_is_used(hub: FakeHub, client: Client):
    folder = client.fetch().folder
    hub.refusal = (503, "")
    assert client.fetch().folder == folder
    client.extra["HF_HUB_OFFLINE"] = "1"
    hub.asked.clear()
    assert client.fetch().folder == folder
    assert hub.asked == []


def test_no_hub_and_no_copy_say_what_to_do(hub: FakeHub, tmp_path: Path):
    down = Client(tmp_path, "http://127.0.0.1:9").fetch().outcome  # the discard port: nobody listens
    assert down["error"] == "ModelDownloadError"
    assert f"{REPO_ID} cannot be fetched from http://127.0.0.1:9" in str(down["message"])
    assert "ZIMAGE_MODEL" in str(down["hint"])

    offline = Client(tmp_path, hub.endpoint, {"HF_HUB_OFFLINE": "1"}).fetch().outcome
    assert offline["error"] == "ModelDownloadError"
    assert "HF_HUB_OFFLINE" in str(offline["message"])
    assert hub.asked == []


def test_a_half_fetched_model_is_not_taken_for_a_whole_one(hub: FakeHub, client: Client):
    folder = client.fetch().folder
    (folder / TRANSFORMER).unlink()
    client.extra["HF_HUB_OFFLINE"] = "1"
    assert client.fetch().outcome["error"] == "ModelDownloadError"


@pytest.mark.parametrize(
    ("refusal", "model", "error", "said"),
    [
        ((404, "RepoNotFound"), REPO_ID, ModelNotFoundError, "has no model"),
        ((401, "RepoNotFound"), REPO_ID, ModelNotFoundError, "private"),
        ((403, "GatedRepo"), REPO_ID, ModelDownloadError, "Accept them on"),
        ((401, ""), REPO_ID, ModelDownloadError, "HF_TOKEN"),
        ((403, ""), REPO_ID, ModelDownloadError, "HTTP 403"),
        ((429, ""), REPO_ID, ModelDownloadError, "too many requests"),
        ((500, ""), REPO_ID, ModelDownloadError, "HTTP 500"),
        (None, f"{REPO_ID}@nowhere", ModelNotFoundError, "no revision 'nowhere'"),
        (None, "nobody/nothing", ModelNotFoundError, "nobody/nothing"),
    ],
)
def test_every_refusal_has_its_own_words(
    hub: FakeHub, here: None, refusal: tuple[int, str] | None, model: str, error: type[ModelError], said: str
):
    hub.refusal = refusal
    hub_id = parse_hub_id(model)
    assert hub_id is not None
    with pytest.raises(error) as raised:
        fetch_model(hub_id, lambda _: None)
    assert type(raised.value) is error
    assert said in str(raised.value)


def test_a_repository_with_pickles_only_is_refused_before_anything_is_fetched(hub: FakeHub, client: Client):
    del hub.files[TRANSFORMER]
    outcome = client.fetch().outcome
    assert outcome["error"] == "ModelDamagedError"
    assert "pickle" in str(outcome["message"])
    assert not any("/resolve/" in asked.path for asked in hub.asked)


def test_a_repository_in_another_layout_is_refused(hub: FakeHub, client: Client):
    del hub.files["model_index.json"]
    outcome = client.fetch().outcome
    assert outcome["error"] == "ModelDamagedError"
    assert "diffusers layout" in str(outcome["message"])


def test_a_revision_is_fetched_by_its_commit(client: Client):
    assert client.fetch(f"{REPO_ID}@{COMMIT}").folder.name == COMMIT


def test_a_disk_that_is_too_small_is_found_before_the_download(tmp_path: Path):
    (tmp_path / "part.incomplete").write_bytes(bytes(1000))
    with pytest.raises(ModelDownloadError, match="more on the disk of"):
        hub_room._check_space(HubId("someone/model"), tmp_path, 10**18)
    hub_room._check_space(HubId("someone/model"), tmp_path, 0)
