"""Terminals that lack characters: nothing ends in UnicodeEncodeError."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsim.terminal import counted, forgiving


def test_characters_that_a_stream_lacks_are_replaced():
    for encoding, expected in (("ascii", b"81 +- 2 caf\\xe9 \\udce9"), ("latin-1", b"81 \xb1 2 caf\xe9 \\udce9")):
        data = io.BytesIO()
        stream = io.TextIOWrapper(data, encoding=encoding)
        forgiving(stream)
        stream.write("81 ± 2 café \udce9")
        stream.flush()
        assert data.getvalue() == expected
    forgiving(io.StringIO())  # has no encoding, and needs none


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_long_work_shows_on_a_terminal_how_much_is_done(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(counted(iter(range(3)), 3, "reading images")) == [0, 1, 2]
    assert stream.getvalue() == "", "it took less than a second"
    slow = (time.sleep(0.4) or i for i in range(5))
    assert list(counted(slow, 5, "reading images")) == [0, 1, 2, 3, 4]
    shown = stream.getvalue()
    assert ("reading images:" in shown and "/5" in shown and shown.endswith("\r")) if stream.isatty() else shown == ""


def test_a_run_and_a_comparison_on_an_ascii_terminal(tmp_path, encode):
    import numpy as np

    names = ("café", "日本")
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                image = np.full((4, 4, 3), len(split) * 20 + i, dtype=np.uint8)
                (tmp_path / "data" / split / name / f"é{i}.png").write_bytes(encode(image))
    run = ["run", "--scenario", "folder", "--data-dir", str(tmp_path / "data"), "--strategy", "ncm", "--seed", "0,1"]
    run += ["--backbone", "vit_nano", "--out", str(tmp_path / "runs"), "scenario.classes_per_experience=1"]
    for command in (run, ["compare", str(tmp_path / "runs")], [*run, "scenario.exclude=caf"]):
        environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-m", "clsim", *command], capture_output=True, env=environment, check=False
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == (2 if "scenario.exclude=caf" in command else 0)
        (done.stdout + done.stderr).decode("ascii")
    assert b"there are: caf\\xe9, \\u65e5\\u672c" in done.stderr
