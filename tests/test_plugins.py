"""clsim.plugins: finding, reading without running, loading."""

import dataclasses
import sys
from pathlib import Path

import pytest

import clsim
from clsim import plugins
from clsim.data.streams import Scenario
from clsim.errors import RequestError
from clsim.events import Part
from clsim.strategy import Strategy

TOY = '''"""The module's own words."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from clsim import Strategy

SIDE_EFFECT


class _Helper(Strategy):
    pass


@dataclass
class Toy(Strategy):
    """A toy. After Nobody 1999.

    More about it.
    """

    size: int = 3  # things in the toy; é # twice
    kind: Literal["a", "b"] | None = None  # which
    lr: float = 0.5
    names: tuple[str, ...] = field(default=("x",))  # several
    needed: "int"  # no default
    word: str = (
        "a # in a text"  # where a formatter has put it
    )
    hidden: int = field(init=False, default=0)  # not configured

    presets: ClassVar[dict[str, dict[str, object]]] = {"big": {"size": 9, "backbone": "vit_nano"}}
'''


def toy_file(folder: Path, text: str = TOY, side_effect: str = "", name: str = "toy.py") -> Path:
    file = folder / name
    file.write_text(
        text.replace("SIDE_EFFECT", side_effect).replace("@dataclass\nclass Toy", "@dataclass(kw_only=True)\nclass Toy")
    )
    return file


def test_describe_reads_fields_defaults_and_comments_without_running(tmp_path: Path) -> None:
    file = toy_file(tmp_path, side_effect='raise SystemExit("this file was run")')
    toy = plugins.describe("strategies", f"{file}:Toy")
    assert (toy.class_name, toy.path, toy.summary) == ("Toy", file, "A toy. After Nobody 1999.")
    assert toy.doc == "A toy. After Nobody 1999.\n\nMore about it."
    own = [field for field in toy.fields if not field.inherited]
    learning_rate = next(field for field in plugins.describe("strategies", "finetune").fields if field.name == "lr")
    assert own == [
        plugins.Field("lr", "float", "0.5", own[0].meaning),  # first: it overrides, and keeps its place and meaning
        plugins.Field("size", "int", "3", "things in the toy; é # twice"),
        plugins.Field("kind", "Literal['a', 'b'] | None", "None", "which"),
        plugins.Field("names", "tuple[str, ...]", "('x',)", "several"),
        plugins.Field("needed", "int", None, "no default"),
        plugins.Field("word", "str", "'a # in a text'", "where a formatter has put it"),
    ]
    assert own[0].meaning == learning_rate.meaning != ""
    assert toy.presets == {"big": {"size": 9, "backbone": "vit_nano"}}
    inherited = {field.name for field in toy.fields if field.inherited}
    assert inherited == {field.name for field in dataclasses.fields(Strategy)} - {"lr"}


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_what_is_read_is_what_python_makes_of_it(kind: plugins.Kind) -> None:
    assert plugins.names(kind)
    for name in plugins.names(kind):
        described, cls = plugins.describe(kind, name), plugins.load(kind, name)
        assert issubclass(cls, {"strategies": Strategy, "scenarios": Scenario, "parts": Part}[kind])
        assert [field.name for field in described.fields] == [
            field.name for field in dataclasses.fields(cls) if field.init
        ]
        assert described.summary, f"{name} has no docstring"
        assert all(field.meaning for field in described.fields), f"{name}: a field without a comment"
        if kind == "strategies":
            assert described.presets == cls.presets


def test_builtin_folders_hold_one_plugin_a_file_and_skip_underscores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strategies").mkdir()
    toy_file(tmp_path / "strategies")
    toy_file(tmp_path / "strategies", name="_shared.py")
    monkeypatch.setattr(clsim, "__path__", [str(tmp_path)])
    assert plugins.names("strategies") == ["toy"]
    assert plugins.names("scenarios") == []
    assert plugins.describe("strategies", "toy").class_name == "Toy"
    assert plugins.kinds("toy") == ["strategies"]


