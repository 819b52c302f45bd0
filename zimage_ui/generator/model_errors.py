"""Where the errors of the hub, of safetensors, torch and the disk become ours, while a model is found and loaded."""

from __future__ import annotations

import errno

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)

from zimage_ui.errors import (
    DeviceLostError,
    DeviceMemoryError,
    GenerationError,
    ModelDamagedError,
    ModelDownloadError,
    ModelError,
    ModelNotFoundError,
)

# The HTTP library under huggingface_hub changes its name with its versions; its root error is the hub errors' parent.
_HTTP_ERROR = next(parent for parent in HfHubHTTPError.__mro__ if parent.__name__ == "HTTPError")

# Whatever huggingface_hub may raise, wrong arguments of ours excepted.
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, _HTTP_ERROR)

# Whatever building a model from a configuration that nobody checked may raise, out of torch, diffusers or transformers.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)

_START_AGAIN = (
    "Check the connection and start again: what has been fetched is kept. "
    "Without internet, bring the model's folder here and set ZIMAGE_MODEL to it."
)
_MAX_ERROR_CHARS = 300
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def as_download_error(error: Exception, repo_id: str, revision: str) -> ModelError:
    """The error of our tree for what huggingface_hub raised over a model."""
    ours = _from_answer(error, repo_id, revision) or _from_cache(error, repo_id)
    return ours or ModelDownloadError(
        f"{repo_id} cannot be fetched from {constants.ENDPOINT}: {_brief(error)}", _START_AGAIN
    )


def _from_answer(error: Exception, repo_id: str, revision: str) -> ModelError | None:
    """For what the hub answered."""
    hub = constants.ENDPOINT
    if not isinstance(error, HfHubHTTPError) or isinstance(error, LocalEntryNotFoundError):
        return None
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo_id} on {hub} has no revision {revision!r}.", "Check what follows the @.")
    if isinstance(error, GatedRepoError):
        return ModelDownloadError(
            f"{repo_id} is given only to those who accept its terms.",
            f"Accept them on {hub}/{repo_id}, then {_LOG_IN}.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{hub} has no model {repo_id}, or it is a private one.",
            f"Check the spelling; for a private model {_LOG_IN}.",
        )
    status = error.response.status_code
    hints = {
        401: f"To be known there, {_LOG_IN}.",
        403: f"To be known there, {_LOG_IN}.",
        429: "It had too many requests: wait some minutes, then start again.",
    }
    return ModelDownloadError(
        f"{hub} answered with HTTP {status} when it was asked for {repo_id}.", hints.get(status, _START_AGAIN)
    )


def _from_cache(error: Exception, repo_id: str) -> ModelError | None:
    """For what this machine has not, or does not allow."""
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return ModelDownloadError(
            f"{repo_id} is not, or not wholly, on this machine, and HF_HUB_OFFLINE keeps it from being fetched.",
            "Unset HF_HUB_OFFLINE and start again, or bring the model's folder here and set ZIMAGE_MODEL to it.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelDownloadError(
            f"The disk of {constants.HF_HUB_CACHE} is full.",
            "Make room and start again: what has been fetched is kept. HF_HOME moves the cache to another disk.",
        )
    if isinstance(error, PermissionError):
        return ModelDownloadError(
            f"The cache {constants.HF_HUB_CACHE} cannot be written: {error}.",
            "Correct its permissions, or set HF_HOME to another folder.",
        )
    return None


def as_load_error(error: Exception, what: str, device_name: str) -> ModelError | GenerationError:
    """The error of our tree for what torch, diffusers, transformers or the disk raised while `what` was loaded."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error):
        return DeviceMemoryError(
            f"{device_name} ran out of memory while {what} was being loaded.",
            "Close other programs that use its memory, or set ZIMAGE_MODEL=auto for the small model.",
        )
    if isinstance(error, torch.AcceleratorError):
        return DeviceLostError(
            f"{device_name} stopped answering while {what} was being loaded: {_brief(error)}",
            "Start again; if it happens again, look for Xid in the kernel's log (dmesg).",
        )
    if isinstance(error, OSError):
        return ModelError(f"{what} cannot be read: {error}.", "Check the permissions and the state of the disk.")
    return ModelDamagedError(
        f"{what} does not describe a model that can be built: {type(error).__name__}: {_brief(error)}",
        "Fetch the model again, or copy the folder anew; its configuration may be of another version.",
    )


def _brief(error: Exception) -> str:
    """What `error` says, in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]}..."
