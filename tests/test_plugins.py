"""clsim.plugins: finding, reading without running, loading."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import clsim
from clsim import bases, checked, config, plugins, provenance, runner
from clsim.data.streams import Scenario
from clsim.errors import RequestError, RunFailed
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


def test_identity_covers_the_files_of_the_whole_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (plugins.short_name("some/toy.py:Toy"), plugins.short_name("l2p")) == ("toy", "l2p")
    (tmp_path / "clsim_mixin.py").write_text("class Mixin:\n    pass\n")
    base = tmp_path / "clsim_base.py"
    base.write_text("from clsim import Strategy\n\n\nclass Base(Strategy):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "from clsim_base import Base\nfrom clsim_mixin import Mixin\n\n\nclass Mine(Mixin, Base):\n    pass\n"
    (tmp_path / "mine.py").write_text(text)
    name = f"{tmp_path}/mine.py:Mine"
    cls = plugins.load("strategies", name)
    first = plugins.identity(name, cls)
    assert first.startswith("Mine@") and str(tmp_path) not in first
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_bytes(text.replace("\n", "\r\n").encode())
    other = f"{tmp_path}/elsewhere/mine.py:Mine"  # the text counts; neither the path nor how lines end
    assert plugins.identity(other, plugins.load("strategies", other)) == first
    found = {first}
    for file in ("mine.py", "clsim_base.py", "clsim_mixin.py"):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n# changed\n")
        for module in [each for each in sys.modules if each.startswith(("clsim_base", "clsim_mixin", "clsim_file_"))]:
            del sys.modules[module]  # as in a new process
        plugins._imported_text.cache_clear()
        found.add(plugins.identity(name, plugins.load("strategies", name)))
    assert len(found) == 4


def test_a_base_class_edited_after_its_import_is_refused_and_does_not_change_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "clsim_edited_base.py"
    base.write_text("from clsim import Strategy\n\n\nclass Base(Strategy):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("from clsim_edited_base import Base\n\n\nclass Mine(Base):\n    pass\n")
    name = f"{tmp_path}/mine.py:Mine"
    cls = plugins.load("strategies", name)
    first = plugins.identity(name, cls)
    base.write_text(base.read_text() + "\n# changed\n")
    assert plugins.identity(name, cls) == first, "this class was made by the text before the change"
    with pytest.raises(RequestError, match="clsim_edited_base.py was changed after it was imported: start Python"):
        plugins.load("strategies", name)


def test_files_that_a_users_file_imports_from_its_folder_are_part_of_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clsim_deeper.py").write_text("RATE = 1\n")
    helper = tmp_path / "clsim_helper.py"
    helper.write_text("import math\nfrom clsim_deeper import RATE\n\n\ndef weight():\n    return RATE\n")
    text = "from clsim import Strategy\nfrom clsim_helper import weight\n\n\nclass Mine(Strategy):\n    pass\n"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    name, found = f"{tmp_path}/mine.py:Mine", []
    for file in (None, helper, tmp_path / "clsim_deeper.py"):
        if file is not None:
            file.write_text(file.read_text().replace("return RATE", "return 2 * RATE").replace("= 1", "= 3"))
        for module in [
            each for each in sys.modules if each.startswith(("clsim_helper", "clsim_deeper", "clsim_file_"))
        ]:
            monkeypatch.delitem(sys.modules, module)  # as in a new process
        plugins._imported_text.cache_clear()
        found.append(plugins.identity(name, plugins.load("strategies", name)))
    assert len(set(found)) == 3


def test_identity_of_a_built_in_covers_its_family_and_not_the_roots() -> None:
    files = [plugins.describe("strategies", "lora").path, Path(bases.__file__)]
    texts = [provenance.source(file) for file in files]
    assert plugins.identity("lora", plugins.load("strategies", "lora")) == f"lora@{provenance.digest(texts)}"


# parts

PART = """from dataclasses import dataclass
from typing import ClassVar

from clsim import Part, Strategy


@dataclass(kw_only=True)
class Pull(Part):
    \"\"\"A pull.\"\"\"

    weight: float = 1.0  # of the pull
    names: tuple[str, ...] = ()  # several
