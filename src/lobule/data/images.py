"""The one decoder, the one preprocessing and the eight exact views of an image.

Training, evaluation, prediction, export, serving and slides all come through here, so that the
same file gives the same numbers everywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from lobule.data.stain import StainTarget, normalise_stain
from lobule.errors import DataError, ImageError, TooLargeError, UnknownFormatError, show

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""Pillow formats that are read; anything else is refused before a decoder sees it."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""File-name endings (lower case) that are taken for images."""

MAX_PIXELS = 64_000_000
"""Largest image decoded, in pixels. A photograph through a microscope has 0.3 to 25 million."""

N_VIEWS = 8
"""Rotations by 0, 90, 180 and 270 degrees, each plain and mirrored."""

ImageArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Header:
    """What an image file says of itself; the size is as displayed, after EXIF rotation."""

    width: int
    height: int
    mode: str
    format: str
    frames: int


def read_file(path: Path) -> bytes:
    """Return the bytes of `path`; raises ImageError with the system's reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"cannot read {show(path)}: {(error.strerror or str(error)).lower()}",
            fix="make the file readable (chmod +r), or remove it from the folder",
        ) from error


def read_header(data: bytes, name: str | Path) -> Header:
    """Read size and mode from the start of an encoded image, without decoding it."""
    with _opened(data, name) as image:
        width, height = image.size
        # Pillow has turned the size of a TIFF already, and decodes a PNG to look for its EXIF
        asks = image.format != "TIFF" and (image.format != "PNG" or _png_tells(data))
        if asks and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            width, height = height, width
        return Header(width, height, image.mode, image.format or "", getattr(image, "n_frames", 1))


def decode(source: Path | bytes, name: str | Path | None = None) -> ImageArray:
    """Decode an image file to RGB.

    source: a path, or the bytes of a file with `name` for messages.
    Returns (height, width, 3) uint8. EXIF rotation is applied; transparency is laid on white,
    which is how empty glass looks; 16-bit grey is scaled to 8 bits; CMYK and palettes are
    converted. Of a file with several pages the first is taken (`audit` reports such files).
    Raises ImageError if the file is not one of FORMATS, is truncated, or has over MAX_PIXELS.
    """
    if isinstance(source, Path):
        name = source if name is None else name
        source = read_file(source)
    name = "image" if name is None else name
    with _opened(source, name) as image:
        image.load()
        return np.array(_to_rgb(_upright(image), name))


_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, struct.error)
"""What Pillow raises, early or late, for a file that does not hold what it promises."""

_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""A PNG without any of these tells no rotation."""


def _png_tells(png: bytes) -> bool:
    """Whether a chunk might hold EXIF; the pixels, which take long to search, are left out."""
    at = 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind != b"IDAT" and any(mark in png[at : at + 8 + length] for mark in _PNG_EXIF):
            return True
        at += 12 + length
    return False


@contextmanager
def _opened(data: bytes, name: str | Path) -> Iterator[Image.Image]:
    """Yield the image, not yet decoded; what Pillow raises until the end is an ImageError."""
    if not data:
        raise ImageError(
            f"cannot read {show(name)}: the file is empty (0 bytes)", fix=_FIX_UNREADABLE
        )
    try:
        # Pillow may remark on odd metadata. It is not silenced here: warning filters belong to the
        # whole process, and images are decoded in several threads.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.width:,} x {image.height:,} pixels")
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnknownFormatError(
            f"cannot read {show(name)}: not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image "
            f"(it begins with {data[:8]!r})",
            fix=_FIX_UNREADABLE,
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        said = re.search(r"(\d+) pixels", str(error))
        size = f"{int(said[1]):,} pixels" if said else str(error)
        raise _too_large(name, size) from error
    except _DAMAGE as error:
        raise _damaged(name, data, error) from error


_FIX_UNREADABLE = (
    "replace or remove the file, or leave such files out (train: --allow unreadable, "
    "predict: --on-error skip); `lobule audit DIR` lists them all"
)


def _damaged(name: str | Path, data: bytes, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(
        f"cannot read {show(name)}: damaged or truncated image of {len(data):,} bytes ({reason})",
        fix=_FIX_UNREADABLE,
    )


def _too_large(name: str | Path, size: str) -> TooLargeError:
    return TooLargeError(
        f"cannot read {show(name)}: {size}, more than the limit of {MAX_PIXELS:,} pixels",
        fix="photographs are read whole; cut larger images into fields first",
    )


def _upright(image: Image.Image) -> Image.Image:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str | Path) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError(
                f"cannot read {show(name)}: grey values from {grey.min():,} to {grey.max():,} "
                "are not 16-bit",
                fix="save it as 8-bit RGB",
            )
        # 65535 / 255 = 257, so both ends of the range are kept
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            f"cannot read {show(name)}: floating-point pixels have no defined white",
            fix="save it as 8-bit RGB",
        )
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        glass = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(glass, with_alpha).convert("RGB")
    return image.convert("RGB")


