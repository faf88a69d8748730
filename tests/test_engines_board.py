"""What is shown while many runs go on."""

import io
import json
import sys

import pytest
import rich.console
from test_engines_local import configs_of

from clsim.engines.base import Planned
from clsim.engines.board import Board


@pytest.fixture
def runs(tmp_path):
    """Three planned runs, of which the first two have a journal."""
    configs = configs_of(tmp_path, "ncm", seed="0-2")
    planned = [Planned(each, tmp_path / "toy" / "ncm" / f"vit_nano-s{each.seed}-0123abcd", False) for each in configs]
    for run in planned[:2]:
        run.directory.mkdir(parents=True)
        write(run, {"event": "start", "experiences": 10})
    return planned


def write(run, *records, mode="a"):
    with (run.directory / "events.jsonl").open(mode) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def shown(board):
    """The live table as text."""
    out = rich.console.Console(file=io.StringIO(), width=120)
    out.print(board._table())
    return [line.split() for line in out.file.getvalue().splitlines() if line.strip()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_table_follows_the_journals(runs, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Board(runs, 4, quiet=False) as board:
        board.began(0)
        board.began(1)
        assert shown(board)[0] == ["4", "done,", "2", "running,", "1", "left"]
        write(runs[0], {"event": "step", "loss": 1.0}, {"event": "evaluation", "experience": 3})
        name = "toy/ncm/vit_nano-s0-0123abcd"
        assert shown(board)[1][:5] == [name, "experience", "4", "of", "10"]
        write(runs[0], {"event": "start", "experiences": 10}, mode="w")  # it was started again
        assert shown(board)[1][:5] == [name, "experience", "1", "of", "10"]
        board.ended(0, None, "the reason")
        board.began(1, "its worker process was killed")
        assert shown(board) == [["4", "done,", "0", "running,", "2", "left,", "1", "failed"]]
        assert board._live is not None and "\x1b" in sys.stderr.getvalue()
    assert f"failed: {name}: the reason" in sys.stderr.getvalue()


def test_without_a_terminal_each_event_is_a_plain_line_and_quiet_shows_failures_only(runs, capsys):
    for quiet in (False, True):
        with Board(runs, 0, quiet) as board:
            board.began(2)
            board.began(2, "its worker process was killed")
            board.ended(2, None, "the reason")
        said = capsys.readouterr()
        assert said.err == "failed: toy/ncm/vit_nano-s2-0123abcd: the reason\n"
        assert said.out.splitlines() == (
            []
            if quiet
            else [
                "begins: toy/ncm/vit_nano-s2-0123abcd",
                "toy/ncm/vit_nano-s2-0123abcd: its worker process was killed; it is started again",
            ]
        )
