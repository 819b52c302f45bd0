"""Pixels become the bytes of a file with the settings inside, and a file's settings are read back.

A picture is encoded once: the bytes made here are shown by the page and written to disk, unchanged.

The encoders were chosen by measurement (`python -m bench.encoders`, figures in LOG.md): PNG is written here, rows
filtered with numpy ("up", PNG specification 9.2) and compressed with ISA-L; JPEG and WebP by Pillow. All of them let
the GIL go while they work, so that a picture being encoded does not hold up the thread that drives the GPU.

Where the settings lie: PNG in the `parameters` and `zimage` iTXt chunks; JPEG and WebP in EXIF, the A1111 text in
UserComment (as A1111 writes it: "UNICODE", then UTF-16) and our JSON in MakerNote (UTF-8).
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image

from zimage_ui import __version__
from zimage_ui.errors import StorageError
from zimage_ui.request import GeneratedImage, ImageFormat
from zimage_ui.storage.metadata import MAX_JSON_CHARS, PictureMetadata

PNG_LEVEL = 2
JPEG_QUALITY = 92
JPEG_SUBSAMPLING = "4:4:4"
WEBP_QUALITY = 90
WEBP_METHOD = 2
# Our largest picture, 2048 x 2048 of noise as PNG, has 12.6 MB; what is larger is not ours and is not opened.
MAX_PICTURE_BYTES = 64 * 2**20

PARAMETERS_KEY = "parameters"
JSON_KEY = "zimage"
CUT_MARK = " … [cut to fit into the file]"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xae\x42\x60\x82"
_PNG_FILTER_UP = 2
# A JPEG segment counts its length in 16 bits, and the two bytes of the count are part of it.
_JPEG_SEGMENT_BYTES = 65_533
_TAG_SOFTWARE = 0x0131
_TAG_EXIF_IFD = 0x8769
_TAG_EXIF_VERSION = 0x9000
_TAG_MAKER_NOTE = 0x927C
_TAG_USER_COMMENT = 0x9286
_TIFF_ASCII, _TIFF_LONG, _TIFF_UNDEFINED = 2, 4, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPicture:
    """A picture as the bytes of its file.

    Attributes:
        data: the whole file, settings inside.
        image_format: its format.
        sidecar: the full settings as JSON when they do not fit into the file (JPEG takes 64 KB), to lie beside it.
    """

    data: bytes
    image_format: ImageFormat
    sidecar: bytes | None = None


def encode_picture(image: GeneratedImage, metadata: PictureMetadata, image_format: ImageFormat) -> EncodedPicture:
    """Encode `image` with its settings inside.

    Raises:
        StorageError: the pixels do not fill the picture, or the encoder refused it.
    """
    expected = image.width * image.height * 3
    if len(image.pixels) != expected:
        raise StorageError(
            f"Picture {metadata.picture_id} has {len(image.pixels):,} bytes of pixels; "
            f"{image.width}x{image.height} takes {expected:,}."
        )
    try:
        match image_format:
            case ImageFormat.PNG:
                return EncodedPicture(data=_encode_png(image, metadata), image_format=image_format)
            case ImageFormat.JPEG:
                return _encode_jpeg(image, metadata)
            case ImageFormat.WEBP:
                return EncodedPicture(data=_encode_webp(image, metadata), image_format=image_format)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"Picture {metadata.picture_id} could not be encoded as {image_format}: {error}", "Choose another format."
        ) from error


def read_metadata(source: Path | bytes) -> PictureMetadata | None:
    """The settings inside a picture file (or beside it, where they did not fit); None if it holds none of ours.

    The pixels are not decoded, so a file of any size in pixels is safe to ask. Takes anybody's file.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return _parse(_embedded_json(io.BytesIO(source))) if len(source) <= MAX_PICTURE_BYTES else None
    if source.stat().st_size > MAX_PICTURE_BYTES:
        return None
    with source.open("rb") as file:
        embedded = _parse(_embedded_json(file))
    beside = source.with_suffix(".json")
    if embedded is not None and embedded.request.image_format is ImageFormat.JPEG and beside.is_file():
        return _read_sidecar(beside, embedded) or embedded
    return embedded


