"""What image files become: exact pixels of every mode, and images that do not depend on each other."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from clsim.data import pixels
from clsim.data import table as table_module
from clsim.data.pixels import decoded, size_of, upright
from clsim.data.readers import Source
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec, evaluation
from clsim.errors import RequestError

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (4, 1))  # (4, 32): 0, 8, ..., 248
COLOURS = np.stack([RAMP, RAMP[:, ::-1], 255 - RAMP], axis=-1)


def file_of(image, form="PNG", **options):
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def read(data):
    """(H, W, 3) pixels of a file, as a table of this image alone has them."""
    return decoded(data, *size_of(data)).transpose(1, 2, 0)


def grey(values):
    return np.stack([values] * 3, axis=-1)


def tiff(values, bits, packed):
    """A greyscale TIFF file of any number of bits, which Pillow cannot write."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory


# modes


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_divided_by_257(form):
    assert (read(file_of(RAMP.astype(np.uint16) * 257, form)) == grey(RAMP)).all()
    values = np.array([[0, 128, 129, 65535, 32896]], dtype=np.uint16)
    assert read(file_of(values, form))[0, :, 0].tolist() == [0, 0, 1, 255, 128]


def test_12_bit_greyscale_is_scaled_by_its_range():
    values = np.array([[0, 4095, 2056, 16]])
    packed = bytes([0, 0x0F, 0xFF, 0x80, 0x80, 0x10])
    data = tiff(values, 12, packed)
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == values.tolist()
    assert read(data)[0, :, 0].tolist() == [0, 255, 128, 1]


def test_12_bit_values_in_a_16_bit_file_are_16_bit_values():
    assert (read(file_of(RAMP.astype(np.uint16) * 16)) == grey(np.rint(RAMP.astype(float) * 16 / 257))).all()


def test_16_bit_images_that_are_nearly_black_are_named(tmp_path, capsys):
    dim, bright = (file_of(RAMP.astype(np.uint16) * factor) for factor in (16, 257))
    ImageTable.decode(source_of([bright, file_of(RAMP // 32), bright], [0, 0, 0], "bright"), 32, tmp_path)
    assert capsys.readouterr().err == ""
    for _ in range(2):  # the second time from the cache
        ImageTable.decode(source_of([bright, dim, dim], [0, 0, 0], "dim"), 32, tmp_path)
        said = capsys.readouterr().err
        assert said.startswith(
            "clsim: 2 of 3 images are 16-bit greyscale and nearly black, e.g. 1.png; if their values"
        )


def test_32_bit_integers_hold_16_bit_values():
    assert (read(file_of(RAMP.astype(np.int32) * 257, "TIFF")) == grey(RAMP)).all()


def test_floats_are_from_0_to_1_or_from_0_to_255():
    assert (read(file_of((RAMP / 255).astype(np.float32), "TIFF")) == grey(RAMP)).all()
    assert (read(file_of(RAMP.astype(np.float32), "TIFF")) == grey(RAMP)).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[-0.5, 1.0]], dtype=np.float32), r"run from -0\.5 to 1; floats are 0 to 1 or 0 to 255"),
        (np.array([[0.0, 300.0]], dtype=np.float32), "run from 0 to 300"),
        (np.array([[0.0, np.nan]], dtype=np.float32), "run from nan to nan"),
        (np.array([[0, 65536]], dtype=np.int32), "run from 0 to 65536; integers are 0 to 65535"),
        (np.array([[-1, 7]], dtype=np.int32), "run from -1 to 7"),
    ],
)
def test_values_outside_of_the_range_are_refused_by_name(tmp_path, values, words):
    with pytest.raises(RequestError, match=rf"cannot decode image 0\.png .*{words}"):
        ImageTable.decode(source_of([file_of(values, "TIFF")], [0]), 32, tmp_path)


def test_transparency_lies_on_white():
    alpha = 255 - RAMP
    black = np.dstack([np.zeros((4, 32, 3), np.uint8), alpha])
    assert (read(file_of(black)) == grey(RAMP)).all()
    assert (read(file_of(Image.fromarray(black).convert("LA"))) == grey(RAMP)).all()
    opaque = np.dstack([COLOURS, np.full((4, 32), 255, np.uint8)])
    assert (read(file_of(opaque)) == COLOURS).all()


