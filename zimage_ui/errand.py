"""One errand: pictures made once by a generator, saved, and accounted for. No page, no queue, no threads."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zimage_ui.errors import InvalidRequestError, StorageError
from zimage_ui.generator.base import (
    GenerationListener,
    GenerationResult,
    Generator,
    ModelInfo,
    ModelProfile,
    WarmupProgress,
)
from zimage_ui.jobs.saving import picture_metadata
from zimage_ui.request import GeneratedImage, GenerationRequest, ImageFormat, Preview
from zimage_ui.settings import Settings
from zimage_ui.stages import Stage, Timings
from zimage_ui.storage.encoders import encode_picture
from zimage_ui.storage.files import OutputFolder, replace_file
from zimage_ui.storage.library import Library, LibraryRow
from zimage_ui.storage.metadata import PictureMetadata

Tell = Callable[[str], None]
_FORMATS = {".png": ImageFormat.PNG, ".jpg": ImageFormat.JPEG, ".jpeg": ImageFormat.JPEG, ".webp": ImageFormat.WEBP}


@dataclass(frozen=True, slots=True)
class Errand:
    """What to make and where to put it.

    Attributes:
        fields: of a `GenerationRequest`, as far as they were given; the model's profile fills in the rest.
        output: the file to write (an existing one is replaced), or None for a new one in the output folder. Of several
            pictures, each gets its number: picture-1.png, picture-2.png.
        warmup: make one full pass first.

    Raises:
        InvalidRequestError: a field is out of range, or the file's ending names no format.
    """

    fields: dict[str, Any]
    output: Path | None = None
    warmup: bool = False

    def __post_init__(self) -> None:
        GenerationRequest(**self.fields)  # before anything heavy is loaded
        if self.output is not None and self.output.suffix.lower() not in _FORMATS:
            raise InvalidRequestError(
                f"{self.output} ends in {self.output.suffix or 'nothing'!r}, which names no picture format.",
                f"Let it end in one of: {', '.join(_FORMATS)}.",
                param="output",
            )

    def request(self, profile: ModelProfile, image_format: ImageFormat) -> GenerationRequest:
        """The request, completed by the model's profile, its seed drawn.

        Raises:
            InvalidRequestError: the model does not work so.
        """
        width, height = profile.sizes[0]
        defaults = {
            "width": width,
            "height": height,
            "num_inference_steps": profile.num_inference_steps,
            "guidance_scale": profile.guidance_scale,
            "image_format": _FORMATS[self.output.suffix.lower()] if self.output else image_format,
            "preview": False,
        }
        request = GenerationRequest(**{**defaults, **self.fields}).with_seed()
        profile.check(request)
        return request


def run(errand: Errand, settings: Settings, generator: Generator, tell: Tell) -> dict[str, Any]:
    """Load, make, save; returns what `zimage-ui generate --json` prints. `tell` gets a line for each step on the way.

    Raises:
        ZImageError: as `Generator` and `OutputFolder` say.
    """
    if errand.output is None:
        OutputFolder(settings.output_dir).prepare()
    else:
        _try_place(errand.output.absolute())
    told = _Told(tell)
    info = generator.load(told.progress)
    try:
        request = errand.request(info.profile, settings.image_format)
        if errand.warmup:
            generator.warmup(told.progress)
            while generator.prepare_next(lambda shapes: None):
                pass
        begun_at_s = time.monotonic()
        result = generator.generate(request, told)
        made_at_s = time.monotonic()
        pictures = [_Encoded.of(image, request, result, info) for image in result.images]
        files = _save(pictures, errand.output, settings.output_dir)
        saved_at_s = time.monotonic()
    finally:
        generator.close()
    timings = Timings.account(
        queue_ms=0.0,
        stage_ms={**result.stage_ms, Stage.SAVE: (saved_at_s - made_at_s) * 1e3},
        total_ms=(saved_at_s - begun_at_s) * 1e3,
    )
    return _report(request, result, info, timings, files)


def _report(
    request: GenerationRequest, result: GenerationResult, info: ModelInfo, timings: Timings, files: list[Path]
) -> dict[str, Any]:
    return {
        "files": [str(file) for file in files],
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "nfe": result.nfe,
        "scheduler": request.scheduler.value,
        "guidance_scale": request.guidance_scale,
        "timings_ms": timings.as_dict(),
        "prompt_tokens": result.prompt_tokens,
        "truncated_tokens": result.truncated_tokens,
        "memory": asdict(result.memory) if result.memory else None,
        "memory_plan": result.memory_plan,
        "shape_warm": result.shape_warm,
        "precision": result.precision,
        "model": asdict(info),
    }


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One picture as the bytes of its file."""

    metadata: PictureMetadata
    data: bytes
    sidecar: bytes | None = field(repr=False)

    @classmethod
    def of(
        cls, image: GeneratedImage, request: GenerationRequest, result: GenerationResult, info: ModelInfo
    ) -> _Encoded:
        metadata = picture_metadata(image, request, result, info, queue_ms=0.0)
        encoded = encode_picture(image, metadata, request.image_format)
        return cls(metadata, encoded.data, encoded.sidecar)

    def files_at(self, path: Path) -> list[tuple[Path, bytes]]:
        """What to write, when the picture goes to `path`: a sidecar first, so that none lacks its settings."""
        return [*([(path.with_suffix(".json"), self.sidecar)] if self.sidecar else []), (path, self.data)]


