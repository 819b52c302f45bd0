import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from zimage_ui import __version__
from zimage_ui.errors import StorageError
from zimage_ui.request import GeneratedImage, ImageFormat
from zimage_ui.storage import encoders
from zimage_ui.storage.encoders import encode_picture, looks_whole, read_metadata

FORMATS = list(ImageFormat)


def _contents(height, width):
    y, x = np.mgrid[0:height, 0:width]
    gradient = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    return {
        "black": np.zeros((height, width, 3), np.uint8),
        "white": np.full((height, width, 3), 255, np.uint8),
        "gradient": gradient,
        "noise": np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8),
        "stripes": np.where((y % 2)[..., None], 255, 0).astype(np.uint8) * np.ones(3, np.uint8),
    }


def _picture(pixels, seed=7):
    height, width, _ = pixels.shape
    return GeneratedImage(index=0, seed=seed, width=width, height=height, pixels=pixels.tobytes())


@pytest.mark.parametrize("size", [(64, 64), (96, 1024), (2048, 64), (1, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("content", ["black", "white", "gradient", "noise", "stripes"])
def test_png_keeps_every_pixel(metadata_of, content, size):
    pixels = _contents(*size)[content]
    data = encode_picture(_picture(pixels), metadata_of(), ImageFormat.PNG).data
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(opened), pixels)


def test_png_is_sound_chunk_by_chunk(metadata_of, image_of):
    data = encode_picture(image_of(), metadata_of(), ImageFormat.PNG).data
    at, kinds = 8, []
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        assert struct.unpack(">I", checksum)[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        at += 12 + length
    assert kinds == [b"IHDR", b"iTXt", b"iTXt", b"IDAT", b"IEND"]


def test_png_text_is_read_as_a1111_tools_do(metadata_of, image_of):
    metadata = metadata_of("一只猫, café", request={"negative_prompt": "雾"})
    with Image.open(io.BytesIO(encode_picture(image_of(), metadata, ImageFormat.PNG).data)) as opened:
        assert opened.info["parameters"] == metadata.to_parameters()
        assert opened.text["parameters"] == metadata.to_parameters()
        assert json.loads(opened.text["zimage"])["prompt"] == "一只猫, café"


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_exif_is_read_as_a1111_tools_do(metadata_of, image_of, image_format):
    metadata = metadata_of("一只猫 😀")
    with Image.open(io.BytesIO(encode_picture(image_of(), metadata, image_format).data)) as opened:
        raw, exif = opened.info["exif"], opened.getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == metadata.to_parameters()
    assert exif[0x0131].rstrip("\0") == f"zimage-ui {__version__}"
    # piexif, which A1111 reads with, takes UserComment of type UNDEFINED (7) only.
    assert struct.pack(">HHI", 0x9286, 7, len(comment)) in raw


@pytest.mark.parametrize("image_format", FORMATS)
def test_metadata_comes_back(metadata_of, image_of, image_format, tmp_path):
    metadata = metadata_of("a\x00b \u202e 中文 😀 <script>", request={"image_format": image_format})
    encoded = encode_picture(image_of(), metadata, image_format)
    assert encoded.image_format is image_format
    assert encoded.sidecar is None
    assert read_metadata(encoded.data) == metadata
    path = tmp_path / f"picture.{image_format.suffix}"
    path.write_bytes(encoded.data)
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("image_format", FORMATS)
def test_any_buffer_of_pixels_will_do(metadata_of, image_of, image_format):
    image, metadata = image_of(), metadata_of()
    array = np.frombuffer(image.pixels, np.uint8)
    view = GeneratedImage(index=0, seed=7, width=64, height=64, pixels=memoryview(array))
    assert encode_picture(view, metadata, image_format) == encode_picture(image, metadata, image_format)


@pytest.mark.parametrize(("image_format", "least_db"), [(ImageFormat.JPEG, 38), (ImageFormat.WEBP, 33)])
def test_lossy_formats_stay_close(metadata_of, image_format, least_db):
    pixels = _contents(256, 256)["gradient"]
    with Image.open(io.BytesIO(encode_picture(_picture(pixels), metadata_of(), image_format).data)) as opened:
        difference = np.asarray(opened.convert("RGB"), np.float64) - pixels
    assert 10 * np.log10(255**2 / np.mean(difference**2)) >= least_db


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    "prompt", ["😀" * 8000, "中" * 8000, "\x01" * 7999 + "x"], ids=["emoji", "chinese", "controls"]
)
def test_the_longest_prompts_never_lose_the_picture(metadata_of, image_of, image_format, prompt, tmp_path):
    request = {"negative_prompt": prompt, "guidance_scale": 4.0, "image_format": image_format}
    metadata = metadata_of(prompt, request=request)
    encoded = encode_picture(image_of(), metadata, image_format)
    with Image.open(io.BytesIO(encoded.data)) as opened:
        opened.load()
    assert (encoded.sidecar is not None) == (image_format is ImageFormat.JPEG)
    path = tmp_path / f"picture.{image_format.suffix}"
    path.write_bytes(encoded.data)
    if encoded.sidecar is not None:
        inside = read_metadata(path)
        assert inside.request.prompt.endswith(encoders.CUT_MARK)
        assert prompt.startswith(inside.request.prompt.removesuffix(encoders.CUT_MARK))
        assert (inside.request.seed, inside.timings_ms) == (metadata.request.seed, metadata.timings_ms)
        path.with_suffix(".json").write_bytes(encoded.sidecar)
    assert read_metadata(path) == metadata


def test_a_sidecar_of_another_picture_or_of_monstrous_size_does_not_count(metadata_of, image_of, tmp_path):
    metadata = metadata_of("😀" * 8000, request={"negative_prompt": "😀" * 8000, "image_format": "jpeg"})
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_picture(image_of(), metadata, ImageFormat.JPEG).data)
    for forged in (metadata_of("another").to_json().encode(), b"[" * 10_000_000, b"\xff\xfe", b""):
        path.with_suffix(".json").write_bytes(forged)
        assert read_metadata(path).picture_id == metadata.picture_id
        assert read_metadata(path).request.prompt.endswith(encoders.CUT_MARK)


def test_pixels_that_do_not_fill_the_picture_are_an_error(metadata_of):
    image = GeneratedImage(index=0, seed=7, width=64, height=64, pixels=bytes(100))
    with pytest.raises(StorageError, match=r"100 bytes of pixels; 64x64 takes 12,288"):
        encode_picture(image, metadata_of(), ImageFormat.PNG)


def test_what_an_encoder_refuses_is_our_error(metadata_of):
    image = GeneratedImage(index=0, seed=7, width=70_000, height=1, pixels=bytes(210_000))
    with pytest.raises(StorageError, match="could not be encoded as jpeg"):
        encode_picture(image, metadata_of(), ImageFormat.JPEG)


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _foreign_png(*texts, side=1):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    chunks = [_chunk(b"iTXt", key + b"\0\0\0\0\0" + text) for key, text in texts]
    body = _chunk(b"IDAT", zlib.compress(b"\0" * 4)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture at all",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
        _foreign_png(),
        _foreign_png((b"parameters", b"<script>alert(1)</script>")),
        _foreign_png((b"parameters", b"x" * 5_000_000)),
        _foreign_png((b"zimage", b"<script>alert(1)</script>")),
        _foreign_png((b"zimage", b"x" * 5_000_000)),
        _foreign_png((b"zimage", b"[" * 200_000)),
        _foreign_png((b"zimage", b"\xff\xfe\x00")),
        _foreign_png((b"zimage", b"{}"), side=60_000),
        b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00MM\x00*\xff\xff\xff\xff",
        b"RIFF\xff\xff\xff\x7fWEBPVP8X",
    ],
    ids=lambda data: str(data[:4] + data[-12:]) + str(len(data)),
)
def test_files_of_others_hold_none_of_our_settings(data, tmp_path):
    path = tmp_path / "foreign.png"
    path.write_bytes(data)
    assert read_metadata(data) is None
    assert read_metadata(path) is None


@pytest.mark.parametrize("image_format", FORMATS)
def test_no_cut_and_no_flipped_bit_makes_reading_fail(metadata_of, image_of, image_format):
    data = encode_picture(image_of(), metadata_of(), image_format).data
    for end in range(0, 1200, 13):
        read_metadata(data[:end])
    for at in range(0, 1200, 17):
        read_metadata(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    assert read_metadata(data) is not None


def test_a_monstrous_file_is_not_opened(metadata_of, image_of, tmp_path, monkeypatch):
    data = encode_picture(image_of(), metadata_of(), ImageFormat.PNG).data
    path = tmp_path / "large.png"
    path.write_bytes(data)
    monkeypatch.setattr(encoders, "MAX_PICTURE_BYTES", len(data) - 1)
    assert read_metadata(path) is None
    assert read_metadata(data) is None


@pytest.mark.parametrize("image_format", FORMATS)
def test_cut_files_do_not_look_whole(metadata_of, image_of, image_format, tmp_path):
    data = encode_picture(image_of(), metadata_of(), image_format).data
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert looks_whole(path)
    for end in (0, 1, 7, 30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        assert not looks_whole(path)
