"""ImageTable: labelled images of one size, decoded once into a memory-mapped file, or kept encoded if they are many."""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from clsim.data.encoded import EncodedImages, bad_image, decoded, for_each, size_of
from clsim.data.readers import Source
from clsim.errors import RequestError

# bytes; above it images stay encoded and are decoded each time they are read: DomainNet would take 90 GB on disk
LARGEST_DECODED = 8 << 30
NONE_LEFT = "none of the images can be decoded"


@dataclass(frozen=True)
class ImageTable:
    """N images of one size with their labels.

    Rows are sorted by domain, then class, then in a fixed shuffled order. So a table limited to k images per class
    reads blocks of neighbouring rows, and shares whole blocks of the feature bank.
    """

    images: NDArray[np.uint8] | EncodedImages  # (N, 3, H, W), memory-mapped if from files; see `pixels`
    labels: NDArray[np.int64]  # (N,)
    class_names: tuple[str, ...]
    fingerprint: str
    domains: NDArray[np.int64] | None = None  # (N,)
    domain_names: tuple[str, ...] = ()
    skipped: int = 0  # images left out because they could not be decoded

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) rows -> (n, 3, H, W). Raises RunFailed for a row of encoded images that cannot be decoded."""
        return self.images.take(rows) if isinstance(self.images, EncodedImages) else np.take(self.images, rows, axis=0)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image, decoded."""
        return math.prod(self.images.shape[1:])

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
            Image.fromarray(self.pixels(np.array([i]))[0].transpose(1, 2, 0)).save(stream, "PNG")
            return stream.getvalue()

        names = [f"image {i}" for i in range(len(self))]
        return Source(read, names, self.labels, self.class_names, self.fingerprint, self.domains, self.domain_names)

    @classmethod
    def decode(cls, source: Source, side: int, cache_dir: Path, on_bad_image: str = "stop") -> "ImageTable":
        """The source's images as RGB, from the cache if they were decoded before.

        If every image fits into `side` x `side` pixels, the table has the largest height and width found; otherwise it
        is `side` x `side`. An image of another size is scaled to cover that and cropped to its centre. An image that
        cannot be decoded raises RequestError with its name; if `on_bad_image` is "skip", it is left out and counted.
        """
        folder = cache_dir / "tables" / f"{source.fingerprint}-{side}-{on_bad_image}"
        if not (folder / "table.json").exists():
            _decode_into(folder, source, side, on_bad_image)
        meta = json.loads((folder / "table.json").read_text())
        size = meta.get("encoded")
        return cls(
            images=EncodedImages(folder, *size) if size else np.load(folder / "images.npy", mmap_mode="r"),
            labels=np.load(folder / "labels.npy"),
            class_names=tuple(meta["class_names"]),
            fingerprint=folder.name,
            domains=np.load(folder / "domains.npy") if meta["domain_names"] else None,
            domain_names=tuple(meta["domain_names"]),
            skipped=meta["skipped"],
        )


def _row_order(labels: NDArray[np.int64], domains: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The order of an ImageTable's rows, as positions in its source."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    keys = (labels[shuffled],) if domains is None else (labels[shuffled], domains[shuffled])
    return shuffled[np.lexsort(keys)]


def _decode_into(folder: Path, source: Source, side: int, on_bad_image: str) -> None:
    """Write a table next to `folder`, then rename it, so that an incomplete table never has the final name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        rows, encoded = _write_images(temporary, source, side, on_bad_image)
        np.save(temporary / "labels.npy", source.labels[rows])
        if source.domains is not None:
            np.save(temporary / "domains.npy", source.domains[rows])
        meta = {
            "class_names": source.class_names,
            "domain_names": source.domain_names,
            "skipped": len(source.labels) - len(rows),
            "encoded": encoded,
        }
        (temporary / "table.json").write_text(json.dumps(meta))
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "table.json").exists():  # raise, unless another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_images(
    temporary: Path, source: Source, side: int, on_bad_image: str
) -> tuple[NDArray[np.int64], tuple[int, int] | None]:
    """Write the source's images to a folder: decoded, or encoded if they would take too much space decoded.

    Returns their positions in the source, in the order of the table, and the size of images that are kept encoded.
    """
    blob = temporary / "images.bin"
    spans, sizes = _spool(blob, source, on_bad_image)
    if not sizes.any():
        raise RequestError(NONE_LEFT)
    height, width = sizes.max(axis=0).tolist()
    if max(height, width) > side:
        height = width = side
    order = _row_order(source.labels, source.domains)
    order = order[sizes[order].any(axis=1)]  # without images that have bad headers
    with blob.open("rb") as stream:

        def image(row: int) -> NDArray[np.uint8]:
            start, length = spans[row].tolist()
            return decoded(os.pread(stream.fileno(), length, start), height, width)

        images = for_each(order.tolist(), image, source.names, on_bad_image)
        if len(order) * 3 * height * width <= LARGEST_DECODED:
            rows = _write_decoded(temporary / "images.npy", order, images, (3, height, width))
            blob.unlink()
            return rows, None
        if on_bad_image == "skip":  # to find the bad ones, each must be decoded once
            order = order[[image is not None for image in images]]
            if len(order) == 0:
                raise RequestError(NONE_LEFT)
    np.save(temporary / "spans.npy", spans[order])
    (temporary / "names.txt").write_text("\n".join(source.names[row] for row in order.tolist()), encoding="utf-8")
    return order, (height, width)


def _spool(file: Path, source: Source, on_bad_image: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Copy the encoded images into one file, in the order of the source, because another order may be slow to read.

    Returns (N,2) first bytes and lengths, and (N,2) heights and widths, zeros for a bad image to skip.
    """
    spans = np.zeros((len(source.labels), 2), dtype=np.int64)
    sizes = np.zeros_like(spans)
    with file.open("wb") as stream:
        for row in range(len(spans)):
            data = source.read(row)
            spans[row] = stream.tell(), len(data)
            stream.write(data)
            try:
                sizes[row] = size_of(data)
            except Exception as error:  # Pillow raises many kinds for broken files
                if on_bad_image == "stop":
                    raise bad_image(source.names[row], error) from error
        stream.flush()
        os.fsync(stream.fileno())
    return spans, sizes


def _write_decoded(
    file: Path, order: NDArray[np.int64], images: Iterator[NDArray[np.uint8] | None], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Write the decoded images into an .npy file; returns their positions in the source."""
    kept = []
    with file.open("wb") as stream:
        # the count is known only after the last image: at the end the header is written again, with the same length
        _npy_header(stream, (len(order), *shape))
        for row, image in zip(order.tolist(), images, strict=True):
            if image is not None:
                stream.write(image.tobytes())
                kept.append(row)
        if not kept:
            raise RequestError(NONE_LEFT)
        stream.seek(0)
        _npy_header(stream, (len(kept), *shape))
        stream.flush()
        os.fsync(stream.fileno())
    return np.array(kept, dtype=np.int64)


def _npy_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """A version 1.0 .npy header of fixed length 128 for a uint8 array."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    stream.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n")
