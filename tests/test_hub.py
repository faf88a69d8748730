"""Downloads from the Hub, by its own client, from a server on this machine; and what failures say."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hub_server import FakeHub, serving
from huggingface_hub import constants
from safetensors.torch import save

from clsim.backbones.load import load_backbone
from clsim.errors import RequestError
from clsim.hub import interruptible, why

WEIGHTS = "test_vit.r160_in1k"  # timm's smallest vision transformer
DATA, MODEL = "uoft-cs/cifar100", f"timm/{WEIGHTS}"
TRAIN, TEST = (f"cifar100/{split}-00000-of-00001.parquet" for split in ("train", "test"))
RUN = ("run", "--scenario", "split_cifar100", "--strategy", "ncm", "--backbone", WEIGHTS)
REMEMBERED = 10 << 20  # the client goes on from what it has in pieces of this size


def cause(hub: FakeHub, tmp_path: Path, repository: str = "someone/letters", **what) -> str:
    """What is said about a download that fails."""
    options = {"filename": "a.bin", "endpoint": hub.endpoint, "cache_dir": tmp_path} | what
    with pytest.raises(Exception) as caught:  # the client has many types
        huggingface_hub.hf_hub_download(repository, **options)
    return why(caught.value)


@pytest.fixture
def impatient(monkeypatch):
    """The client tries again at once; otherwise it waits for 23 seconds in all."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def letters():
    """A repository with a file."""
    with serving(FakeHub({("models", "someone/letters"): {"a.bin": b"abc"}})) as hub:
        yield hub


def test_a_file_is_downloaded(letters, tmp_path):
    file = huggingface_hub.hf_hub_download("someone/letters", "a.bin", endpoint=letters.endpoint, cache_dir=tmp_path)
    assert Path(file).read_bytes() == b"abc"


def test_what_is_not_there_is_named(letters, tmp_path):
    assert cause(letters, tmp_path, "someone/numbers").startswith("there is no such repository, or it is private")
    assert cause(letters, tmp_path, revision="v9") == "the repository has no such revision"
    assert cause(letters, tmp_path, filename="b.bin") == "the repository has no such file"


def test_terms_that_must_be_accepted(letters, tmp_path):
    letters.gated = ("someone/letters",)
    assert cause(letters, tmp_path).startswith("its owner wants you to accept terms")


def test_no_connection(impatient, tmp_path):
    nobody = FakeHub({}, endpoint="http://127.0.0.1:9")  # the port at which nothing is ever sent
    assert cause(nobody, tmp_path).startswith("no connection to the Hub at http")


def test_a_hub_that_is_down(letters, impatient, tmp_path):
    letters.down = True
    assert "answers with status 503; try again later" in cause(letters, tmp_path)


def test_a_full_disk_is_not_the_hubs_fault():
    full = OSError(28, "No space left on device")
    wrapped = RuntimeError("failed to download")
    wrapped.__cause__ = full
    with pytest.raises(OSError, match="No space left"):
        why(wrapped)


def test_other_errors_keep_their_words():
    assert why(KeyError("config.json")) == "KeyError: 'config.json'"


@pytest.fixture
def tiny_clip(monkeypatch, tmp_path):
    """open_clip's registry with a tiny model, whose weights are on a server; the server, the weights."""
    about = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    pretrained, registry = sys.modules["open_clip.pretrained"], sys.modules["open_clip.factory"]
    monkeypatch.setitem(registry._MODEL_CONFIGS, "tiny", about)
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"hub": pretrained._pcfg(hf_hub="someone/tiny/")})
    weights = open_clip.create_model("tiny").state_dict()
    with serving(FakeHub({("models", "someone/tiny"): {"open_clip_model.safetensors": save(weights)}})) as hub:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub, weights


def test_weights_of_open_clip(tiny_clip):
    hub, weights = tiny_clip
    backbone = load_backbone("clip:tiny/hub")
    assert torch.equal(backbone.image.state_dict()["visual.conv1.weight"], weights["visual.conv1.weight"])
    assert hub.downloads("open_clip_model.safetensors") == [""]


def test_weights_of_open_clip_that_are_not_there(tiny_clip):
    hub, _ = tiny_clip
    hub.files = {}
    with pytest.raises(RequestError, match="the weights of 'clip:tiny/hub' cannot be downloaded: there is no such rep"):
        load_backbone("clip:tiny/hub")