def test_two_plugins_of_one_file_or_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "strategies").mkdir(parents=True)
        toy_file(tmp_path / folder / "strategies")
    toy_file(tmp_path / "one" / "strategies", TOY + "\n\nclass Other(Strategy):\n    pass\n", name="pair.py")
    monkeypatch.setattr(clsim, "__path__", [str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(RequestError, match="2 public classes that inherit from Strategy \\(Toy, Other\\)"):
        plugins.describe("strategies", "pair")
    with pytest.raises(RequestError, match="more than one strategy is called 'toy'"):
        plugins.describe("strategies", "toy")


def test_entry_points_are_found_without_importing_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "clsim_toy_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    toy_file(package / "inner")
    info = tmp_path / "clsim_toy_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clsim-toy-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[clsim.strategies]\nboxed = clsim_toy_package.inner.toy:Toy\nlost = clsim_toy_package.gone:Gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"boxed", "lost", "l2p"} <= set(plugins.names("strategies"))
    described = plugins.describe("strategies", "boxed")
    assert described.path == package / "inner" / "toy.py"
    (package / "inner" / "below.py").write_text(
        "from .. import inner\nfrom . import toy\nfrom .toy import Toy\n\n\n"
        "class One(Toy):\n    pass\n\n\nclass Two(toy.Toy):\n    pass\n\n\nclass Three(inner.toy.Toy):\n    pass\n"
    )
    for name in ("One", "Two", "Three"):
        assert plugins.describe("strategies", f"{package}/inner/below.py:{name}").fields == described.fields
    assert "clsim_toy_package" not in sys.modules
    cls = plugins.load("strategies", "boxed")
    assert cls.__module__ == "clsim_toy_package.inner.toy"
    with pytest.raises(RequestError, match=r"cannot read clsim_toy_package.gone\.py"):
        plugins.describe("strategies", "lost")


def test_load_takes_a_file_once_for_each_text(tmp_path: Path) -> None:
    name = f"{toy_file(tmp_path)}:Toy"
    first = plugins.load("strategies", name)
    assert issubclass(first, Strategy) and first(needed=1).lr == 0.5
    assert plugins.load("strategies", name) is first
    toy_file(tmp_path, TOY.replace("lr: float = 0.5", "lr: float = 0.25"))
    assert plugins.load("strategies", name)(needed=1).lr == 0.25


def test_unknown_name_gives_the_nearest_and_the_list() -> None:
    with pytest.raises(RequestError, match=r"no strategy 'finetun' \(did you mean 'finetune'\?\); there are: .*l2p"):
        plugins.load("strategies", "finetun")
    with pytest.raises(RequestError, match=r"no scenario 'split_digit' \(did you mean 'split_digits'\?\)"):
        plugins.describe("scenarios", "split_digit")


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("def broken(:\n", "Toy", "toy.py, line 1: "),
        ("\0", "Toy", "toy.py"),
        (TOY, "Toi", r"no class in .* called 'Toi' \(did you mean 'Toy'\?\)"),
        ("class Toy:\n    pass\n", "Toy", "Toy in .* is no strategy: Strategy is not among its bases"),
        (TOY, "", "needs the name of a class"),
        (TOY.replace("9", "int(9)"), "Toy", "presets of Toy must be a literal"),
    ],
)
def test_a_file_that_is_no_plugin_says_why(tmp_path: Path, text: str, wanted: str, message: str) -> None:
    file = toy_file(tmp_path, text)
    with pytest.raises(RequestError, match=message):
        plugins.describe("strategies", f"{file}:{wanted}" if wanted else str(file))


def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read .*nowhere.py"):
        plugins.load("strategies", f"{tmp_path}/nowhere.py:Toy")
    file = toy_file(tmp_path, side_effect="import clsim_no_such_module")
    with pytest.raises(RequestError, match=r"cannot import strategy .*ModuleNotFoundError: .*clsim_no_such_module"):
        plugins.load("strategies", f"{file}:Toy")
    file = toy_file(tmp_path, TOY + "\n    def before_trainig(self, s):\n        pass\n")
    with pytest.raises(RequestError, match="before_trainig names no event"):
        plugins.load("strategies", f"{file}:Toy")
    file.write_text("from clsim import Strategy\n\n\nclass Toy(Strategy):\n    size: int = 3\n")
    with pytest.raises(RequestError, match="put @dataclass above the class"):
        plugins.load("strategies", f"{file}:Toy")


