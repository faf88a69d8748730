"""Writers of one small data set in every format that the scenario `folder` reads."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

NAMES = ("ant", "bee", "cow")
SIDE = 4
LABELS = {"train": [0, 1, 2, 2, 1, 0], "test": [2, 1, 0]}


def pixels(split, side=SIDE, grey=False):
    """(N,H,W,3) or (N,H,W) uint8, other ones in each split."""
    shape = (len(LABELS[split]), side, side, *([] if grey else [3]))
    return np.random.default_rng(len(split)).integers(0, 256, shape, dtype=np.uint8)


def png(image):
    """An image as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def texts(split):
    """The labels as class names."""
    return [NAMES[label] for label in LABELS[split]]


def arrow_table(split, labels=None, declare=True):
    """A table with the columns and the metadata of Hugging Face's datasets."""
    images = [{"bytes": png(image), "path": None} for image in pixels(split)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(LABELS[split] if labels is None else labels)})
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": about}) if declare else table


def arrow_file(file, table):
    """An Arrow stream, as `save_to_disk` writes it."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def save_to_disk(root):
    """A DatasetDict; the training images are in two files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in LABELS:
        (root / split).mkdir(exist_ok=True)
        (root / split / "dataset_info.json").write_text("{}")
        count = 2 if split == "train" else 1
        names = [f"data-{i:05d}-of-{count:05d}.arrow" for i in range(count)]
        state = {"_data_files": [{"filename": name} for name in names], "_split": split}
        (root / split / "state.json").write_text(json.dumps(state))
        table = arrow_table(split)
        for i, name in enumerate(names):
            arrow_file(root / split / name, table.slice(3 * i, 3))
    return root


def parquet(root):
    """The Hub's layout."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split in LABELS:
        pq.write_table(arrow_table(split), root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def npz(root, **more):
    """Keras's names."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {f"x_{split}": pixels(split) for split in LABELS}
    arrays |= {f"y_{split}": np.array(LABELS[split], dtype=np.uint8)[:, None] for split in LABELS}
    np.savez(root / "small.npz", **(arrays | more))
    return root


def csv(root, rows=None, header="path,label,split"):
    """One list of both splits, with images in a folder."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    lines = [header]
    for split in LABELS:
        for i, (image, name) in enumerate(zip(pixels(split), texts(split), strict=True)):
            (root / "images" / f"{split}{i}.png").write_bytes(png(image))
            lines.append(f"images/{split}{i}.png,{name},{split}")
    (root / "labels.csv").write_text("\n".join(lines if rows is None else [header, *rows]) + "\n")
    return root


def jsonl(root):
    """A list for each split, next to its images."""
    for split in LABELS:
        (root / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for i, (image, name) in enumerate(zip(pixels(split), texts(split), strict=True)):
            (root / split / f"{i}.png").write_bytes(png(image))
            lines.append(json.dumps({"file_name": f"{i}.png", "label": name}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


def tar_file(file, members):
    """A tar file with (name, bytes)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def samples(split, start=0, stop=None, label="cls"):
    """The members of a shard."""
    found = []
    for i, image in list(enumerate(pixels(split)))[start:stop]:
        name = texts(split)[i]
        text = name if label == "cls" else json.dumps({"label": name})
        found += [(f"{split}/{i:06d}.png", png(image)), (f"{split}/{i:06d}.{label}", text.encode())]
    return found


def tars(root):
    """Two shards for training, one for testing."""
    tar_file(root / "train-000000.tar", samples("train", 0, 4))
    tar_file(root / "train-000001.tar", samples("train", 4, label="json"))
    tar_file(root / "test-000000.tar", samples("test"))
    return root


def cifar10(root, names=NAMES, side=32):
    """The files of CIFAR-10, as Python 2 pickled them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "cifar-10-python.tar.gz").write_bytes(b"torchvision leaves it there")
    rows = {split: pixels(split, side).transpose(0, 3, 1, 2).reshape(-1, 3 * side * side) for split in LABELS}
    parts = {
        f"data_batch_{i + 1}": ("train", slice(*cut)) for i, cut in enumerate([(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)])
    }
    for name, (split, cut) in (parts | {"test_batch": ("test", slice(None))}).items():
        batch = {"data": rows[split][cut], "labels": LABELS[split][cut], "batch_label": name, "filenames": []}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(names), "num_vis": 3072}, 2))
    return root


def cifar100(root, count=100):
    """The files of CIFAR-100, with one image of each class for training and for testing."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for split in LABELS:
        data = np.random.default_rng(len(split)).integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": data, "fine_labels": list(range(count)), "coarse_labels": [0] * count, "filenames": []}
        (folder / split).write_bytes(pickle.dumps(batch, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"thing {i}" for i in range(count)]}, 2))
    return root


def idx(root, name="MNIST", packed=False):
    """The files of MNIST in a folder `raw`."""
    folder = root / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = pixels(split, 28, grey=True), np.array(LABELS[split], dtype=np.uint8)
        for what, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            file = folder / f"{prefix}-{what}{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(data) if packed else data)
    return root


def svhn(root):
    """SVHN's files, in which the digit 0 is 10."""
    root.mkdir(parents=True, exist_ok=True)
    for split in LABELS:
        labels = np.array(LABELS[split], dtype=np.uint8)[:, None]
        labels[labels == 0] = 10
        content = {"X": pixels(split, 32).transpose(1, 2, 3, 0), "y": labels}
        scipy.io.savemat(root / f"{split}_32x32.mat", content, do_compression=True)
    return root