"""


def test_parts_are_the_files_of_their_folder_that_hold_one_dataclass_of_that_kind() -> None:
    assert {"der", "er", "ewc", "lwf"} <= set(plugins.names("parts"))
    assert not {"heads", "memory", "regularisers", "tuners", "prompts"} & set(plugins.names("parts"))
    der = plugins.describe("parts", "der")
    assert [(field.name, field.default) for field in der.fields] == [("alpha", "0.5"), ("beta", "0.5"), ("size", "500")]
    assert der.short == ("alpha", "beta", "size")
    assert plugins.kinds("er") == ["strategies", "parts"]


def test_an_alias_is_another_name_for_the_same_part() -> None:
    assert "er_per_class" not in plugins.names("parts") and "er_per_class" in plugins.names("parts", aliases=True)
    described = plugins.describe("parts", "er_per_class")
    assert (described.alias_of, described.aliases) == ("er", {"er_per_class": {"per_class": True}})
    assert plugins.load("parts", "er_per_class") is plugins.load("parts", "er")


def test_a_part_from_a_users_file_and_from_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "clsim_part_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pull.py").write_text(PART)
    info = tmp_path / "clsim_part_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clsim-part-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[clsim.parts]\npull = clsim_part_package.pull:Pull\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "pull" in plugins.names("parts")
    file = f"{package}/pull.py:Pull"
    assert plugins.describe("parts", "pull").fields == plugins.describe("parts", file).fields
    assert plugins.load("parts", "pull")(weight=2).weight == plugins.load("parts", file)(weight=2).weight == 2
    assert plugins.kinds(file) == ["parts"]


def test_a_strategy_is_no_part(tmp_path: Path) -> None:
    file = toy_file(tmp_path)
    assert plugins.kinds(f"{file}:Toy") == ["strategies"]
    with pytest.raises(RequestError, match="Toy in .* is no part: it is a strategy"):
        plugins.describe("parts", f"{file}:Toy")


def test_old_names_and_constructors_of_parts_go_on_working() -> None:
    from clsim.parts.memory import DarkExperience, Reservoir
    from clsim.parts.regularisers import Ewc, Lwf

    assert isinstance(Reservoir(7, True), Part) and Reservoir(7, True).capacity == 7
    dark = DarkExperience(0.25, 0.75, 9)
    assert (dark.alpha, dark.beta, dark.memory.capacity) == (0.25, 0.75, 9)
    assert (Ewc(3.0).strength, Lwf(2.0).alpha) == (3.0, 2.0)


def test_a_name_for_choices_is_read_as_the_choices(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text("from typing import Literal\n\nOther = Literal['c', 'd']\nNumber = int\n")
    text = TOY.replace("SIDE_EFFECT", "from .kinds import Number, Other as Some\n\nOwn = Literal['a', 'b']")
    text = text.replace('Literal["a", "b"] | None', "Own | None").replace("lr: float = 0.5", "lr: Some = 'c'")
    file = toy_file(tmp_path, text.replace("size: int", "size: Number"))
    annotations = {field.name: field.annotation for field in plugins.describe("strategies", f"{file}:Toy").fields}
    assert annotations["kind"] == "Literal['a', 'b'] | None"
    assert (annotations["lr"], annotations["size"]) == ("Literal['c', 'd']", "Number")


# what a plug-in does wrong is said in one line, with its name and its method

BAD = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from clsim import Strategy


class Learner(nn.Module):
    def __init__(self, backbone, info):
        super().__init__()
        self.tower = backbone.image
        self.head = nn.Linear(backbone.image.out_dim, info.num_classes)

    def forward(self, batch):
        logits = self.head(self.tower(batch.images))
        return {returned}

{before}
@dataclass(kw_only=True)
class Mine(Strategy):
    {field}

    def build(self, backbone, info):
        {build}

    {method}
"""
PLAIN = {"returned": "logits", "before": "", "field": "size: int = 1", "method": ""}
PLAIN |= {"build": "return Learner(backbone, info)"}