def looks_whole(path: Path) -> bool:
    """Whether the file begins and ends as its format does: a cheap check that nothing was cut off.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(12)
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(max(0, size_bytes - len(_PNG_END)))
        tail = file.read()
    if head.startswith(_PNG_SIGNATURE):
        return tail == _PNG_END
    if head.startswith(b"\xff\xd8"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return int.from_bytes(head[4:8], "little") + 8 == size_bytes
    return False


def _encode_png(image: GeneratedImage, metadata: PictureMetadata) -> bytes:
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    return b"".join(
        (
            _PNG_SIGNATURE,
            *_png_chunk(b"IHDR", header),
            *_png_text(PARAMETERS_KEY, metadata.to_parameters()),
            *_png_text(JSON_KEY, metadata.to_json()),
            *_png_chunk(b"IDAT", isal_zlib.compress(_filtered_rows(image), PNG_LEVEL)),
            *_png_chunk(b"IEND", b""),
        )
    )


def _filtered_rows(image: GeneratedImage) -> npt.NDArray[np.uint8]:
    """Each row as its difference from the one above, modulo 256, behind the number of that filter."""
    rows = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width * 3)
    filtered = np.empty((image.height, image.width * 3 + 1), np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _png_chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)


def _png_text(keyword: str, text: str) -> tuple[bytes, ...]:
    """An uncompressed iTXt chunk without language (PNG specification 11.3.4.5)."""
    return _png_chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8"))


def _encode_jpeg(image: GeneratedImage, metadata: PictureMetadata) -> EncodedPicture:
    exif, sidecar = _exif(metadata), None
    limit_chars = max(len(metadata.request.prompt), len(metadata.request.negative_prompt))
    while len(exif) > _JPEG_SEGMENT_BYTES:
        sidecar = metadata.to_json().encode("utf-8")
        limit_chars //= 2
        exif = _exif(_cut(metadata, limit_chars))
    data = _pillow_bytes(image, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_SUBSAMPLING, exif=exif)
    return EncodedPicture(data=data, image_format=ImageFormat.JPEG, sidecar=sidecar)


def _encode_webp(image: GeneratedImage, metadata: PictureMetadata) -> bytes:
    return _pillow_bytes(image, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD, exif=_exif(metadata))


def _pillow_bytes(image: GeneratedImage, name: str, **options: Any) -> bytes:
    pixels: Any = image.pixels  # Pillow takes any buffer; its annotation names bytes only
    picture = Image.frombuffer("RGB", (image.width, image.height), pixels, "raw", "RGB", 0, 1)
    # To a true file descriptor Pillow writes JPEG without the GIL, to a BytesIO with it (4 ms for a picture of 1024²).
    with os.fdopen(os.memfd_create("picture"), "w+b") as file:
        picture.save(file, name, **options)
        file.seek(0)
        return file.read()


def _exif(metadata: PictureMetadata) -> bytes:
    """An EXIF block of one tag in IFD0 and three in its Exif IFD (EXIF 2.32, TIFF 6.0 section 2).

    Written here because Pillow stores UserComment as BYTE, where piexif, and so A1111, reads UNDEFINED only.
    """
    software = _even(f"zimage-ui {__version__}".encode("ascii") + b"\0")
    comment = b"UNICODE\0" + metadata.to_parameters().encode("utf-16-be")
    # Each IFD: a count of 2 bytes, 12 bytes an entry, 4 bytes for "no further IFD"; values lie behind it.
    exif_ifd_at = 8 + (2 + 2 * 12 + 4) + len(software)
    first = _ifd(
        8, ((_TAG_SOFTWARE, _TIFF_ASCII, software), (_TAG_EXIF_IFD, _TIFF_LONG, struct.pack(">I", exif_ifd_at)))
    )
    second = _ifd(
        exif_ifd_at,
        (
            (_TAG_EXIF_VERSION, _TIFF_UNDEFINED, b"0232"),
            (_TAG_MAKER_NOTE, _TIFF_UNDEFINED, metadata.to_json().encode("utf-8")),
            (_TAG_USER_COMMENT, _TIFF_UNDEFINED, comment),
        ),
    )
    return b"Exif\0\0" + struct.pack(">2sHI", b"MM", 42, 8) + first + second


def _ifd(at: int, entries: tuple[tuple[int, int, bytes], ...]) -> bytes:
    """The image file directory that starts `at` bytes into the block; entries (tag, type, value) sorted by tag."""
    values_at = at + 2 + 12 * len(entries) + 4
    table, values = struct.pack(">H", len(entries)), b""
    for tag, kind, value in entries:
        count = 1 if kind == _TIFF_LONG else len(value)
        field = value if len(value) == 4 else struct.pack(">I", values_at + len(values))
        table += struct.pack(">HHI", tag, kind, count) + field
        values += b"" if len(value) == 4 else _even(value)
    return table + struct.pack(">I", 0) + values


def _even(value: bytes) -> bytes:
    """Padded, as each value of a TIFF block starts at an even place."""
    return value + b"\0" * (len(value) % 2)


def _cut(metadata: PictureMetadata, limit_chars: int) -> PictureMetadata:
    def cut(text: str) -> str:
        return text if len(text) <= limit_chars else text[:limit_chars] + CUT_MARK

    request = metadata.request
    shorter = replace(request, prompt=cut(request.prompt), negative_prompt=cut(request.negative_prompt))
    return replace(metadata, request=shorter)


def _embedded_json(file: IO[bytes]) -> str | bytes | None:
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.format == "PNG":
                return picture.info.get(JSON_KEY)
            return picture.getexif().get_ifd(_TAG_EXIF_IFD).get(_TAG_MAKER_NOTE)
    # What Pillow raises for damaged and hostile files, its warning of huge ones included where warnings are errors.
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error, Image.DecompressionBombError, Warning):
        return None


def _read_sidecar(path: Path, embedded: PictureMetadata) -> PictureMetadata | None:
    """The full settings, if they are truly those of the same picture."""
    if path.stat().st_size > 4 * MAX_JSON_CHARS:
        return None
    beside = _parse(path.read_bytes())
    return beside if beside is not None and beside.picture_id == embedded.picture_id else None


def _parse(text: str | bytes | None) -> PictureMetadata | None:
    if not isinstance(text, str | bytes) or len(text) > 4 * MAX_JSON_CHARS:
        return None
    try:
        return PictureMetadata.from_json(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (StorageError, UnicodeDecodeError):
        return None
