"""The rules of the one decoder, the one preprocessing and the eight views."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lobule.data.images import (
    FORMATS,
    MAX_PIXELS,
    N_VIEWS,
    Preprocessing,
    decode,
    dihedral_view,
    read_file,
    read_header,
)
from lobule.data.stain import StainTarget
from lobule.errors import DataError, ImageError

PREP = Preprocessing(64, "keep", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FIX = (
    "replace or remove the file, or leave such files out (train: --allow unreadable, "
    "predict: --on-error skip); `lobule audit DIR` lists them all"
)

sides = st.integers(1, 70)


def pixels(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, *, bit_depth=8, colour_type=2, rows=b""):
    """A PNG put together from its parts, so that the header may lie."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return signature + body


# ---- reading files: what is decoded


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_back_the_pixels(kind, options):
    image = pixels()
    data = encode(image, kind, **options)
    header = read_header(data, "x")
    assert np.array_equal(decode(data), image)
    assert (header.width, header.height, header.mode, header.format, header.frames) == (
        (30, 20, "RGB", kind, 1)
    )


def test_jpeg_gives_back_the_colours():
    image = np.full((20, 30, 3), (200, 120, 160), dtype=np.uint8)
    assert np.abs(decode(encode(image, "JPEG", quality=95)).astype(int) - image).max() <= 2


def test_a_path_decodes_as_its_bytes_do(tmp_path):
    data = encode(pixels(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(decode(tmp_path / "a.png"), decode(data))


def test_a_decoded_image_may_be_written_to():
    image = decode(encode(pixels(), "PNG"))
    image[0, 0] = 7
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_eight_bit_grey_is_three_equal_channels():
    grey = pixels()[:, :, 0]
    assert np.array_equal(decode(encode(grey, "PNG")), np.stack([grey] * 3, axis=-1))


def test_sixteen_bit_grey_keeps_both_ends_and_rounds_between():
    grey = np.array([[0, 128, 129, 257, 32767, 65407, 65535]], dtype=np.uint16)
    expected = [round(value / 257) for value in grey[0].tolist()]
    assert expected[0] == 0
    assert expected[-1] == 255
    for kind in ("PNG", "TIFF"):
        data = encode(grey, kind)
        assert read_header(data, "x").mode.startswith("I;16")
        assert decode(data)[0, :, 1].tolist() == expected


def test_sixteen_bit_colour_is_scaled_to_eight():
    values = (0xFF00, 0x8000, 0x0000)
    data = png(1, 1, bit_depth=16, rows=b"\x00" + struct.pack(">HHH", *values))
    assert decode(data)[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255), (255, 0, 255, 64)])
def test_cmyk_jpeg_is_converted(ink):
    data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    assert read_header(data, "x").mode == "CMYK"
    cyan, magenta, yellow, black = (value / 255 for value in ink)
    expected = [255 * (1 - colour) * (1 - black) for colour in (cyan, magenta, yellow)]
    assert np.abs(decode(data)[8, 8] - expected).max() <= 3


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [(200, 0, 100, 255), (200, 0, 100, 0), (200, 0, 100, 128)]
    decoded = decode(encode(rgba, "PNG"))
    assert decoded[0, 0].tolist() == [200, 0, 100]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    half = 128 / 255
    expected = np.array([200, 0, 100]) * half + 255 * (1 - half)
    assert np.abs(decoded[0, 2] - expected).max() <= 1


