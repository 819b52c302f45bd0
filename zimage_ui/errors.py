"""One tree of errors. Every error says what happened, with which value, and what to do next.

::

    ZImageError
    ├── SettingsError            a setting, an option or a port that cannot be used
    ├── InvalidRequestError      what was asked for cannot be made; `param` names the field
    ├── QueueFullError           too many pictures are waiting; `retry_after_s` says when to try again
    ├── NotReadyError            the model is still being loaded, or the service is stopping
    ├── JobCancelledError        somebody pressed Cancel
    ├── ModelError               the model cannot be used
    │   ├── ModelNotFoundError       no such folder, hub id or file
    │   ├── ModelDownloadError       the hub could not be reached or answered with an error
    │   └── ModelDamagedError        files are missing, cut short or do not belong together
    ├── GenerationError          making the picture failed
    │   ├── DeviceMemoryError        the GPU (or the host) has too little memory, even for the smallest plan
    │   └── DeviceLostError          the GPU stopped answering; the process has to be started anew
    └── StorageError             a picture could not be written or read
        ├── OutputFolderError        the output folder cannot be used at all
        └── PictureNotFoundError     no picture has this id

Foreign errors (torch, NVML, the hub, the disk) become one of these where they enter, once per room.
"""

from __future__ import annotations


class ZImageError(Exception):
    """The root of the tree.

    Attributes:
        message: what happened, with the value that caused it.
        hint: what the person can do about it; may be empty.
        code: a short stable name for programs.
    """

    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(ZImageError):
    """A setting, an option or a port that cannot be used."""

    code = "invalid_settings"


class InvalidRequestError(ZImageError):
    """What was asked for cannot be made.

    Attributes:
        param: the field at fault, by its public name.
    """

    code = "invalid_request"

    def __init__(self, message: str, hint: str = "", *, param: str = "") -> None:
        super().__init__(message, hint)
        self.param = param


class QueueFullError(ZImageError):
    """Too many pictures are waiting.

    Attributes:
        retry_after_s: an estimate of when a place is free.
    """

    code = "queue_full"

    def __init__(self, message: str, hint: str = "", *, retry_after_s: int = 5) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class NotReadyError(ZImageError):
    """The model is still being loaded, or the service is stopping."""

    code = "not_ready"


class JobCancelledError(ZImageError):
    """Somebody pressed Cancel; nothing went wrong."""

    code = "cancelled"


class ModelError(ZImageError):
    """The model cannot be used."""

    code = "model_error"


class ModelNotFoundError(ModelError):
    """No such folder, hub id or file."""

    code = "model_not_found"


class ModelDownloadError(ModelError):
    """The hub could not be reached or answered with an error."""

    code = "model_download_failed"


class ModelDamagedError(ModelError):
    """Files of the model are missing, cut short or do not belong together."""

    code = "model_damaged"


class GenerationError(ZImageError):
    """Making the picture failed."""

    code = "generation_failed"


class DeviceMemoryError(GenerationError):
    """The device has too little memory, even for the smallest plan."""

    code = "out_of_memory"


class DeviceLostError(GenerationError):
    """The GPU stopped answering; the process has to be started anew."""

    code = "device_lost"


class StorageError(ZImageError):
    """A picture could not be written or read."""

    code = "storage_error"


class OutputFolderError(StorageError):
    """The output folder cannot be used at all."""

    code = "output_folder_unusable"


class PictureNotFoundError(StorageError):
    """No picture has this id."""

    code = "picture_not_found"
