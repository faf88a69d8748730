"""The pixels of an image file: three bytes each, upright and opaque; at the image's own size, scaled, or in a square.

What is done with each kind of file:

- rotation: the orientation in the EXIF data is applied.
- transparency (RGBA, LA, palettes and colours marked as transparent): the image is laid on white.
- palettes, CMYK, YCbCr and 1-bit images become RGB. Colour profiles are not applied.
- animations: the first frame.
- greyscale with more than 8 bits is scaled by the range of its type: 16 bits from 0..65535, 12 bits (in TIFF) from
  0..4095. 12-bit values in a 16-bit file become nearly black, because the file does not tell that it has only 12 bits;
  a table of such images says so on stderr.
- 32-bit integers (TIFF; also PGM, and 16-bit PNG in older versions of Pillow) are scaled from 0..65535; images with
  other values are refused.
- floats are scaled from 0..1 if all values are in that range, otherwise from 0..255; images with other values are
  refused.
"""

import contextlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

LONGEST = 4  # a stored image is at most so many times as long as its shorter side; of longer images the middle is kept
DIM = 16  # what is above 4095 of 65535 becomes at least this
ORIENTATION = 0x0112  # numbers of EXIF and TIFF tags
BITS_PER_SAMPLE = 258
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
# Pillow's name of a format, the first bytes of its files, and the bytes from the 8th
SIGNATURES = (("JPEG", b"\xff\xd8\xff", b""), ("PNG", b"\x89PNG\r\n\x1a\n", b""), ("WEBP", b"RIFF", b"WEBP"))
LFS_POINTER = b"version https://git-lfs"


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright image, read only from the header. Raises ValueError for a git-lfs pointer."""
    _refuse_pointers(data)
    with opened(data) as image:
        # Pillow turns TIFF files itself; to look for EXIF data it decodes a PNG file, which is slow
        silent = image.format == "TIFF" or (image.format == "PNG" and b"eXIf" not in data and "exif" not in image.info)
        if not silent and image.getexif().get(ORIENTATION) in SIDEWAYS:
            return image.width, image.height
        return image.height, image.width


def opened(data: bytes) -> Image.Image:
    """The image of a file, not decoded yet; as Pillow opens it, but without a try of every format for each file."""
    first = next(
        (name for name, start, more in SIGNATURES if data.startswith(start) and data.startswith(more, 8)), None
    )
    if first is not None:
        with contextlib.suppress(UnidentifiedImageError):  # Pillow's own error comes from the attempt with all formats
            return Image.open(io.BytesIO(data), formats=(first,))
    return Image.open(io.BytesIO(data))


def decoded(data: bytes, height: int, width: int, bicubic: bool = False) -> NDArray[np.uint8]:
    """Encoded bytes -> (3, height, width): unchanged, or scaled to cover that size and cut to its centre.

    Raises ValueError for values outside of the ranges above, and many kinds of errors for broken files.
    """
    rgb = upright(data)
    if rgb.size != (width, height):
        rgb = covering(rgb, height, width, bicubic)
    return np.asarray(rgb).transpose(2, 0, 1)


def whole_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of `whole_image` for an image of this height and width."""
    shorter, longer = sorted((height, width))
    margin = min((longer - shorter) * side // (2 * shorter), (LONGEST - 1) * side // 2)
    return (side, side + 2 * margin) if width > height else (side + 2 * margin, side)


def whole_image(data: bytes, side: int) -> NDArray[np.uint8]:
    """Encoded bytes -> (3, h, w): the whole image, scaled so that its shorter side has `side` pixels.

    The square in its centre has the bits of `decoded(data, side, side)`, which evaluation sees. What is on both sides
    of the square is scaled by the same factor and put next to it; less than a stored pixel is left out at each end. Of
    an image longer than LONGEST times its shorter side, only the middle is kept. Raises as `decoded`.
    """
    rgb = upright(data)
    middle = np.asarray(covering(rgb, side, side))
    margin = (max(whole_size(rgb.height, rgb.width, side)) - side) // 2
    if margin == 0:
        return middle.transpose(2, 0, 1)
    wide, shorter, longer = rgb.width > rgb.height, min(rgb.size), max(rgb.size)
    first, last = (longer - shorter) / 2, (longer + shorter) / 2  # ends of the square, in pixels of the file
    beyond = margin * shorter / side

    def strip(start: float, stop: float) -> NDArray[np.uint8]:
        size, box = ((margin, side), (start, 0, stop, shorter)) if wide else ((side, margin), (0, start, shorter, stop))
        return np.asarray(rgb.resize(size, _filter(rgb, side, side), box))

    parts = [strip(max(0, first - beyond), first), middle, strip(last, min(longer, last + beyond))]
    return np.concatenate(parts, axis=1 if wide else 0).transpose(2, 0, 1)


def centre_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, h, w) from `whole_image` -> (3, side, side), what `decoded` makes of the same file."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def covering(rgb: Image.Image, height: int, width: int, bicubic: bool = False) -> Image.Image:
    """The image scaled to cover height x width, and cut to its centre; what is cut is what a centre crop loses.

    A larger image is reduced with a bicubic filter. A smaller one is enlarged with a bilinear filter, as the evaluation
    transform does: so it sees the same image whether the stored image was enlarged or not. With `bicubic` the bicubic
    filter is used for both.
    """
    return ImageOps.fit(rgb, (width, height), _filter(rgb, height, width, bicubic))


def _filter(rgb: Image.Image, height: int, width: int, bicubic: bool = False) -> Image.Resampling:
    enlarged = height > rgb.height or width > rgb.width
    return Image.Resampling.BILINEAR if enlarged and not bicubic else Image.Resampling.BICUBIC


def upright(data: bytes) -> Image.Image:
    """Encoded bytes -> the image at its own size, as RGB. Raises as `decoded`."""
    _refuse_pointers(data)
    with opened(data) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # in place: a copy would not have the tags of a TIFF file
        return _rgb(image)


def is_dim(data: bytes, pixels: NDArray[np.uint8]) -> bool:
    """Whether an image with these pixels is 16-bit greyscale and nearly black, e.g. 12-bit values in a 16-bit file."""
    if (pixels >= DIM).any():
        return False
    with opened(data) as image:
        return image.mode == "I" or image.mode.startswith("I;16")


def _refuse_pointers(data: bytes) -> None:
    if data.startswith(LFS_POINTER):
        raise ValueError("it is a git-lfs pointer, not the image: `git lfs pull` gets the images")


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, on white if it has transparency."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        drawing = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), drawing).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits as RGB."""
    values = np.asarray(image).astype(np.float64)
    grey = values * (255 / _largest(image, values))
    if "transparency" in image.info:  # the one value that is transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _largest(image: Image.Image, values: NDArray[np.float64]) -> int:
    """The value that is white. Raises ValueError if there are values outside of the range."""
    if image.mode == "F":
        largest = 1 if (values <= 1).all() else 255
        allowed = "floats are 0 to 1 or 0 to 255"
    else:
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)
        largest = 4095 if bits == (12,) else 65535
        allowed = f"integers are 0 to {largest}"
    if not ((values >= 0) & (values <= largest)).all():  # also if some are NaN
        raise ValueError(f"its values run from {values.min():g} to {values.max():g}; {allowed}")
    return largest
