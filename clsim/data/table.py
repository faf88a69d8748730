"""ImageTable: labelled images, decoded once into a memory-mapped file, or kept encoded if they are many."""

import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from clsim.data import entries
from clsim.data.encoded import EncodedImages, bad_image, for_each, reason, write_names
from clsim.data.pixels import decoded, is_dim, size_of, whole_image, whole_size
from clsim.data.readers import Source
from clsim.data.whole import WholeImages
from clsim.errors import RequestError
from clsim.terminal import counted

# bytes; above it images stay encoded and are decoded each time they are read: DomainNet would take 90 GB on disk
LARGEST_DECODED = 8 << 30
NONE_LEFT = "none of the images can be decoded"
REMOVED = "{} was removed or damaged while it was opened; repeat the command"
RULES = 3  # changed if the same files become other pixels, so that tables of older versions are not used
SQUARE_RULES = 2  # tables of one size have the pixels of these rules, so they keep their fingerprints and finished runs
NAMED = 5  # bad images that are named; the others are counted


@dataclass(frozen=True)
class Skipped:
    """The images that a table left out because they could not be decoded. It is false if there are none."""

    by_class: Mapping[str, int] = field(default_factory=dict)  # only classes that lost images
    first: tuple[str, ...] = ()  # at most NAMED images, "name (reason)", in the order of the source

    @property
    def count(self) -> int:
        """How many images were left out."""
        return sum(self.by_class.values())

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        """One line, e.g. ``2 images left out (cat 1, dog 1): a.png (broken PNG file), b.png (...)``."""
        if not self:
            return "no images left out"
        classes = ", ".join(f"{name} {count}" for name, count in self.by_class.items())
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} image{'s' * (self.count > 1)} left out ({classes}): {', '.join(self.first)}{more}"


@dataclass(frozen=True)
class ImageTable:
    """N images with their labels.

    Rows are sorted by domain, then class, then in a fixed shuffled order. So a table limited to k images per class
    reads blocks of neighbouring rows, and shares whole blocks of the feature bank.
    """

    images: NDArray[np.uint8] | WholeImages | EncodedImages  # shape (N, 3, H, W); see `pixels` and `whole`
    labels: NDArray[np.int64]  # (N,)
    class_names: tuple[str, ...]
    fingerprint: str
    domains: NDArray[np.int64] | None = None  # (N,)
    domain_names: tuple[str, ...] = ()
    skipped: Skipped = Skipped()

    def __len__(self) -> int:
        return len(self.labels)

    def kinds(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) rows -> (n,) numbers, equal for rows of one class (and domain)."""
        labels = self.labels[rows]
        return labels if self.domains is None else labels + self.domains[rows] * len(self.class_names)

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) rows -> (n, 3, H, W), what evaluation sees: images of one size, or the square in the centre of each.

        Raises RunFailed for a row of encoded images that cannot be decoded.
        """
        return np.take(self.images, rows, axis=0) if isinstance(self.images, np.ndarray) else self.images.take(rows)

    def whole(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """(n,) rows -> (n, 3, H, W), or n whole images (3, h, w) if they differ in size: what training crops come from.

        Raises as `pixels`.
        """
        if isinstance(self.images, np.ndarray) or not len(rows):
            return self.pixels(rows)
        return self.images.whole(rows)

    def bytes_of(self, rows: NDArray[np.int64]) -> int:
        """Bytes of these images, whole and decoded."""
        if isinstance(self.images, np.ndarray):
            return len(rows) * math.prod(self.images.shape[1:])
        return int(3 * self.images.sizes[rows].prod(axis=1).sum())

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
        domains: NDArray[np.int64] | None = None,
        domain_names: tuple[str, ...] = (),
    ) -> "ImageTable":
        """A table of (N, 3, H, W) uint8 images that are already in memory."""
        order = _row_order(labels, domains)
        images, labels = np.ascontiguousarray(images[order]), labels[order]
        domains = None if domains is None else domains[order]
        content = images.tobytes() + labels.tobytes() + (b"" if domains is None else domains.tobytes())
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return cls(images, labels, class_names, digest, domains, domain_names)

    def encoded(self) -> Source:
        """The images as lossless files, so that they can be joined with those of other sources."""
        from PIL import Image

        def read(i: int) -> bytes:
            stream = io.BytesIO()
            Image.fromarray(self.whole(np.array([i]))[0].transpose(1, 2, 0)).save(stream, "PNG")
            return stream.getvalue()

        names = [f"image {i}" for i in range(len(self))]
        return Source(read, names, self.labels, self.class_names, self.fingerprint, self.domains, self.domain_names)

    @classmethod
    def decode(
        cls, source: Source, side: int, cache_dir: Path, on_bad_image: str = "stop", one_size: bool = False
    ) -> "ImageTable":
        """The source's images as RGB, from the cache if they were decoded before.

        If all images have one size that fits into `side` x `side` pixels, they are stored as they are. Otherwise each
        is stored whole, with its shorter side scaled to `side`; so the pixels of an image do not depend on the others.
        Evaluation sees the square in its centre, and training crops come from all of it. Of an image that is longer
        than four times its shorter side, only the middle is stored. What is done with rotated, transparent or 16-bit
        images is described in `clsim.data.pixels`.

        With `one_size`, images of several sizes but one shape (e.g. digits of 28 x 28 and 16 x 16) that fit into `side`
        are enlarged to the largest size found, for sets that are joined on purpose.

        An image that cannot be decoded raises RequestError with its name. If `on_bad_image` is "skip", it is left out,
        and `skipped` has what was left out; but a class that loses more than half of its images raises RequestError:
        then not images are bad, but the copy of the data set, e.g. git-lfs pointers or an interrupted download.
        """
        options = f"-{side}-{on_bad_image}{'-one_size' * one_size}"
        folder = cache_dir / "tables" / f"{_key(source, RULES)}{options}"
        meta = entries.opened(folder)
        if meta is None:
            _decode_into(folder, source, side, on_bad_image, one_size)
            meta = entries.opened(folder)
        if meta is None:
            raise RequestError(REMOVED.format(folder))
        if meta["dim"]:
            print(f"clsim: {meta['dim']}", file=sys.stderr)
        skipped = meta["skipped"]
        try:
            return cls(
                images=_open_images(folder, **meta["stored"]),
                labels=np.load(folder / "labels.npy"),
                class_names=source.class_names,
                fingerprint=folder.name if meta["stored"]["whole"] else f"{_key(source, SQUARE_RULES)}{options}",
                domains=None if source.domains is None else np.load(folder / "domains.npy"),
                domain_names=source.domain_names,
                skipped=Skipped(skipped["by_class"], tuple(skipped["first"])),
            )
        except FileNotFoundError as error:
            raise RequestError(REMOVED.format(folder)) from error


