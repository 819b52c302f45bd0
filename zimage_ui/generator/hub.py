"""Models from the hub: fetched once, with progress in bytes, taken up again where they broke off.

Everything lands in the cache that huggingface_hub and all its users share, and `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`
and `HF_HUB_OFFLINE` mean what they always mean. huggingface_hub itself (2.4) throws a partial file away when the
process ends; a shard of this model has 10 GB. So the weights are fetched here, each into the file
`blobs/<etag>.incomplete` of that cache, by its own resuming download, and checked against their checksum; it then finds
them there and does the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils import tqdm as hub_bar  # type: ignore[attr-defined]

from zimage_ui.errors import ModelDamagedError, ModelDownloadError
from zimage_ui.generator.base import ProgressListener, WarmupPhase, WarmupProgress
from zimage_ui.generator.layout import INDEX_FILE, MARKER_FILE, is_model_folder
from zimage_ui.generator.model_errors import HUB_ERRORS, as_download_error
from zimage_ui.generator.units import data_size

_log = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = (
    INDEX_FILE,
    MARKER_FILE,
    "scheduler/*.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "tokenizer/*.jinja",
    *(f"{part}/*{suffix}" for part in ("text_encoder", "transformer", "vae") for suffix in (".json", ".safetensors")),
)
_WEIGHTS = ".safetensors"
_DOWNLOADS_AT_ONCE = 4
_ANSWER_TIMEOUT_S = 10.0
_SPARE_BYTES = 100_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the hub: "owner/name", and which revision of it."""

    repo_id: str
    revision: str = constants.DEFAULT_REVISION

    @property
    def name(self) -> str:
        """Without the owner."""
        return self.repo_id.rpartition("/")[2]

    def __str__(self) -> str:
        return self.repo_id if self.revision == constants.DEFAULT_REVISION else f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of a model at one commit that are of use here, with their sizes in bytes."""

    commit: str
    sizes: dict[str, int]

    @property
    def weights(self) -> list[str]:
        """The large ones."""
        return [name for name in self.sizes if name.endswith(_WEIGHTS)]


def parse_hub_id(text: str) -> HubId | None:
    """The hub id that `text` is ("owner/name" or "owner/name@revision"); None when it is none."""
    repo_id, at, revision = text.partition("@")
    if not _REPO_ID.fullmatch(repo_id) or (at and not revision):
        return None
    return HubId(repo_id, revision or constants.DEFAULT_REVISION)


def fetch_model(hub_id: HubId, progress: ProgressListener) -> Path:
    """The folder of a hub model in the shared cache, after fetching what is not there yet.

    A model that is in the cache is used as it is when the hub cannot be reached.

    Args:
        hub_id: which model.
        progress: hears of the download (phase DOWNLOADING, 0..1 of all its bytes), one call at a time, from several
            threads; if it raises, the download ends with that error.

    Raises:
        ModelNotFoundError: the hub has no such model or revision.
        ModelDownloadError: the hub cannot be reached, refuses, breaks off, or the disk is full.
        ModelDamagedError: what the hub has is no model in diffusers layout with weights in safetensors.
    """
    try:
        listing = _list_files(hub_id)
    except HUB_ERRORS as error:
        return _cached(hub_id, error)
    _check(hub_id, listing)
    try:
        _fetch_weights(hub_id, listing, progress)
        return _snapshot(hub_id)
    except HUB_ERRORS as error:
        raise as_download_error(error, hub_id.repo_id, hub_id.revision) from error


def _list_files(hub_id: HubId) -> _Listing:
    api = HfApi()
    info = api.model_info(hub_id.repo_id, revision=hub_id.revision, files_metadata=True, timeout=_ANSWER_TIMEOUT_S)
    names = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return _Listing(
        info.sha or hub_id.revision,
        {name: size for name, size in names.items() if any(fnmatch(name, wanted) for wanted in _WANTED)},
    )


def _check(hub_id: HubId, listing: _Listing) -> None:
    if INDEX_FILE not in listing.sizes:
        raise ModelDamagedError(
            f"{hub_id} on the hub has no {INDEX_FILE}: it is no model in diffusers layout.",
            "Choose one in diffusers layout, such as Tongyi-MAI/Z-Image-Turbo.",
        )
    for part in ("text_encoder", "transformer", "vae"):
        if not any(name.startswith(f"{part}/") for name in listing.weights):
            raise ModelDamagedError(
                f"{hub_id} on the hub has no {part}/*.safetensors; weights in other formats "
                "are never fetched: a pickle can run any program hidden in it.",
                "Choose a model whose weights are in safetensors.",
            )


def _cached(hub_id: HubId, cause: Exception) -> Path:
    """The model as it is in the cache, because the hub said `cause`."""
    try:
        folder = _snapshot(hub_id, local_files_only=True)
    except HUB_ERRORS:
        folder = None
    if folder is None or not is_model_folder(folder):
        raise as_download_error(cause, hub_id.repo_id, hub_id.revision) from cause
    _log.warning("The hub did not answer (%s): using the copy of %s in %s.", cause, hub_id, folder)
    return folder


def _snapshot(hub_id: HubId, *, local_files_only: bool = False) -> Path:
    """huggingface_hub's own last word: small files, links and references, or a check that all are there."""
    return Path(
        snapshot_download(
            hub_id.repo_id,
            revision=hub_id.revision,
            allow_patterns=list(_WANTED),
            local_files_only=local_files_only,
            tqdm_class=_NoBar,
        )
    )