def test_grey_with_alpha_is_laid_on_white():
    data = encode(Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA"), "PNG")
    assert decode(data)[0].tolist() == [[10, 10, 10], [255, 255, 255]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_palette_with_a_transparent_entry_is_laid_on_white(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    decoded = decode(encode(image, "PNG", transparency=transparency))
    assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_a_transparent_colour_is_laid_on_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert decode(encode(image, "PNG", transparency=(1, 2, 3)))[0].tolist() == (
        [[255, 255, 255], [4, 5, 6]]
    )


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert decode(encode(image, "PNG"))[0].tolist() == [[255, 255, 255], [0, 0, 0]]


# what a viewer must do with each value of the EXIF field Orientation (EXIF 2.32, section 4.6.4)
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied_to_pixels_and_to_the_stated_size(kind, orientation):
    # four coloured quarters, so that the lossy formats can be compared too
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:16, :24], image[:16, 24:] = (250, 0, 0), (0, 250, 0)
    image[16:, :24], image[16:, 24:] = (0, 0, 250), (250, 250, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = encode(image, kind, exif=exif, **options)
    expected = TURNED[orientation](image)
    decoded = decode(data)
    header = read_header(data, "x")
    assert decoded.shape == expected.shape
    assert (header.height, header.width) == expected.shape[:2]
    y, x = (8, -8), (12, -12)
    if expected.shape[0] > expected.shape[1]:
        y, x = x, y
    corners = np.ix_(y, x)
    assert np.abs(decoded[corners].astype(int) - expected[corners]).max() <= 12


def test_exif_after_the_pixels_of_a_png_counts_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(pixels(), "PNG", exif=exif)
    at = data.index(b"eXIf") - 4
    size = struct.unpack(">I", data[at : at + 4])[0] + 12
    chunk, rest = data[at : at + size], data[:at] + data[at + size :]
    end = rest.index(b"IEND") - 4
    moved = rest[:end] + chunk + rest[end:]
    header = read_header(moved, "x")
    assert (header.width, header.height) == (20, 30)
    assert np.array_equal(decode(moved), np.rot90(pixels(), -1))


def test_of_several_pages_the_first_is_taken_and_all_are_counted():
    pages = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode(data), pixels(seed=0))
    assert read_header(data, "x").frames == 3


def test_a_colour_profile_does_not_stop_the_decoder():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode(encode(pixels(), "PNG", icc_profile=profile)), pixels())


# ---- reading files: what is refused, and how


def refusal(data, name="benign/a.png"):
    """Return the message, which decoding and reading the header must agree on if both refuse."""
    with pytest.raises(ImageError) as caught:
        decode(data, name)
    return str(caught.value)


def test_text_with_the_ending_of_an_image_is_refused():
    assert refusal(b"not an image at all") == (
        "cannot read benign/a.png: not a PNG, JPEG, TIFF, BMP or WEBP image "
        f"(it begins with b'not an i')\n  {FIX}"
    )


def test_an_empty_file_is_refused():
    assert refusal(b"") == f"cannot read benign/a.png: the file is empty (0 bytes)\n  {FIX}"


def test_a_truncated_jpeg_is_refused_with_its_size():
    data = encode(pixels(200, 300), "JPEG")[:3000]
    message = refusal(data, "benign/a.jpg")
    assert message.startswith(
        "cannot read benign/a.jpg: damaged or truncated image of 3,000 bytes "
        "(image file is truncated"
    )
    assert message.endswith(FIX)


def test_a_truncated_png_is_refused_by_the_decoder_and_still_tells_its_size():
    data = encode(pixels(200, 300), "PNG")[:3000]
    assert "damaged or truncated image of 3,000 bytes" in refusal(data)
    header = read_header(data, "x")
    assert (header.width, header.height) == (300, 200)


def refused_or_read(read, data):
    """Whether `read` gives an answer or an ImageError that names the file, and nothing else."""
    try:
        read(data, "x")
    except ImageError as error:
        return error.what.startswith("cannot read x: ")
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_an_image_or_an_image_error(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(pixels(), kind, **({} if kind == "BMP" else {"exif": exif}))
    for end in {*range(1, 64), *range(64, len(data), 17)}:
        for read in (decode, read_header):
            assert refused_or_read(read, data[:end])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_a_file_with_wrong_bytes_is_an_image_or_an_image_error(kind, draw):
    exif = Image.Exif()
    exif[0x0112] = 8
    data = bytearray(encode(pixels(), kind, **({} if kind == "BMP" else {"exif": exif})))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, min(len(data), 300) - 1))] = draw.draw(st.integers(0, 255))
    for read in (decode, read_header):
        assert refused_or_read(read, bytes(data))


def test_formats_outside_the_list_are_refused():
    assert "not a PNG, JPEG, TIFF, BMP or WEBP image" in refusal(encode(pixels(), "GIF"))
    assert "not a PNG, JPEG, TIFF, BMP or WEBP image" in refusal(encode(pixels(), "PPM"))


def test_floating_point_pixels_are_refused():
    data = encode(np.full((4, 4), 0.5, dtype=np.float32), "TIFF")
    assert refusal(data, "a.tif") == (
        "cannot read a.tif: floating-point pixels have no defined white\n  save it as 8-bit RGB"
    )


def test_grey_beyond_sixteen_bits_is_refused():
    data = encode(np.array([[0, 70_000]], dtype=np.int32), "TIFF")
    assert refusal(data, "a.tif") == (
        "cannot read a.tif: grey values from 0 to 70,000 are not 16-bit\n  save it as 8-bit RGB"
    )


def test_an_image_that_claims_too_many_pixels_is_refused_at_once():
    for read in (decode, read_header):
        began = time.perf_counter()
        with pytest.raises(ImageError) as caught:
            read(png(65_000, 65_000), "bomb.png")
        assert time.perf_counter() - began < 1
        assert str(caught.value) == (
            "cannot read bomb.png: 4,225,000,000 pixels, more than the limit of 64,000,000 pixels\n"
            "  photographs are read whole; cut larger images into fields first"
        )