def recompressed(image: ImageArray, quality: int) -> ImageArray:
    """Return an image (h, w, 3) uint8 as a JPEG of this quality, 1 to 95, would show it."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    return decode(encoded.getvalue(), "JPEG in memory")


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded image becomes the input of a network; stored in model.json.

    long_side_px: length of the longer side after resizing, in pixels.
    aspect: "keep" scales both sides alike, so that no pixel is cropped and nothing is distorted;
        "square" squashes to long_side_px x long_side_px, for networks that take one size only.
    interpolation: Pillow's antialiased "bicubic" or "bilinear".
    mean, std: per channel (R, G, B), of values scaled to [0, 1].
    stain: what stained images are made to look like after resizing; None leaves them as they are.
    jpeg_quality: of a JPEG that each image is made into first, so that all have lost as much in
        compression: the mean over its eight views, so that a turned image gives the turned result.
        None leaves them as they are.
    """

    long_side_px: int
    aspect: Literal["keep", "square"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stain: StainTarget | None = None
    jpeg_quality: int | None = None

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change with any setting."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return plain types; `stain` and `jpeg_quality` only where there is one."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return fields if self.stain is None else fields | {"stain": self.stain.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Preprocessing:
        """Rebuild from `to_json`; raises DataError on unknown, missing or odd fields."""
        try:
            given: dict[str, Any] = {
                key: tuple(float(v) for v in fields[key]) for key in ("mean", "std")
            }
            if fields.get("stain") is not None:
                given["stain"] = StainTarget.from_json(fields["stain"])
            made = cls(**{**fields, **given})
            made._check()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"preprocessing settings cannot be used: {error}") from error
        return made

    def _check(self) -> None:
        if not (isinstance(self.long_side_px, int) and 1 <= self.long_side_px <= MAX_PIXELS**0.5):
            raise ValueError(f"long_side_px is {self.long_side_px!r}")
        if self.aspect not in ("keep", "square"):
            raise ValueError(f"aspect is {self.aspect!r}, not 'keep' or 'square'")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(
                f"interpolation is {self.interpolation!r}, not 'bicubic' or 'bilinear'"
            )
        if self.jpeg_quality is not None and self.jpeg_quality not in range(1, 96):
            raise ValueError(f"jpeg_quality is {self.jpeg_quality!r}, not 1 to 95")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} are not three each, std above 0")

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) in pixels after resizing."""
        if self.aspect == "square":
            return self.long_side_px, self.long_side_px
        scale = self.long_side_px / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def resize(self, image: ImageArray) -> ImageArray:
        """Resize (h, w, 3) uint8 with antialiasing; recompress before, normalise the stain after.

        The last two only where that is asked. One of the right size is not resampled; one that does
        not tell its stain is left as it is.
        """
        if self.jpeg_quality is not None:
            image = _recompressed_all_ways(image, self.jpeg_quality)
        height, width = image.shape[:2]
        target = self.size(width, height)
        if target != (width, height):
            method = Image.Resampling[self.interpolation.upper()]
            image = np.asarray(Image.fromarray(image).resize(target, method))
        return image if self.stain is None else normalise_stain(image, self.stain)[0]

    def normalise(self, image: ImageArray) -> NDArray[np.float32]:
        """Turn (h, w, 3) uint8 of the right size into (3, h, w) float32, (x / 255 - mean) / std."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return np.ascontiguousarray((image.astype(np.float32) * scale - shift).transpose(2, 0, 1))

    def __call__(self, image: ImageArray) -> NDArray[np.float32]:
        """Turn any decoded image (h, w, 3) uint8 into the network's input (3, H, W) float32."""
        return self.normalise(self.resize(image))


def _recompressed_all_ways(image: ImageArray, quality: int) -> ImageArray:
    """Return the rounded mean of the eight views as JPEG shows them, each turned back.

    JPEG itself works in blocks that begin at the upper left corner, and has other rounding along
    than across: a turned image gives another one. The mean turns with the image, to the bit.
    """
    total = np.zeros(image.shape, np.uint16)
    for view in range(N_VIEWS):
        total += undo_view(recompressed(dihedral_view(image, view), quality), view)
    return ((total + N_VIEWS // 2) // N_VIEWS).astype(np.uint8)


def dihedral_view(image: NDArray[Any], view: int) -> NDArray[Any]:
    """Return view 0..7 of an (h, w, ...) array: `view % 4` quarter turns, from 4 on mirrored.

    View 0 is the image itself. The eight views are the symmetries of the square; tissue on a
    slide has no up and no left, so each is as good a picture of it as the original.
    """
    if not 0 <= view < N_VIEWS:
        raise ValueError(f"view must be 0 to {N_VIEWS - 1}, got {view}")
    turned = np.rot90(image, view % 4, axes=(0, 1))
    return turned[:, ::-1] if view >= 4 else turned


def undo_view(shown: NDArray[Any], view: int) -> NDArray[Any]:
    """Turn what was made of a `dihedral_view`, (h, w, ...), back to lie as the image does."""
    # a mirrored view undoes itself, a turned one its opposite
    return dihedral_view(shown, view if view >= 4 else -view % 4)


def shrink(image: ImageArray, longest_px: int) -> ImageArray:
    """Return an image (h, w, 3) uint8 whose longer side is at most `longest_px`, to look at."""
    small = Image.fromarray(image)
    small.thumbnail((longest_px, longest_px))
    return np.asarray(small)