def test_a_transparent_palette_colour_is_white():
    picture = Image.fromarray(np.array([[0, 1, 2, 1]], dtype=np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 0, 0, 0, 200, 100, 0])
    expected = [[10, 20, 30], [255, 255, 255], [200, 100, 0], [255, 255, 255]]
    assert read(file_of(picture, transparency=1))[0].tolist() == expected
    assert read(file_of(picture, "GIF", transparency=1))[0].tolist() == expected
    half = file_of(picture, transparency=bytes([255, 0x33, 255]))  # 0x33 / 255 = 1/5 of black on white
    assert read(half)[0].tolist() == [[10, 20, 30], [204] * 3, [200, 100, 0], [204] * 3]


def test_one_colour_that_is_marked_as_transparent_is_white():
    assert (read(file_of(RAMP, transparency=8)) == grey(np.where(RAMP == 8, 255, RAMP))).all()
    first = tuple(COLOURS[0, 0].tolist())
    assert read(file_of(COLOURS, transparency=first))[0, :2].tolist() == [[255] * 3, COLOURS[0, 1].tolist()]
    deep = RAMP.astype(np.uint16) * 257
    assert (read(file_of(deep, transparency=8 * 257)) == grey(np.where(RAMP == 8, 255, RAMP))).all()


def test_palettes_1_bit_and_plain_images_keep_their_colours():
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 0, 0, 0, 200, 100, 0])
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        assert read(file_of(picture, form))[0].tolist() == [[10, 20, 30], [0, 0, 0], [200, 100, 0]]
    bits = Image.fromarray(RAMP).convert("1", dither=Image.Dither.NONE)
    for form in ("PNG", "TIFF", "PPM"):
        assert (read(file_of(bits, form)) == grey(np.where(RAMP < 128, 0, 255))).all()
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert (read(file_of(COLOURS, form)) == COLOURS).all()
    assert (read(file_of(COLOURS, "WEBP", lossless=True)) == COLOURS).all()
    assert (read(file_of(RAMP)) == grey(RAMP)).all()