def _save(pictures: list[_Encoded], output: Path | None, output_dir: Path) -> list[Path]:
    """Write the pictures to `output`, or else into the output folder.

    Raises:
        StorageError: `output` could not be written; says where the pictures are instead.
    """
    if output is None:
        return _save_in_folder(pictures, output_dir)
    paths = _numbered(output.absolute(), len(pictures))
    try:
        for picture, path in zip(pictures, paths, strict=True):
            for file, data in picture.files_at(path):
                _replace(file, data)
    except StorageError as error:
        kept = ", ".join(str(path) for path in _save_in_folder(pictures, output_dir))
        raise StorageError(f"{error.message} What was made is kept in the output folder: {kept}", error.hint) from error
    return paths


def _save_in_folder(pictures: list[_Encoded], output_dir: Path) -> list[Path]:
    folder = OutputFolder(output_dir)
    folder.prepare()
    paths, rows = [], []
    for picture in pictures:
        metadata = picture.metadata
        path = folder.path_for(metadata.picture_id, metadata.created_at, metadata.request.image_format)
        for file, data in picture.files_at(path):
            folder.write(file, data)
        paths.append(path)
        rows.append(LibraryRow.of(metadata, path=folder.relative(path), size_bytes=len(picture.data)))
    with contextlib.closing(Library(folder)) as library:
        library.add(rows)
    return paths


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def _try_place(path: Path) -> None:
    """See that a file can be put at `path`, before a picture is made for it; its folder is made if need be.

    Raises:
        StorageError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} could not be written: {error.strerror}.", "Choose another --output.")


def _replace(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, in place of what was there.

    Raises:
        StorageError: it could not be written.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise _cannot_write(path, error) from error


class _Told(GenerationListener):
    """Puts what happens into lines, the same line never twice."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._last = ""

    def progress(self, progress: WarmupProgress) -> None:
        """Tell how far the loading or the warm-up is."""
        self._line(f"{progress.phase} {progress.progress:4.0%}  {progress.detail}".rstrip())

    def stage_started(self, stage: Stage) -> None:
        """Tell which stage begins."""
        self._line(str(stage))

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        """Tell which step is done."""
        self._line(f"sample {step} of {num_steps}")

    def _line(self, line: str) -> None:
        if line != self._last:
            self._tell(line)
        self._last = line