def test_a_download_keeps_no_process_from_ending():
    threads = []
    assert interruptible(lambda: threads.append(threading.current_thread()) or 5) == 5
    assert threads[0].daemon and threads[0] is not threading.main_thread()
    with pytest.raises(KeyError):
        interruptible(lambda: {}["a"])


# whole runs, with a server, in processes of their own


def shard(encode, count: int, padding: int = 0) -> bytes:
    """A Parquet file of CIFAR-100's layout: `count` random images of each class, and bytes that nobody reads."""
    draw = np.random.default_rng(count)
    labels = list(range(100)) * count
    images = [{"bytes": encode(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "path": None} for _ in labels]
    unread = [draw.bytes(padding // len(labels)) for _ in labels]
    names = {"info": {"features": {"fine_label": {"names": [f"class {i}" for i in range(100)], "_type": "ClassLabel"}}}}
    table = pa.table({"img": images, "fine_label": labels, "unread": unread})
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def published(encode) -> dict[tuple[str, str], dict[str, bytes]]:
    """A data set and weights."""
    weights = save(timm.create_model(WEIGHTS, pretrained=False).state_dict())
    return {
        ("datasets", DATA): {TRAIN: shard(encode, 2, REMEMBERED), TEST: shard(encode, 1)},
        ("models", MODEL): {"model.safetensors": weights},
    }


def started(hub: FakeHub, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """A command of clsim whose Hub is the server, and whose caches are in `folder`."""
    names = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": folder / "hub", "CLSIM_CACHE_DIR": folder / "cache"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CLSIM_"))}
    command = [sys.executable, "-m", "clsim", *arguments, "--out", folder / "runs", "--threads", "1"]
    # jobs that a shell starts in the background ignore Ctrl-C, and what they start inherits that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command,
            env=kept | {name: str(value) for name, value in names.items()} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def clsim(hub: FakeHub, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Such a command after its end."""
    process = started(hub, folder, *arguments, **environment)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_a_run_downloads_goes_on_after_a_break_and_then_needs_no_network(published, tmp_path):
    with serving(FakeHub(published, broken={TRAIN: REMEMBERED + 5000})) as hub:
        done = clsim(hub, tmp_path, *RUN)
        assert done.returncode == 0, done.stderr
        assert hub.downloads(TRAIN) == ["", f"bytes={REMEMBERED}-"]
        assert hub.downloads(TEST) == hub.downloads("model.safetensors") == [""]
        assert "100%" in done.stderr  # progress
        first = next((tmp_path / "runs").rglob("matrix.json")).read_bytes()
    again = clsim(hub, tmp_path, *RUN, "--fresh", CLSIM_CACHE_DIR=str(tmp_path / "empty"))  # the server is gone
    assert again.returncode == 0, again.stderr
    assert next((tmp_path / "runs").rglob("matrix.json")).read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("file", [TRAIN, "model.safetensors"])
def test_ctrl_c_ends_a_download_at_once_and_the_next_command_goes_on(file, published, tmp_path):
    with serving(FakeHub(published, stalled={file: 5000})) as hub:
        process = started(hub, tmp_path, *RUN)
        assert hub.waiting.wait(120)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert time.monotonic() - began < 5, "two seconds, and more only on a busy machine"
        assert process.returncode == 130
        assert err.endswith("clsim: interrupted; repeat the same command to resume\n") and "Traceback" not in err
    with serving(FakeHub(published)) as hub:
        done = clsim(hub, tmp_path, *RUN)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_says_in_one_line_what_is_missing(published, tmp_path):
    with serving(FakeHub({("datasets", DATA): published["datasets", DATA]})) as hub:
        no_weights = clsim(hub, tmp_path, *RUN)
        hub.files = {("models", MODEL): published["models", MODEL]}
        no_data = clsim(hub, tmp_path, *RUN)
    offline = clsim(hub, tmp_path / "empty", *RUN, HF_HUB_OFFLINE="1")
    for ended, words in (
        (no_weights, f"the weights of {WEIGHTS!r} cannot be downloaded: there is no such repository, or it is private"),
        (
            no_data,
            f"the Hub's {DATA} (revision aadb3af77e9048adbea6b47c21a81e47dd092ae5) cannot be downloaded: there is",
        ),
        (offline, f"the weights of {WEIGHTS!r} cannot be downloaded: HF_HUB_OFFLINE is set, and the Hub's cache"),
    ):
        assert ended.returncode == 2
        *_, last = ended.stderr.strip().splitlines()
        assert last.startswith("clsim: error: ")
        assert words in last
        assert "Traceback" not in ended.stderr