def test_the_limit_of_pixels_is_exact():
    side = int(MAX_PIXELS**0.5)
    assert read_header(png(side, side), "x").width == side
    with pytest.raises(ImageError) as caught:
        read_header(png(side + 1, side), "x")
    assert caught.value.what == (
        "cannot read x: 8,001 x 8,000 pixels, more than the limit of 64,000,000 pixels"
    )


def test_a_name_with_a_newline_stays_on_one_line():
    assert refusal(b"", "a\nb.png").splitlines()[0] == (
        r"cannot read a\nb.png: the file is empty (0 bytes)"
    )


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_file(tmp_path / "a.png")
    assert caught.value.what == f"cannot read {tmp_path}/a.png: no such file or directory"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ImageError, match=re.escape(f"cannot read {tmp_path}: is a directory")):
        decode(tmp_path)


# ---- preprocessing


@settings(deadline=None)
@given(sides, sides, st.integers(1, 90))
def test_kept_aspect_has_the_long_side_asked_for(width, height, long_side):
    new_width, new_height = replace(PREP, long_side_px=long_side).size(width, height)
    assert max(new_width, new_height) == long_side
    scale = long_side / max(width, height)
    assert abs(new_width - width * scale) <= 1
    assert abs(new_height - height * scale) <= 1
    assert min(new_width, new_height) >= 1


def test_a_field_of_breakhis_keeps_its_shape():
    assert replace(PREP, long_side_px=350).size(700, 460) == (350, 230)
    assert replace(PREP, long_side_px=700).size(700, 460) == (700, 460)
    assert replace(PREP, long_side_px=224, aspect="square").size(700, 460) == (224, 224)


@settings(deadline=None)
@given(sides, sides, st.sampled_from(["keep", "square"]))
def test_the_result_has_the_size_that_was_announced(width, height, aspect):
    prep = replace(PREP, aspect=aspect, long_side_px=32)
    new_width, new_height = prep.size(width, height)
    image = pixels(height, width)
    assert prep.resize(image).shape == (new_height, new_width, 3)
    made = prep(image)
    assert made.shape == (3, new_height, new_width)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous


def test_an_image_of_the_right_size_is_returned_as_it_is():
    image = pixels(40, 64)
    assert PREP.resize(image) is image


@pytest.mark.parametrize("aspect", ["keep", "square"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(92, 140), (140, 92), (80, 80), (20, 30)])
def test_no_corner_is_cropped(aspect, interpolation, shape):
    prep = replace(PREP, aspect=aspect, interpolation=interpolation)
    marker = max(3, max(shape) // 24)
    for y in (slice(0, marker), slice(-marker, None)):
        for x in (slice(0, marker), slice(-marker, None)):
            image = np.full((*shape, 3), 255, dtype=np.uint8)
            image[y, x] = 0
            small = prep.resize(image)
            corner = small[0 if y.start == 0 else -1, 0 if x.start == 0 else -1]
            assert corner.max() < 40
            assert small[small.shape[0] // 2, small.shape[1] // 2].min() == 255


def test_resizing_averages_rather_than_picks():
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    inner = replace(PREP, interpolation="bilinear", long_side_px=32).resize(stripes)[:, 2:-2]
    assert np.abs(inner.astype(int) - 100).max() <= 2


def test_normalising_is_the_formula():
    image = pixels(40, 64)
    made = PREP.normalise(image)
    for c in range(3):
        expected = (image[:, :, c].astype(np.float64) / 255 - PREP.mean[c]) / PREP.std[c]
        assert np.abs(made[c] - expected).max() < 2e-6


def test_the_call_is_resize_then_normalise():
    image = pixels(50, 80)
    assert np.array_equal(PREP(image), PREP.normalise(PREP.resize(image)))


CHANGES = {
    "long_side_px": 65,
    "aspect": "square",
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.407),
    "std": (0.229, 0.224, 0.226),
    "stain": StainTarget("reinhard", (0.1, 0.2, 0.3, 1.0, 1.0, 1.0)),
    "jpeg_quality": 70,
}


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encode(image, "JPEG", quality=quality))))