def _fetch_weights(hub_id: HubId, listing: _Listing, progress: ProgressListener) -> None:
    """Bring all weight files of `listing` into the cache's blobs."""
    missing = [name for name in listing.weights if not _is_cached(hub_id, listing.commit, name)]
    if not missing:
        return
    storage = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id.repo_id, repo_type="model"))
    blobs = storage / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    _check_space(hub_id, blobs, sum(listing.sizes[name] for name in missing))
    cached_bytes = sum(listing.sizes[name] for name in listing.weights if name not in missing)
    tally = _Tally(hub_id.name, cached_bytes, sum(listing.sizes[name] for name in listing.weights), progress)
    with _alone(storage, tally), ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download") as pool:
        urls = [hf_hub_url(hub_id.repo_id, name, revision=listing.commit) for name in missing]
        try:
            for finished in as_completed([pool.submit(_fetch_blob, url, blobs, tally) for url in urls]):
                finished.result()
        finally:
            # After a failure the other files are half done; they are taken up again next time.
            tally.stop()
            pool.shutdown(cancel_futures=True)


def _is_cached(hub_id: HubId, commit: str, name: str) -> bool:
    return isinstance(try_to_load_from_cache(hub_id.repo_id, name, revision=commit), str)


def _check_space(hub_id: HubId, blobs: Path, missing_bytes: int) -> None:
    partial_bytes = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
    needed_bytes = missing_bytes - partial_bytes + _SPARE_BYTES
    free_bytes = shutil.disk_usage(blobs).free
    if needed_bytes > free_bytes:
        raise ModelDownloadError(
            f"{hub_id} needs {data_size(needed_bytes)} more on the disk of {blobs}; {data_size(free_bytes)} are free.",
            "Make room there, or set HF_HOME to a folder on a larger disk.",
        )


def _fetch_blob(url: str, blobs: Path, tally: _Tally) -> None:
    """Fetch one file to its place among the blobs, from where an earlier attempt broke off."""
    metadata = get_hf_file_metadata(url)
    etag, size_bytes = metadata.etag, metadata.size
    if not etag or size_bytes is None or not _ETAG.fullmatch(etag):
        raise ModelDownloadError(f"The hub does not say what {url} is (no ETag or no length).", "Check HF_ENDPOINT.")
    blob = blobs / etag
    if blob.exists():
        tally.add(size_bytes)
        return
    partial = blobs / f"{etag}.incomplete"
    with partial.open("ab") as file:
        if file.tell() > size_bytes:
            file.truncate(0)
            file.seek(0)
        tally.add(file.tell())
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=size_bytes,
            tqdm_class=tally.bar,
        )
        file.flush()
        os.fsync(file.fileno())
    _verify(partial, etag)
    partial.rename(blob)


def _verify(partial: Path, etag: str) -> None:
    """Compare a large file with its checksum, which the hub has as its ETag; smaller ones have none."""
    if not _SHA256.fullmatch(etag):
        return
    with partial.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != etag:
        partial.unlink()
        raise ModelDownloadError(
            f"A file of the model arrived damaged: its checksum is {actual[:12]}..., not {etag[:12]}....",
            "It was thrown away; start again to fetch it anew.",
        )


@contextmanager
def _alone(storage: Path, tally: _Tally) -> Iterator[None]:
    """Wait until no other process fetches the same model: two would write into the same partial files."""
    with (storage / ".zimage-ui.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tally.say("waiting for another process that fetches it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Stopped(Exception):
    """Ends the other downloads after one has failed."""


class _Tally:
    """Adds up what several downloads have brought, and reports it."""

    def __init__(self, name: str, cached_bytes: int, total_bytes: int, progress: ProgressListener) -> None:
        self._name = name
        self._done_bytes = self._most_bytes = self._begun_bytes = cached_bytes
        self._total_bytes = total_bytes
        self._progress = progress
        self._begun_s = monotonic()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Let every further `add` raise."""
        self._stopped = True

    def add(self, count: float) -> None:
        """`count` more bytes are there; fewer, when a server starts a file from its beginning again."""
        if self._stopped:
            raise _Stopped
        with self._lock:
            self._done_bytes += int(count)
            self._most_bytes = max(self._most_bytes, self._done_bytes)
            self._report(f"{data_size(self._done_bytes)} of {data_size(self._total_bytes)}{self._speed()}")

    def say(self, text: str) -> None:
        """Report without a change."""
        with self._lock:
            self._report(text)

    @property
    def bar(self) -> Any:
        """What http_get takes for the class of its progress bar."""
        return lambda **_kwargs: _Bar(self)

    def _report(self, text: str) -> None:
        share = min(1.0, self._most_bytes / max(self._total_bytes, 1))
        self._progress(WarmupProgress(phase=WarmupPhase.DOWNLOADING, progress=share, detail=f"{self._name}: {text}"))

    def _speed(self) -> str:
        seconds = monotonic() - self._begun_s
        fetched_bytes = self._done_bytes - self._begun_bytes
        return f", {data_size(fetched_bytes / seconds)}/s" if seconds > 1 else ""


class _Bar:
    """The part of tqdm's interface that http_get uses."""

    def __init__(self, tally: _Tally) -> None:
        self.update = tally.add

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class _NoBar(hub_bar):
    """A progress bar that never shows; the files it is for are small."""

    monitor_interval = 0  # or tqdm starts a thread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})