def _open_images(
    folder: Path, height: int, width: int, bicubic: bool, whole: bool, encoded: bool
) -> NDArray[np.uint8] | WholeImages | EncodedImages:
    """The images in a folder; the arguments are what `_write_images` returned."""
    if encoded:
        return EncodedImages(folder, height, width, bicubic, whole)
    found: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r")
    return WholeImages(found, np.load(folder / "sizes.npy"), height) if whole else found


def _key(source: Source, rules: int) -> str:
    """A hash of everything that is read: files, labels, domains, and all names in their order."""
    names = json.dumps([rules, source.fingerprint, source.class_names, source.domain_names])
    digest = hashlib.blake2b(names.encode(), digest_size=16)
    digest.update(np.asarray(source.labels, dtype=np.int64).tobytes())
    if source.domains is not None:
        digest.update(np.asarray(source.domains, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _row_order(labels: NDArray[np.int64], domains: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The order of an ImageTable's rows, as positions in its source."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    keys = (labels[shuffled],) if domains is None else (labels[shuffled], domains[shuffled])
    return shuffled[np.lexsort(keys)]


def _decode_into(folder: Path, source: Source, side: int, on_bad_image: str, one_size: bool) -> None:
    """Make the table as an entry of the cache."""
    bad: dict[int, str] | None = {} if on_bad_image == "skip" else None
    with entries.new(folder) as (temporary, about):
        dim: list[int] = []
        rows, about["stored"] = _write_images(temporary, source, side, one_size, bad, dim)
        skipped = _skipped(source, bad or {})
        np.save(temporary / "labels.npy", source.labels[rows])
        if source.domains is not None:
            np.save(temporary / "domains.npy", source.domains[rows])
        about["skipped"] = {"by_class": skipped.by_class, "first": skipped.first}
        about["dim"] = _about_dim(dim, source.names, len(rows))


def _about_dim(dim: Sequence[int], names: Sequence[str], count: int) -> str:
    if not dim:
        return ""
    return (
        f"{len(dim)} of {count} images are 16-bit greyscale and nearly black, e.g. {names[min(dim)]}; "
        "if their values have 12 bits, multiply them by 16 in the files"
    )


def _skipped(source: Source, bad: Mapping[int, str]) -> Skipped:
    """What is left out. Raises RequestError if a class loses more than half of its images."""
    rows = sorted(bad)
    all_images = np.bincount(source.labels, minlength=len(source.class_names))
    lost = np.bincount(source.labels[rows], minlength=len(source.class_names))
    first = [f"{source.names[row]} ({bad[row]})" for row in rows[:NAMED]]
    for label in np.flatnonzero(lost > all_images / 2)[:1].tolist():
        row = next(row for row in rows if source.labels[row] == label)
        raise RequestError(
            f"{lost[label]} of {all_images[label]} images of class {source.class_names[label]!r} cannot be decoded, "
            f"e.g. {source.names[row]} ({bad[row]}); on_bad_image=skip leaves out at most half of a class"
        )
    by_class = {source.class_names[label]: int(lost[label]) for label in np.flatnonzero(lost).tolist()}
    return Skipped(by_class, tuple(first))


def _write_images(
    temporary: Path, source: Source, side: int, one_size: bool, bad: dict[int, str] | None, dim: list[int]
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Write the source's images to a folder: decoded, or encoded if they would take too much space decoded.

    Returns their positions in the source, in the order of the table, and how they are stored: the arguments of
    `_open_images`. The reasons for bad images are put into `bad`; without it, the first raises RequestError. Rows of
    16-bit images that are nearly black are put into `dim`.
    """
    blob = temporary / "images.bin"
    spans, sizes = _spool(blob, source, bad)
    height, width, bicubic = _stored_size(sizes, side, one_size)
    order = _row_order(source.labels, source.domains)
    order = order[sizes[order].any(axis=1)]  # without images that have bad headers
    sizes = np.broadcast_to((height, width), (len(order), 2)) if bicubic else _whole_sizes(sizes[order], side)
    whole = bool((sizes != (height, width)).any())
    stored = {"height": height, "width": width, "bicubic": bicubic, "whole": whole, "encoded": False}
    with blob.open("rb") as stream:

        def image(row: int) -> NDArray[np.uint8]:
            start, length = spans[row].tolist()
            data = os.pread(stream.fileno(), length, start)
            pixels = whole_image(data, side) if whole else decoded(data, height, width, bicubic)
            if is_dim(data, pixels):
                dim.append(row)
            return pixels

        images = counted(for_each(order.tolist(), image, source.names, bad), len(order), "decoding images")
        if 3 * sizes.prod(axis=1).sum() <= LARGEST_DECODED:
            rows = _write_decoded(temporary, order, images, whole)
            blob.unlink()
            return rows, stored
        if bad is not None:  # to find the bad ones, each must be decoded once
            good = np.array([image is not None for image in images])
            order, sizes = order[good], sizes[good]
            if len(order) == 0:
                raise RequestError(NONE_LEFT)
        os.fsync(stream.fileno())  # only now: for decoded images this file is just removed again
    np.save(temporary / "spans.npy", spans[order])
    if whole:
        np.save(temporary / "sizes.npy", sizes)
    write_names(temporary, [source.names[row] for row in order.tolist()])
    return order, stored | {"encoded": True}


def _stored_size(sizes: NDArray[np.int64], side: int, one_size: bool) -> tuple[int, int, bool]:
    """(N,2) heights and widths, zeros for bad images -> the height, width and `bicubic` that `decoded` gets."""
    found = np.unique(sizes[sizes.any(axis=1)], axis=0)
    if len(found) == 0:
        raise RequestError(NONE_LEFT)
    height, width = found.max(axis=0).tolist()
    one_shape = bool((found[:, 0] * width == found[:, 1] * height).all())
    if max(height, width) <= side and (len(found) == 1 or (one_size and one_shape)):
        return height, width, True
    return side, side, False


def _whole_sizes(sizes: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """(N,2) heights and widths of files -> those of the whole images as they are stored."""
    found, place = np.unique(sizes, axis=0, return_inverse=True)
    return np.array([whole_size(height, width, side) for height, width in found.tolist()])[place.reshape(-1)]


def _spool(file: Path, source: Source, bad: dict[int, str] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Copy the encoded images into one file, in the order of the source, because another order may be slow to read.

    Returns (N,2) first bytes and lengths, and (N,2) heights and widths, zeros for a bad image to skip.
    """
    spans = np.zeros((len(source.labels), 2), dtype=np.int64)
    sizes = np.zeros_like(spans)
    with file.open("wb") as stream:
        for row in counted(range(len(spans)), len(spans), "reading images"):
            data = source.read(row)
            spans[row] = stream.tell(), len(data)
            stream.write(data)
            try:
                sizes[row] = size_of(data)
            except Exception as error:  # Pillow raises many kinds for broken files
                if bad is None:
                    raise bad_image(source.names[row], error) from error
                bad[row] = reason(error)
    return spans, sizes


def _write_decoded(
    folder: Path, order: NDArray[np.int64], images: Iterable[NDArray[np.uint8] | None], whole: bool
) -> NDArray[np.int64]:
    """Write the decoded images into images.npy, and if `whole` their sizes; returns their positions in the source."""
    kept, sizes = [], []
    with (folder / "images.npy").open("wb") as stream:
        # the count is known only after the last image: at the end the header is written again, with the same length
        _npy_header(stream, (0,))
        first = stream.tell()
        for row, image in zip(order.tolist(), images, strict=True):
            if image is not None:
                stream.write(image.tobytes())
                kept.append(row)
                sizes.append(image.shape[1:])
        if not kept:
            raise RequestError(NONE_LEFT)
        shape = (stream.tell() - first,) if whole else (len(kept), 3, *sizes[0])
        stream.seek(0)
        _npy_header(stream, shape)
        stream.flush()
        os.fsync(stream.fileno())
    if whole:
        np.save(folder / "sizes.npy", np.array(sizes))
    return np.array(kept, dtype=np.int64)


def _npy_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """A version 1.0 .npy header of fixed length 128 for a uint8 array."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    stream.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n")