def test_images_are_recompressed_before_they_are_resized():
    image = pixels(46, 70)
    # the same eight by Pillow, in another order: turned, mirrored, and back
    back = []
    for turns in range(4):
        for mirror in (False, True):
            view = np.rot90(image, turns)
            shown = as_jpeg(np.ascontiguousarray(np.flipud(view) if mirror else view), 70)
            back.append(np.rot90(np.flipud(shown) if mirror else shown, -turns))
    mean = np.floor(np.mean(back, axis=0) + 0.5).astype(np.uint8)
    assert np.array_equal(replace(PREP, jpeg_quality=70).resize(image), PREP.resize(mean))
    # it is near to what JPEG alone gives, and nearer than the image is
    alone = as_jpeg(image, 70).astype(float)
    assert np.abs(mean - alone).mean() < 0.8 * np.abs(image - alone).mean()


@given(sides, sides, st.integers(1, 95), st.integers(0, N_VIEWS - 1))
@settings(deadline=None, max_examples=30)
def test_a_turned_image_is_recompressed_to_the_turned_image(width, height, quality, view):
    # its own size, so that nothing is resampled
    prep = replace(PREP, long_side_px=max(width, height), jpeg_quality=quality)
    image = pixels(height, width)
    expected = dihedral_view(prep.resize(image), view)
    assert np.array_equal(prep.resize(dihedral_view(image, view)), expected)


def test_the_id_changes_with_every_setting():
    assert set(CHANGES) == {f.name for f in fields(PREP)}
    ids = [replace(PREP, **{key: value}).id for key, value in CHANGES.items()]
    assert len({PREP.id, *ids}) == len(CHANGES) + 1
    assert all(re.fullmatch(r"[0-9a-f]{12}", one) for one in ids)


def test_the_id_is_the_same_after_a_round_trip():
    again = Preprocessing.from_json(PREP.to_json())
    assert again == PREP
    assert again.id == PREP.id
    as_lists = {**PREP.to_json(), "mean": list(PREP.mean), "std": list(PREP.std)}
    assert Preprocessing.from_json(as_lists) == PREP


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"crop": 0.9}, "'crop'"),
        ({"mean": None}, "not iterable"),
        ({"mean": ["red", 0, 0]}, "could not convert string to float: 'red'"),
        ({"mean": [0.5, 0.5]}, "are not three each, std above 0"),
        ({"std": [1, 1, 0]}, "are not three each, std above 0"),
        ({"long_side_px": "224"}, "long_side_px is '224'"),
        ({"long_side_px": 0}, "long_side_px is 0"),
        ({"aspect": "crop"}, "aspect is 'crop', not 'keep' or 'square'"),
        ({"jpeg_quality": 96}, "jpeg_quality is 96, not 1 to 95"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest', not 'bicubic' or 'bilinear'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(wrong, says):
    with pytest.raises(DataError) as caught:
        Preprocessing.from_json({**PREP.to_json(), **wrong})
    assert str(caught.value).startswith("preprocessing settings cannot be used: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", sorted(set(CHANGES) - {"stain", "jpeg_quality"}))
def test_a_missing_setting_is_named(missing):
    stored = PREP.to_json()
    del stored[missing]
    with pytest.raises(DataError, match=missing):
        Preprocessing.from_json(stored)


# ---- the eight views


def views(image):
    return [dihedral_view(image, view).tolist() for view in range(N_VIEWS)]


def test_the_first_view_is_the_image():
    image = pixels()
    assert np.array_equal(dihedral_view(image, 0), image)


def test_the_eight_views_differ():
    all_views = views(np.arange(9).reshape(3, 3))
    assert all(a != b for i, a in enumerate(all_views) for b in all_views[:i])


def test_views_are_quarter_turns_and_then_mirrored():
    image = np.array([[1, 2], [3, 4]])
    assert views(image) == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[2, 1], [4, 3]],
        [[4, 2], [3, 1]],
        [[3, 4], [1, 2]],
        [[1, 3], [2, 4]],
    ]


def test_a_view_of_a_view_is_a_view_and_every_view_can_be_undone():
    image = np.arange(12).reshape(3, 4)
    plain = views(image)
    for first in range(N_VIEWS):
        again = views(dihedral_view(image, first))
        assert sorted(map(str, again)) == sorted(map(str, plain))


def test_a_view_moves_pixels_and_keeps_channels():
    image = pixels()
    for view in range(N_VIEWS):
        turned = dihedral_view(image, view)
        assert turned.shape == ((20, 30, 3) if view % 2 == 0 else (30, 20, 3))
        assert sorted(turned.reshape(-1, 3).tolist()) == sorted(image.reshape(-1, 3).tolist())


@pytest.mark.parametrize("view", [-1, 8])
def test_a_ninth_view_is_refused(view):
    with pytest.raises(ValueError, match=f"view must be 0 to 7, got {view}"):
        dihedral_view(pixels(), view)