def test_kind_of_a_file_follows_its_bases(tmp_path: Path) -> None:
    file = toy_file(tmp_path, "import clsim\n\n\nclass Mine(clsim.Scenario):\n    pass\n\n\nclass Neither:\n    pass\n")
    assert plugins.kinds(f"{file}:Mine") == ["scenarios"]
    assert plugins.kinds(f"{file}:Neither") == ["strategies"]
    assert plugins.kinds(f"{toy_file(tmp_path)}:Toy") == ["strategies"]
    assert plugins.kinds("nothing_of_this_name") == []


BELOW = """
from dataclasses import dataclass
from typing import ClassVar

IMPORT


@dataclass(kw_only=True)
class CoOp(BASE):
    \"\"\"CoOp with a twist.\"\"\"

    twist: float = 0.5  # how much
    context_length: int = 8
    presets: ClassVar[dict[str, dict[str, object]]] = {"twisted": {"twist": 1.0}}


@dataclass(kw_only=True)
class Further(CoOp):
    lr: float = 0.25
"""


@pytest.mark.parametrize(
    ("imported", "base"),
    [
        ("from clsim.strategies.coop import CoOp", "CoOp"),
        ("from clsim.strategies.coop import CoOp as Theirs", "Theirs"),
        ("from clsim.strategies import coop", "coop.CoOp"),
        ("import clsim.strategies.coop", "clsim.strategies.coop.CoOp"),
        ("import clsim.strategies.coop as coop", "coop.CoOp"),
        ("from clsim_again import CoOp", "CoOp"),  # which imports it itself
    ],
)
def test_a_strategy_may_stand_below_another(
    imported: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clsim_again.py").write_text("from clsim.strategies.coop import CoOp as CoOp\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(BELOW.replace("IMPORT", imported).replace("BASE", base))
    theirs = plugins.describe("strategies", "coop")
    for name, own in (("CoOp", {"twist", "context_length"}), ("Further", {"twist", "context_length", "lr"})):
        described, cls = plugins.describe("strategies", f"{file}:{name}"), plugins.load("strategies", f"{file}:{name}")
        assert [field.name for field in described.fields] == [field.name for field in dataclasses.fields(cls)]
        defaults = {field.name: field.default for field in described.fields}
        assert defaults == {field.name: field.default for field in theirs.fields} | {
            name: repr(getattr(cls(), name)) for name in own
        }
        meaning = {field.name: field.meaning for field in described.fields}
        assert meaning == {field.name: field.meaning for field in theirs.fields} | {"twist": "how much"}
        assert described.presets == cls.presets == {"twisted": {"twist": 1.0}}
        assert plugins.kinds(f"{file}:{name}") == ["strategies"]


@pytest.mark.parametrize(
    "text",
    [
        "class Toy(Lost):\n    pass\n",  # nothing of that name
        "class Toy(Toy):\n    pass\n",
        "from clsim_no_such_module import Base\n\n\nclass Toy(Base):\n    pass\n",
        "from math import sin\n\n\nclass Toy(sin):\n    pass\n",  # a module without text
        "import enum\n\n\nclass Toy(enum.Enum):\n    pass\n",
    ],
)
def test_a_class_below_no_strategy_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "toy.py"
    file.write_text(text)
    with pytest.raises(RequestError, match="Toy in .* is no strategy: Strategy is not among its bases"):
        plugins.describe("strategies", f"{file}:Toy")


def test_label_and_identity(tmp_path: Path) -> None:
    file = toy_file(tmp_path)
    name = f"{file}:Toy"
    assert (plugins.label(name), plugins.label("l2p")) == ("toy", "l2p")
    assert plugins.identity("l2p") == "l2p"
    first = plugins.identity(name)
    assert first.startswith("Toy@") and str(tmp_path) not in first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert plugins.identity(f"{toy_file(elsewhere)}:Toy") == first  # the text counts, the path does not
    file.write_text(file.read_text() + "\n# changed\n")
    assert plugins.identity(name) != first
