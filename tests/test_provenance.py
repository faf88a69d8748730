"""clsim.provenance: which code made a result."""

import subprocess
import sys
from pathlib import Path

import pytest

from clsim import provenance


def test_the_digest_covers_clsims_own_files_and_no_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("loop.py", "parts/heads.py", "strategies/l2p.py", "scenarios/pacs.py", "__pycache__/loop.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)

    def digest() -> str:
        return provenance.code_digest.__wrapped__()

    first = digest()
    assert len(first) == 12 and int(first, 16) >= 0
    for name in ("strategies/l2p.py", "scenarios/pacs.py", "__pycache__/loop.pyc"):
        (tmp_path / name).write_text("x = 2\n")
    (tmp_path / "loop.py").write_bytes(b"x = 1\r\n")  # a checkout of another system
    assert digest() == first
    (tmp_path / "parts" / "heads.py").write_text("x = -1\n")
    second = digest()
    (tmp_path / "loop.py").rename(tmp_path / "loops.py")
    assert len({first, second, digest()}) == 3


def test_the_digest_is_the_same_in_another_process_and_needs_no_torch() -> None:
    code = "import sys; from clsim.provenance import code_digest; print(code_digest(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [provenance.code_digest(), "False"]