REQUESTS = {
    "build is missing": ({"method": "build = Strategy.build"}, "Mine has no method build(self, backbone, info)"),
    "build returns a dict": ({"build": "return {}"}, "Mine.build must return a torch.nn.Module that maps"),
    "build fails": ({"build": "return {}['x']"}, "strategy 'mine': build failed (", "): KeyError: 'x'"),
    "build ends the process": ({"build": "raise SystemExit(0)"}, "strategy 'mine': build failed (", "SystemExit: 0"),
    "reads an unknown input": ({"method": "reads = lambda self: {'pixels'}"}, "Mine.reads must return", "{'pixels'}"),
    "reads nothing": ({"method": "reads = lambda self: set()"}, 'Mine.reads must return {"images"}, {"features"}'),
    "reads a list": ({"method": "reads = lambda self: ['images']"}, "or both, not ['images']"),
    "__post_init__ fails": ({"method": "__post_init__ = lambda self: 1 / 0"}, "mine: __post_init__ of Mine failed"),
    "an unknown annotation": ({"field": "size: Nope = 1"}, "Mine: the type of one of its fields", "'Nope'"),
    "a type for no value": ({"field": "size: dict = field(default_factory=dict)"}, "Mine.size must be of type"),
    "presets in a list": ({"field": "presets: ClassVar[Any] = ['a']"}, "presets of Mine must be like"),
    "the import ends the process": ({"before": "raise SystemExit(0)"}, "cannot import strategy", "SystemExit: 0"),
}
RUNS = {
    "a dict": (
        {"returned": "{'logits': logits}"},
        "Learner.forward must return (4, 6) floating-point logits",
        "not dict",
    ),
    "too few columns": ({"returned": "logits[:, :4]"}, "not torch.float32 of shape (4, 4)"),
    "too few rows": ({"returned": "logits[:2]"}, "not torch.float32 of shape (2, 6)"),
    "whole numbers": ({"returned": "logits.long()"}, "not torch.int64 of shape (4, 6)"),
    "forward fails": ({"returned": "logits[:, 77]"}, "strategy 'mine': forward failed (", "IndexError"),
    "only in evaluation": (
        {"returned": "logits if self.training else logits[:, 1:]"},
        "not torch.float32 of shape (64, 5)",
    ),
    "no loss": ({"method": "loss = lambda self, s: None"}, "Mine.loss must return a scalar tensor, not NoneType"),
    "a loss for each image": ({"method": "loss = lambda self, s: s.logits[:, 0]"}, "not torch.float32 of shape (4,)"),
    "a constant loss": ({"method": "loss = lambda self, s: torch.zeros(())"}, "depends on no trained parameter"),
    "NaN at once": (
        {"method": "loss = lambda self, s: s.logits.mean() * float('nan')"},
        "Mine: the loss is nan at step 0, before any update: check `loss`",
    ),
    "begin fails": ({"method": "begin = lambda self, learner, experience: 1 / 0"}, "strategy 'mine':", "ZeroDivision"),
}


def asked_for(changes: dict[str, str], folder: Path) -> config.RunConfig:
    (folder / "mine.py").write_text(BAD.format(**PLAIN | changes))
    (made,) = config.plan(
        {
            "scenario": f"{Path(__file__).with_name('toy.py')}:Toy",
            "strategy": f"{folder / 'mine.py'}:Mine",
            "backbone": "vit_nano",
            "out": folder / "runs",
            "precision": "fp32",
            "epochs": 1,
            "batch_size": 4,
        },
        [],
    )
    return made


@pytest.mark.parametrize("case", REQUESTS)
def test_a_wrong_plugin_is_a_mistake_in_the_request(case: str, tmp_path: Path) -> None:
    changes, *messages = REQUESTS[case]
    with pytest.raises(RequestError) as caught:
        runner.run_all([asked_for(changes, tmp_path)], quiet=True)
    assert [text for text in messages if text not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("case", RUNS)
def test_a_plugin_that_goes_wrong_in_a_run_ends_it(case: str, tmp_path: Path) -> None:
    changes, *messages = RUNS[case]
    with pytest.raises(RunFailed) as caught:
        runner.run_all([asked_for(changes, tmp_path)], quiet=True)
    assert [text for text in messages if text not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_parameters_that_no_memory_holds_are_refused_with_their_size(plan: Any, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"L2P would take [\d.]+ [TP]B of memory for its parameters .*this machine has"
    ):
        runner.run_all([plan("l2p", tmp_path, pool_size=10**12)], quiet=True)


def test_the_memory_of_all_parameters_counts() -> None:
    with checked.MemoryLimit("mine", 1000):
        torch.empty(100)
        torch.nn.Parameter(torch.zeros((10, 10)))
        with pytest.raises(RequestError, match=r"mine would take 1.2 kB .* shape \(5, 20\)\), and .* 1 kB"):
            torch.rand(size=(5, 20))
