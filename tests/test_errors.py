"""Errors of files: the name, and what a full disk needs."""

import errno
import os
import resource
import signal

import pytest
import torch

from clsim import checkpoint
from clsim.errors import WriteFailed, unknown, writing


def test_a_full_disk_names_the_file_and_what_it_needs(tmp_path):
    # /dev/full has no space for anybody: neither permissions nor quotas bind the superuser
    said = r"No space left on device \(3\.0 MiB are needed, .* are free\).*here'$"
    with pytest.raises(WriteFailed, match=said), writing(tmp_path / "here", 3 << 20):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")


def test_the_innermost_name_stays(tmp_path):
    with pytest.raises(WriteFailed, match="inner"), writing(tmp_path / "outer"), writing(tmp_path / "inner"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_other_errors_keep_their_kind_and_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), writing(tmp_path / "here"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "gone")
    with pytest.raises(WriteFailed, match=r"Input/output error.*here"), writing(tmp_path / "here"):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(ValueError), writing(tmp_path / "here"):
        raise ValueError


@pytest.fixture
def small_files(monkeypatch):
    """Files of this process may not grow beyond 1000 bytes, which holds for the superuser, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_does_not_fit_names_itself_and_the_one_before_stays(tmp_path, small_files):
    checkpoint.save(tmp_path, {"x": torch.zeros(2)})
    with pytest.raises(WriteFailed, match=r"File too large \(78\.1 KiB are needed, .*state\.b\.safetensors\.part"):
        checkpoint.save(tmp_path, {"x": torch.zeros(20_000)})
    with pytest.raises(WriteFailed, match=r"File too large .*summary\.json"):
        checkpoint.write_text(tmp_path / "summary.json", "x" * 2000)
    assert checkpoint.load(tmp_path)["x"].tolist() == [0, 0]
    assert not (tmp_path / "summary.json").exists()


def test_names_are_listed_once_each():
    assert str(unknown("part", "x", ["er", "l2p", "er"])) == "no part 'x'; there are: er, l2p"
    assert str(unknown("part", "L2P", ["er", "l2p"])).startswith("no part 'L2P' (did you mean 'l2p'?)")