def test_cmyk_becomes_rgb():
    inks = np.zeros((1, 3, 4), dtype=np.uint8)
    inks[0, 1] = 255, 0, 0, 0  # cyan
    inks[0, 2] = 0, 0, 0, 255
    assert read(file_of(Image.fromarray(inks, "CMYK"), "TIFF"))[0].tolist() == [[255] * 3, [0, 255, 255], [0] * 3]
    jpeg = read(file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(jpeg.astype(int) - [255, 0, 0]).max() < 4


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    exact = {"lossless": True} if form == "WEBP" else {}
    data = file_of(frames[0], form, save_all=True, append_images=frames[1:], **exact)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (read(data) == [255, 0, 0]).all()


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # clockwise
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_images_are_upright_as_their_exif_says(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"lossless": True} if form == "WEBP" else {}
    data = file_of(COLOURS, form, exif=exif, **exact)
    expected = TURNS[orientation](COLOURS)
    assert size_of(data) == expected.shape[:2]
    assert (read(data) == expected).all()


def test_turned_jpegs_have_the_pixels_of_the_jpeg_that_is_not_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = file_of(COLOURS, "JPEG"), file_of(COLOURS, "JPEG", exif=exif)
    assert size_of(turned) == (32, 4)
    assert (read(turned) == np.rot90(read(plain), -1)).all()


def test_a_git_lfs_pointer_is_named():
    with pytest.raises(ValueError, match="git-lfs pointer"):
        size_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        upright(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")


# an image's pixels depend on nothing but the image


def source_of(files, labels, fingerprint="print"):
    names = [f"{i}.png" for i in range(len(files))]
    classes = tuple(f"class {i}" for i in range(max(labels) + 1))
    return Source(files.__getitem__, names, np.array(labels), classes, fingerprint)


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stored(cache_dir, *pictures, side=64):
    """What evaluation sees of each picture, in their order: picture i is the one of class i."""
    files = [file_of(picture) for picture in pictures]
    key = "".join(f"{picture.shape}" for picture in pictures)
    rows = np.arange(len(files))
    return ImageTable.decode(source_of(files, rows.tolist(), key), side, cache_dir).pixels(rows)


def test_no_picture_changes_the_pixels_of_another(tmp_path):
    picture = noise(25, 25, 0)
    others = [noise(60, 25, 1), noise(64, 16, 2), noise(65, 16, 3), noise(25, 24, 4), noise(300, 10, 5)]
    first, *more = [stored(tmp_path, picture, other)[0] for other in others]
    assert first.shape == (3, 64, 64)
    assert all((each == first).all() for each in more)
    assert (stored(tmp_path, picture, *others)[0] == first).all()


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
def test_joined_sets_of_one_shape_may_be_brought_to_the_largest_size(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    small, large, strip = noise(16, 16, 0), noise(28, 28, 1), noise(16, 28, 2)
    source = source_of([file_of(small), file_of(large)], [0, 1])
    table = ImageTable.decode(source, 64, tmp_path, one_size=True)
    expected = Image.fromarray(small).resize((28, 28), Image.Resampling.BICUBIC)
    assert (table.pixels(np.arange(2)) == np.stack([expected, large]).transpose(0, 3, 1, 2)).all()
    assert ImageTable.decode(source, 64, tmp_path).images.shape[-2:] == (64, 64)
    source = source_of([file_of(small), file_of(strip)], [0, 1], "cut")
    assert ImageTable.decode(source, 64, tmp_path, one_size=True).images.shape[-2:] == (64, 64), "nothing is cut"


def test_evaluation_sees_the_same_of_a_small_picture_in_a_table_of_any_size(tmp_path):
    pixels = InputSpec(56)  # stored at 64
    picture = noise(25, 25, 0)
    alone, mixed = stored(tmp_path, picture), stored(tmp_path, picture, noise(60, 25, 1))
    assert alone.shape[-2:] == (25, 25) and mixed.shape[-2:] == (64, 64)
    seen = [evaluation(torch.from_numpy(each[:1].copy()), pixels) for each in (alone, mixed)]
    one_level = 1 / (255 * 0.5)
    assert (seen[0] - seen[1]).abs().max() < one_level


def test_a_strip_loses_what_a_centre_crop_loses_and_no_more(tmp_path):
    strip = np.zeros((32, 100, 3), dtype=np.uint8)
    strip[:, 34:66] = np.arange(32, dtype=np.uint8)[None, :, None] * 8  # the centre square
    kept = stored(tmp_path, strip, noise(40, 40, 0), side=32)
    assert (kept[0] == strip[:, 34:66].transpose(2, 0, 1)).all()
    tall = stored(tmp_path, strip.transpose(1, 0, 2), noise(40, 40, 0), side=32)
    assert (tall[0] == strip[:, 34:66].transpose(2, 1, 0)).all()


def test_pictures_of_one_size_are_stored_as_they_are(tmp_path):
    for height, width in ((32, 32), (8, 5), (64, 64)):
        pictures = [noise(height, width, i) for i in range(3)]
        assert (stored(tmp_path, *pictures) == np.stack(pictures).transpose(0, 3, 1, 2)).all()


def test_larger_pictures_have_the_bits_that_they_always_had(tmp_path):
    from PIL import ImageOps

    pictures = [noise(80, 100, i) for i in range(2)]
    expected = [ImageOps.fit(Image.fromarray(each), (64, 64), Image.Resampling.BICUBIC) for each in pictures]
    assert (stored(tmp_path, *pictures) == np.stack(expected).transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_is_opened_as_pillow_opens_it_in_one_attempt(name, monkeypatch):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(stream, name)
    with Image.open(io.BytesIO(stream.getvalue())) as expected, pixels.opened(stream.getvalue()) as found:
        assert found.format == expected.format == name
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    attempts = []
    whole = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **how: attempts.append(how.get("formats")) or whole(file, **how))
    pixels.opened(stream.getvalue()).close()
    assert attempts == [(name,) if name in ("JPEG", "PNG", "WEBP") else None]


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBP", b"RIFF....WAVE", b""])
def test_a_file_that_only_begins_like_an_image_has_pillows_own_error(start):
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        pixels.opened(start + bytes(30))
