"""clsim.completion: what bash offers, asked of bash itself, and the scripts of the other shells."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from clsim import arguments, cli, listing, plugins
from clsim.backbones import registry
from clsim.options import OPTIONS, flag


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """The words that bash offers for the last of some words."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "clsim"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clsim "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])

    def ask(*words):
        code = (
            'source <(clsim completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _clsim;'
            'printf "%s\\n" "${COMPREPLY[@]}"; complete -p clsim >&2'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", code, "bash", "clsim", *words],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "complete -o default -F _clsim clsim\n"
        return done.stdout.split()

    return ask


def test_commands_and_options(offered):
    _, parsers = arguments.parsers()
    assert offered("") == list(parsers)
    assert offered("ru") == ["run", "runs"]
    assert set(offered("run", "--")) == {"--help", *parsers["run"].known} > {flag(name) for name in OPTIONS}
    assert offered("verify", "some/run", "--ev") == ["--evaluate"]


def test_names_come_from_the_registry(offered):
    assert offered("run", "--strategy", "") == plugins.names("strategies")
    assert offered("tune", "--scenario", "split_") == [n for n in plugins.names("scenarios") if n.startswith("split_")]
    assert offered("run", "--backbone", "=", "vit_m") == [n for n in registry.BUNDLED if n.startswith("vit_m")]
    assert offered("run", "--with", "er") == [n for n in plugins.names("parts") if n.startswith("er")]
    assert offered("run", "--strategy", "linear,nc") == ["linear,ncm"]
    assert offered("show", "zero") == ["zero_shot"]
    assert offered("list", "") == list(listing.SECTIONS)


def test_choices_and_files(offered):
    assert offered("compare", "--format", "") == ["table", "md", "csv", "json"]
    assert offered("completion", "") == ["bash", "zsh", "fish"]
    for words in (("run", "--data-dir", ""), ("runs", ""), ("run", "--note", "a")):
        assert offered(*words) == [], "bash offers files"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_has_every_command_and_option_and_parses(shell, tmp_path, capsys):
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name, parser in arguments.parsers()[1].items():
        assert re.search(rf"\b{name}\b", text)
        for option in parser.known:
            assert (f"-l {option[2:]}" if shell == "fish" else option) in text
    for section in listing.SECTIONS:
        assert f"clsim list {section}" in text
    assert "@" not in text.replace("$@", "")
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0


def test_texts_are_quoted_for_fish(capsys):
    assert cli.main(["completion", "fish"]) == 0
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert len(re.findall(r"(?<!\\)'", line)) % 2 == 0, line


def test_other_shells_are_refused(capsys):
    assert cli.main(["completion", "csh"]) == cli.MISTAKE
    assert "csh" in capsys.readouterr().err
