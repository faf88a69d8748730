"""clsim.config and clsim.field_values: types, precedence, the grammar of fields, and the file that a run writes."""

import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Union

import pytest

from clsim import config, options, plugins
from clsim.config import RunConfig, plan
from clsim.errors import RequestError
from clsim.field_values import check, make
from clsim.named_parts import named_part, split

STRATEGY = '''from dataclasses import dataclass
from typing import ClassVar, Literal

from clsim import Strategy


@dataclass(kw_only=True)
class {name}(Strategy):
    """A toy."""

    size: int = 3  # at least 1
    {own}: float = 0  # of this one only
    kind: Literal["a", "b"] | None = None  # which
    names: tuple[str, ...] = ()  # several
    text: str = "quoted \\" é \\\\ \\t \\x7f"  # hard to write down

    presets: ClassVar[dict[str, dict[str, object]]] = {presets}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {{self.size}}")
'''
SCENARIO = '''from dataclasses import dataclass

from clsim import Scenario


@dataclass(kw_only=True)
class Stream(Scenario):
    """A toy stream."""

    pairs: int | None = None  # pairs
    size: int = 1  # a name that the strategy has, too
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Options that ask for two toy strategies, `one` and `two`, on the toy scenario."""
    monkeypatch.delenv("CLSIM_DATA_DIR", raising=False)
    presets = '{"big": {"size": 9, "lr": 0.5, "backbone": "vit_nano"}, "plain": {}}'
    (tmp_path / "one.py").write_text(STRATEGY.format(name="One", own="alpha", presets=presets))
    (tmp_path / "two.py").write_text(STRATEGY.format(name="Two", own="beta", presets="{}"))
    (tmp_path / "stream.py").write_text(SCENARIO)
    return {
        "scenario": f"{tmp_path}/stream.py:Stream",
        "strategy": f"{tmp_path}/one.py:One,{tmp_path}/two.py:Two",
    }


def one(toys: dict[str, str], **options: Any) -> dict[str, Any]:
    """Options that ask for the first toy only."""
    return {**toys, "strategy": toys["strategy"].partition(",")[0], **options}


def config_of(toys: dict[str, str], *fields: str, **options: Any) -> RunConfig:
    (found,) = plan(one(toys, **options), fields)
    return found


# values


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("true", bool, True),
        ("No", bool, False),
        ("1", bool, True),
        (False, bool, False),
        ("12", int, 12),
        ("-1", int, -1),
        ("1e-3", float, 0.001),
        (2, float, 2.0),
        ("none", str, "none"),
        ("x=1", str, "x=1"),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2, "all"], 2),
        ("none", int | None, None),
        (None, Union[float, None], None),  # noqa: UP007
        ("7", int | None, 7),
        ("a", Literal["a", "b"] | None, "a"),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("", tuple[str, ...], ()),
        ([1, 2], tuple[int, ...], (1, 2)),
        (3, tuple[int, ...], (3,)),
        ("3,x", tuple[int, str], (3, "x")),
        ("all", int | str, "all"),
    ],
)
def test_check_converts(value: Any, annotation: Any, expected: Any) -> None:
    found = check(value, annotation, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("maybe", bool, "x must be true or false, not 'maybe'"),
        (1, bool, "x must be true or false, not 1"),
        ("1.5", int, "x must be a whole number, not '1.5'"),
        (True, int, "x must be a whole number, not True"),
        ("fast", float, "x must be a number, not 'fast'"),
        ("nan", float, "x must be a number, not 'nan'"),
        (3, str, "x must be text, not 3"),
        ("some", int | None, "x must be a whole number or none, not 'some'"),
        ("1,b", tuple[int, ...], r"x must be a list \(with commas\), each a whole number, not '1,b'"),
        ("1", tuple[int, str], "x must be 2 values with commas: a whole number, text, not '1'"),
        ("adm", Literal["adam", "sgd"], r"no choice of x 'adm' \(did you mean 'adam'\?\); there are: adam, sgd"),
        ("c", Literal["a", "b"] | None, "no choice of x 'c'; there are: a, b, none"),
        ("1", dict, "cannot be configured"),
    ],
)
def test_check_says_what_was_expected(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(value, annotation, "x")


@dataclass
class Plugin:
    needed: int
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.top_k > 10:
            raise ValueError(f"top_k={self.top_k} is above 10")


def test_make_builds_and_names_the_plugin_in_its_errors() -> None:
    assert make(Plugin, {"needed": "1", "top_k": "3"}, "plug") == Plugin(1, 3)
    for values, message in (
        ({"needed": 1, "topk": 3}, r"^plug: no field 'topk' \(did you mean 'top_k'\?\); there are: needed, top_k$"),
        ({"needed": 1, "top_k": "x"}, "^plug: top_k must be a whole number, not 'x'$"),
        ({"needed": 1, "top_k": 11}, "^plug: top_k=11 is above 10$"),
        ({}, "^plug: needed has no default: give needed=VALUE$"),
    ):
        with pytest.raises(RequestError, match=message):
            make(Plugin, values, "plug")


# the grammar of fields


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLSIM_DATA_DIR", raising=False)
    (found,) = plan({}, [])
    assert (found.scenario, found.strategy, found.backbone) == ("split_digits", "l2p", "vit_micro")
    assert (found.seed, found.device, found.precision, found.threads) == (0, "auto", "auto", None)
    assert (found.out, found.data_dir, found.weights, found.preset, found.parts) == (Path("runs"), None, None, None, ())
    assert found.strategy_fields["epochs"] == 5
    assert found.scenario_fields["train_per_class"] is None


def test_fields_find_their_owners(toys: dict[str, str]) -> None:
    fields = ["size=4", "alpha=0.5", "two.size=5", "scenario.size=7", "names=x,y"]
    first, second = plan({**toys, "epochs": "2", "batch_size": 8}, fields)
    assert (first.strategy_fields["size"], second.strategy_fields["size"]) == (4, 5)
    assert first.strategy_fields["alpha"] == 0.5 and "alpha" not in second.strategy_fields
    assert second.strategy_fields["beta"] == 0.0
    for each in (first, second):
        assert each.scenario_fields["size"] == 7
        assert (each.strategy_fields["epochs"], each.strategy_fields["batch_size"]) == (2, 8)
        assert each.strategy_fields["names"] == ("x", "y")


def test_every_strategy_with_every_seed_once(toys: dict[str, str]) -> None:
    found = plan({**toys, "seed": "2,0,2"}, {})
    assert [(each.strategy.rpartition(":")[2], each.seed) for each in found] == [
        ("One", 2),
        ("One", 0),
        ("Two", 2),
        ("Two", 0),
    ]
    assert [each.seed for each in plan(one(toys, seed=[3, 3]), {})] == [3]
    assert [each.seed for each in plan(one(toys, seed=3), {"size": 2})] == [3]
    assert [each.seed for each in plan(one(toys, seed="0-2,5"), {})] == [0, 1, 2, 5]
    assert [each.seed for each in plan(one(toys, seed=["8-9", 1]), {})] == [8, 9, 1]


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({}, ["sise=1"], r"^one, two has no field 'sise' \(did you mean size\?\); own fields: .*alpha"),
        ({}, ["pairs=1"], "^pairs is a field of the scenario: write scenario.pairs=1$"),
        ({}, ["pair=1"], r"did you mean scenario.pairs\?"),
        ({}, ["seed=1"], "^seed is an option: write --seed 1$"),
        ({}, ["data-dir=x"], "^data-dir is an option: write --data-dir x$"),
        ({}, ["two.alpha=1"], r"^two: no field 'alpha'"),
        (
            {},
            ["tow.size=1"],
            r"^no strategy in this run 'tow' \(did you mean 'two'\?\); there are: one, scenario, two$",
        ),
        ({}, ["scenario.sizes=1"], r"^stream: no field 'sizes' \(did you mean 'size'\?\)"),
        ({}, ["scenario.size=x"], "^stream: size must be a whole number, not 'x'$"),
        ({}, ["size=0"], "^one: size must be at least 1, not 0$"),
        ({}, ["kind=c"], "^one: no choice of kind 'c'; there are: a, b, none$"),
        ({}, ["size"], "^'size' is neither an option nor a field with a value"),
        ({"epochs": "0"}, [], "^one: epochs must be at least 1, not 0$"),
        ({"epochs": "two"}, [], "^one: epochs must be a whole number, not 'two'$"),
        ({"preset": "bigg"}, [], r"^no preset of one, two 'bigg' \(did you mean 'big'\?\); there are: big, plain$"),
        ({"seed": "-1"}, [], "^seed must be one or more whole numbers of at least 0, not '-1'$"),
        ({"seed": ""}, [], "^seed must be one or more"),
        ({"seed": "4-0"}, [], "^seed must be one or more"),
        ({"seed": "0-1-2"}, [], "^seed must be a list"),
        ({"seed": "a"}, [], "^seed must be a list .with commas., each a whole number, not 'a'$"),
        ({"strategy": "finetun"}, [], r"^no strategy 'finetun' \(did you mean 'finetune'\?\)"),
        ({"strategy": ","}, [], "^no strategy is named$"),
        ({"scenario": "split_digit"}, [], r"^no scenario 'split_digit' \(did you mean 'split_digits'\?\)"),
        ({"with": "err:5"}, [], r"^no part 'err' \(did you mean 'er'\?\)"),
        ({"with": "size=5"}, [], "^--with size=5: name the part before its fields: PART,size=5$"),
        (
            {"with": "der,alfa=1"},
            [],
            r"^--with der,alfa=1: no field 'alfa' \(did you mean 'alpha'\?\); there are: alpha",
        ),
        ({"with": "der,alpha=x"}, [], "^--with der,alpha=x: alpha must be a number, not 'x'$"),
        ({"with": "mine.py"}, [], "^mine.py needs the name of a class"),
        ({"checkpoint_minutes": "-1"}, [], "^checkpoint_minutes must be at least 0, not -1.0$"),
        ({"eval_every": 0}, [], "^eval_every must be at least 1, not 0$"),
        ({"validation": 0}, [], "^validation must be at least 1, not 0$"),
        ({"validation": "some"}, [], "^validation must be "),
        ({"image_size": "x"}, [], "^image_size must be a whole number or none, not 'x'$"),
        ({}, ["--sed=1"], r"^no option '--sed' \(did you mean '--seed'\?\)"),
        ({}, ["--sise=1"], r"^no option '--sise' \(did you mean '--size'\?\)"),
        ({}, ["--two.alpha=1"], "^two: no field 'alpha'"),
        ({"device": "gpu"}, [], "^device must be auto, cpu, cuda, cuda:N or mps, not 'gpu'$"),
        ({"precision": "bf61"}, [], r"^no choice of precision 'bf61' \(did you mean 'bf16'\?\)"),
        ({"threads": "0"}, [], "^threads must be at least 1, not 0$"),
        ({"weights": "no.safetensors"}, [], "^no weights file no.safetensors$"),
        ({"sed": 1}, [], r"^no option 'sed' \(did you mean 'seed'\?\)"),
    ],
)
def test_mistakes(toys: dict[str, str], options: dict[str, Any], fields: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan({**toys, **options}, fields)


def test_two_strategies_of_one_short_name_are_refused(toys: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "copy.py").write_text((tmp_path / "one.py").read_text())
    with pytest.raises(RequestError, match="have the same short name"):
        plan({**toys, "strategy": f"{tmp_path}/one.py:One,{tmp_path}/copy.py:One"}, [])


# precedence


def test_defaults_then_preset_then_toml_then_command_line(toys: dict[str, str], tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("[strategy]\nlr = 0.25\nweight_decay = 0.1\n")
    (found,) = plan(one(toys, preset="big"), ["weight_decay=0.2"], toml)
    values = found.strategy_fields
    assert (values["momentum"], values["size"], values["lr"], values["weight_decay"]) == (0.9, 9, 0.25, 0.2)
    assert found.backbone == "vit_nano"
    assert config_of(toys, preset="big", backbone="vit_micro").backbone == "vit_micro"
    first, second = plan({**toys, "preset": "big"}, [])  # the second has no such preset, and keeps its defaults
    assert (first.strategy_fields["size"], second.strategy_fields["size"]) == (9, 3)
    assert (first.backbone, second.backbone) == ("vit_nano", "vit_micro")


def test_toml_with_several_strategies(toys: dict[str, str], tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    listed = toys["strategy"].split(",")
    toml.write_text(
        f"scenario = '{toys['scenario']}'\nstrategy = {listed}\nseed = [0, 1]\nepochs = 2\nbatch-size = 4\n"
        "with = ['er:5']\ndata-dir = '/data'\n\n[one]\nsize = 6\nalpha = 1\n\n[two]\nkind = 'b'\n"
    )
    found = plan({}, [], toml)
    assert [each.seed for each in found] == [0, 1, 0, 1]
    first, second = found[0], found[2]
    assert (first.strategy_fields["size"], first.strategy_fields["alpha"], first.strategy_fields["kind"]) == (
        6,
        1.0,
        None,
    )
    assert (second.strategy_fields["size"], second.strategy_fields["kind"]) == (3, "b")
    assert (first.parts, first.data_dir) == (("er:5",), Path("/data"))
    assert (first.strategy_fields["epochs"], second.strategy_fields["batch_size"]) == (2, 4)
    (alone,) = plan({"strategy": listed[1], "seed": "5", "epochs": 3}, ["size=8"], toml)  # [one] waits for its return
    assert (alone.seed, alone.strategy_fields["size"], alone.strategy_fields["epochs"]) == (5, 8, 3)
    with pytest.raises(RequestError, match="no strategy in this run 'one'"):
        plan({"strategy": listed[1]}, ["one.size=8"], toml)


def test_toml_tables_with_names(toys: dict[str, str], tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    single = one(toys)["strategy"]
    toml.write_text(f"[scenario]\nname = '{toys['scenario']}'\npairs = 3\n[strategy]\nname = '{single}'\nsize = 2\n")
    (found,) = plan({}, [], toml)
    assert (found.scenario, found.scenario_fields["pairs"]) == (toys["scenario"], 3)
    assert (found.strategy, found.strategy_fields["size"]) == (single, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1\n", r"run.toml: no key 'sed' \(did you mean 'seed'\?\)"),
        ("seed = \n", "run.toml: "),
        ("[three]\nsize = 1\n", "run.toml: no strategy in this run 'three'"),
        ("[strategy]\nsise = 1\n", r"run.toml: one has no field 'sise' \(did you mean size\?\)"),
        ("[strategy]\nsize = 'x'\n", "one: size must be a whole number, not 'x'"),
        ("[strategy]\nsize = 1.0\n", "one: size must be a whole number, not 1.0"),
    ],
)
def test_mistakes_in_toml(toys: dict[str, str], tmp_path: Path, text: str, message: str) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(text)
    with pytest.raises(RequestError, match=message):
        plan(one(toys), [], toml)


def test_missing_toml(toys: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no file .*none.toml \(--config\)"):
        plan(toys, [], tmp_path / "none.toml")


def test_environment_stands_in_for_data_dir(toys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLSIM_DATA_DIR", "/from/environment")
    assert config_of(toys).data_dir == Path("/from/environment")
    assert config_of(toys, data_dir="/given").data_dir == Path("/given")
    monkeypatch.setenv("CLSIM_CACHE_DIR", "/cache")
    assert config.cache_dir() == Path("/cache")
    monkeypatch.delenv("CLSIM_CACHE_DIR")
    assert config.cache_dir() == Path.home() / ".cache" / "clsim"


def test_strategies_that_need_text_get_a_backbone_with_text(toys: dict[str, str], tmp_path: Path) -> None:
    text = (
        (tmp_path / "one.py").read_text().replace("    presets:", "    needs_text: ClassVar[bool] = True\n    presets:")
    )
    (tmp_path / "one.py").write_text(text)
    assert [each.backbone for each in plan(toys, [])] == ["clip_micro", "vit_micro"]


# what a run writes


def test_toml_round_trip(toys: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    wanted = config_of(
        toys,
        "alpha=1e-05",
        "names=x,y",
        "kind=b",
        "scenario.pairs=2",
        preset="big",
        seed=7,
        weights=str(tmp_path / "w.safetensors"),
        data_dir="/d",
        image_size=64,
        eval_every=100,
        validation=2,
        note='a "remark", in one line',
        checkpoint_minutes=2,
        **{"with": "er:5,er_per_class:2,der,alpha=1"},
    )
    assert wanted.parts == ("er:5", "er_per_class:2", "der:1:0.5:500")
    for each in (wanted, config_of(toys), replace(wanted, device="cpu", precision="fp32", threads=2)):
        assert RunConfig.from_toml(each.to_toml()) == each
        (tmp_path / "config.toml").write_text(each.to_toml())
        (again,) = plan({}, [], tmp_path / "config.toml")
        assert again == each
        assert again.hash("w", "d") == each.hash("w", "d")
    text = wanted.to_toml()
    assert (
        'threads = "none"' in text and "pairs = 2" in text and 'names = ["x", "y"]' in text and "momentum = 0.9" in text
    )


def test_hash_covers_what_can_change_a_result(toys: dict[str, str], tmp_path: Path) -> None:
    first = replace(config_of(toys), device="cpu", precision="fp32", threads=2)
    digest = first.hash("weights", "data")
    assert len(digest) >= 8 and int(digest, 16) >= 0
    same = [
        replace(first, out=Path("elsewhere")),
        replace(first, data_dir=Path("elsewhere")),
        replace(first, weights=Path("elsewhere")),
        replace(first, preset="plain"),
        replace(first, checkpoint_minutes=1.0),
        replace(first, note="a remark"),
        replace(first, parts=()),
    ]
    other = [
        replace(first, seed=1),
        replace(first, precision="bf16"),
        replace(first, device="cuda:0"),
        replace(first, threads=1),
        replace(first, threads=None),
        replace(first, image_size=64),
        replace(first, eval_every=10),
        replace(first, validation=2),
        replace(first, validation="all"),
        replace(first, parts=("er:5",)),
        replace(first, parts=("er:6",)),
        replace(first, parts=("er_per_class:5",)),
        replace(first, backbone="vit_nano"),
        replace(first, strategy_fields={**first.strategy_fields, "lr": 0.5}),
        replace(first, scenario_fields={**first.scenario_fields, "size": 2}),
    ]
    assert {each.hash("weights", "data") for each in same} == {digest}
    assert replace(first, device="cuda:0").hash() == replace(first, device="cuda:1").hash()
    digests = [each.hash("weights", "data") for each in other] + [first.hash("other", "data"), first.hash("weights")]
    assert len({digest, *digests}) == len(digests) + 1
    (tmp_path / "one.py").write_text((tmp_path / "one.py").read_text() + "\n# other code\n")
    assert first.hash("weights", "data") == digest, "its strategy was made by the text before the change"
    edited = replace(config_of(toys), device="cpu", precision="fp32", threads=2)
    assert edited.hash("weights", "data") != digest


def test_directory_is_safe_for_a_path(toys: dict[str, str]) -> None:
    mine = config_of(toys, out="o", seed=3, backbone="clip:ViT-B-16/openai")
    assert mine.directory("", "abcd") == Path("o/stream/one/clip-ViT-B-16-openai-s3-abcd")
    (plain,) = plan({"strategy": "finetune", "backbone": "vit_base_patch16_224.augreg_in21k"}, [])
    expected = Path("runs/split_digits.Art-Real-World/finetune/vit_base_patch16_224.augreg_in21k-s0-00ff")
    assert plain.directory("Art-Real World", "00ff") == expected
    assert replace(plain, backbone="../../x").directory("", "0") == Path("runs/split_digits/finetune/x-s0-0")


def test_options_are_listed_once() -> None:
    own = {each.name for each in fields(RunConfig)}
    assert {name for name, each in options.OPTIONS.items() if each.per_run} < own
    assert set(options.HASHED) < own and set(options.PATHS) < own
    assert set(options.OPTIONS) - own == {"epochs", "batch_size", "with"}
    assert {"seed", "out", "data_dir", "preset", "scenario", "strategy", "backbone", "checkpoint_minutes"} <= set(
        options.NOT_COMPARED
    )
    assert not {"weights", "threads", "precision", "with", "image_size"} & set(options.NOT_COMPARED)


# plug-ins are made once


def test_plug_ins_are_made_once_for_all_runs_of_a_request(
    toys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(cls: type[Any], values: Any, name: str) -> Any:
        made.append(name)
        return make(cls, values, name)

    monkeypatch.setattr(config, "make", counted)
    monkeypatch.setattr("clsim.named_parts.make", counted)
    configs = plan({**toys, "seed": "0-2", "with": "er:5"}, [])
    for each in configs:
        settled = replace(each, device="cpu")
        settled.make_strategy(), settled.make_scenario(), settled.make_parts(), settled.hash()
    assert sorted(made) == ["--with er:5", "one", "stream", "two"]


def test_runs_share_no_state_and_changed_fields_are_made_again(toys: dict[str, str]) -> None:
    first = config_of(toys, **{"with": "er:5"})
    strategy, (part,) = first.make_strategy(), first.make_parts()
    strategy.size, part.kept = 99, {0: [1]}
    assert first.make_strategy().size == 3
    assert first.make_parts()[0].kept == {}
    changed = replace(first, strategy_fields={**first.strategy_fields, "size": 8}, parts=("er:6",))
    assert (changed.make_strategy().size, changed.make_parts()[0].capacity) == (8, 6)


def test_a_pickled_configuration_is_whole(toys: dict[str, str]) -> None:
    first = config_of(toys, **{"with": "er:5"})
    first.make_strategy()
    again = pickle.loads(pickle.dumps(first))
    assert again == first and again.made == {} and first.made != {}
    assert again.hash() == first.hash()
    assert "made" not in repr(first) and "made" not in first.to_toml()


# parts


def config_with(value: Any, **more: Any) -> RunConfig:
    (found,) = plan({"strategy": "linear", "with": value, **more}, [])
    return found


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (["er:500", "er,size=500", "er", ["er:500"], ["er", "size=500"]], ("er:500",)),
        (["er_per_class:3", "er,size=3,per_class=true", "er,per_class=yes,size=3"], ("er_per_class:3",)),
        (["der:0.5:1:9", "der,beta=1,size=9", ["der:.5:1.0:9"]], ("der:0.5:1:9",)),
        (["er:5,ewc:10", ["er:5", "ewc:10"], "er,size=5,ewc,strength=10", "er:5, ewc:1e1, er:5"], ("er:5", "ewc:10")),
        (["lwf:0.1234567"], ("lwf:0.1234567",)),
        (["", [], None], ()),
    ],
)
def test_every_spelling_of_a_part_is_one_configuration(spellings: list[Any], expected: tuple[str, ...]) -> None:
    found = [config_with(each) for each in spellings]
    assert {each.parts for each in found} == {expected}
    assert len({each.hash() for each in found}) == 1


def test_a_users_part_has_fields_too(tmp_path: Path) -> None:
    file = tmp_path / "my=own.py"
    text = (
        "from dataclasses import dataclass\n\nfrom clsim import Part\n\n\n@dataclass(kw_only=True)\nclass Mine(Part):\n"
        "    weight: float = 1.0\n    names: tuple[str, ...] = ()\n    layer: int | None = None\n\n\n"
        "class Plain(Part):\n    pass\n"
    )
    file.write_text(text)
    found = config_with(f"{file}:Mine,weight=2,names=[a,b],er:5,{file}:Plain")
    assert found.parts == (f"{file}:Mine,weight=2,names=[a,b],layer=none", "er:5", f"{file}:Plain")
    mine, _, plain = found.make_parts()
    assert (mine.weight, mine.names, mine.layer, type(plain).__name__) == (2.0, ("a", "b"), None, "Plain")
    again = RunConfig.from_toml(found.to_toml())
    assert again == found and again.hash() == found.hash()
    before = found.hash()
    file.write_text(text + "# changed\n")
    assert found.hash() == before, "its part was made by the text before the change"
    assert config_with(f"{file}:Mine,weight=2,names=[a,b],er:5,{file}:Plain").hash() != before
    file.write_text(text + "\n\nclass Other(Part):\n    def __init__(self, size):\n        pass\n")
    with pytest.raises(RequestError, match="Other cannot be made without arguments .*'size'.*: make it a dataclass"):
        config_with(f"{file}:Other")
    with pytest.raises(RequestError, match="no field 'wieght' .did you mean 'weight'"):
        config_with(f"{file}:Mine,wieght=2")
    with pytest.raises(RequestError, match="has a comma or a bracket"):
        config_with([f"{file}:Mine,names=[[a],b]"])


def test_a_subclass_of_a_part_keeps_the_short_form_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\nfrom clsim.parts.er import Er\n\n\n@dataclass\nclass Mine(Er):\n"
        "    weight: float = 1.0\n"
    )
    name = f"{tmp_path}/mine.py:Mine"
    assert config_with(f"{name}:5").parts == (f"{name}:5",)
    assert config_with(f"{name}:5,per_class=true").parts == (f"{name},size=5,per_class=true,weight=1",)
    assert config_with(f"{name}:5", strategy="finetune").strategy == "finetune"


def test_split_gives_each_part_its_fields() -> None:
    assert split("er:5,der,alpha=1,size=2, ewc") == ["er:5", "der,alpha=1,size=2", "ewc"]
    part = named_part("der,alpha=1,size=2")
    assert (part.name, part.fields) == ("der", {"alpha": 1.0, "beta": 0.5, "size": 2})


def test_a_method_without_a_loss_takes_a_memory_and_no_term_of_a_loss() -> None:
    assert config_with("er:5", strategy="ncm").parts == ("er:5",)
    with pytest.raises(RequestError, match="^--with ewc:10 adds to the training loss, but ncm learns without one$"):
        config_with("er:5,ewc,strength=10", strategy="ncm")


def test_finetune_with_er_and_er_are_one_run() -> None:
    def both(part: str, own: str, *fields: str, more: str = "") -> tuple[RunConfig, RunConfig]:
        (first,) = plan({"strategy": "finetune", "with": part + more}, fields)
        (second,) = plan({"strategy": "er", "with": more.strip(",")}, [*own.split(), *fields])
        return first, second

    for first, second in (
        both("er:300", "memory=300"),
        both("er_per_class:7", "memory=7 per_class=true"),
        both("er", "", "lr=0.1", "mask=current"),
        both("er:300", "memory=300", "epochs=2", more=",ewc:10"),
    ):
        assert first == second
        assert (first.strategy, first.hash("w")) == ("er", second.hash("w"))
        assert first.directory("", "0").parts[-2] == "er"
    assert first.parts == ("ewc:10",) and first.strategy_fields["epochs"] == 2
    (plain,) = plan({"strategy": "finetune", "with": "ewc:10"}, [])
    assert plain.strategy == "finetune"
    (two,) = plan({"strategy": "er", "with": "er:5"}, [])  # two memories
    assert (two.strategy, two.parts, two.strategy_fields["memory"]) == ("er", ("er:5",), 500)


# stale results


def test_an_edited_copy_of_a_built_in_is_another_run(tmp_path: Path) -> None:
    built_in = plugins.describe("strategies", "linear").path
    copy = Path(shutil.copy(built_in, tmp_path / "linear.py"))
    options = {"strategy": f"{copy}:Linear"}
    (first,) = plan(options, [])
    before = first.hash()
    copy.write_text(copy.read_text().replace("class Linear", "\n\nclass Linear"))
    (second,) = plan(options, [])
    assert len({before, second.hash(), plan({"strategy": "linear"}, [])[0].hash()}) == 3


@pytest.mark.slow
def test_an_edited_built_in_is_another_run(tmp_path: Path) -> None:
    root = Path(config.__file__).parents[1]
    for folder in ("clsim", "strategies", "scenarios"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    # a process that has imported the libraries, and a child of it for each state of the files
    code = (
        "import os, sys, open_clip, timm\n"
        "for _ in sys.stdin:\n"
        "    if not os.fork():\n"
        "        import clsim\n"
        "        from clsim.config import plan\n"
        "        assert clsim.__file__.startswith(sys.argv[1])\n"
        "        print(plan({'strategy': 'coop', 'with': 'ewc'}, [])[0].hash(), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    command, environment = [sys.executable, "-c", code, str(tmp_path)], {"PYTHONPATH": str(tmp_path), "PATH": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)

    def hash_of() -> str:
        process.stdin.write("\n")
        return process.stdout.readline()

    found = [hash_of(), hash_of()]
    for name in ("strategies/coop.py", "clsim/bases.py", "clsim/parts/ewc.py", "scenarios/split_digits.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# edited\n")
        found.append(hash_of())
    assert found[0] == found[1] and len(set(found)) == 5 and "" not in found
    (tmp_path / "clsim" / "loop.py").write_text("# clsim's own code has a digest of its own\n")
    assert hash_of() == found[-1]
    process.communicate()
    assert process.returncode == 0


def test_a_field_of_the_scenario_is_named_as_python_writes_it() -> None:
    with pytest.raises(RequestError, match=r"write \*\*\{\"scenario.train_per_class\": 5\}$"):
        plan({}, {"train_per_class": 5})
    with pytest.raises(RequestError, match=r"write scenario.train_per_class=5$"):
        plan({}, ["train_per_class=5"])


def test_data_and_devices_that_are_not_there_are_refused_before_a_run(tmp_path: Path) -> None:
    from clsim import runner  # late: the tests above need no torch

    (tmp_path / "file").write_text("")
    for given, message in (
        ({"data_dir": tmp_path / "nowhere"}, "no such data directory: .*nowhere$"),
        ({"data_dir": tmp_path / "file"}, r"no such data directory: .*file \(it is a file\)$"),
        ({"device": "mps"}, "--device mps: torch finds no Apple GPU"),
        ({"strategy": "lora", "rank": 100_000, "backbone": "vit_nano"}, "rank=100000 is above the .* features"),
    ):
        if given.get("device") == "mps" and __import__("torch").backends.mps.is_available():
            continue
        with pytest.raises(RequestError, match=message):
            runner.run(out=tmp_path / "runs", **{"scenario.train_per_class": 2}, **given)
    assert not (tmp_path / "runs").exists()


def test_of_a_field_given_twice_in_one_spelling_the_last_counts(tmp_path: Path) -> None:
    (only,) = config.plan({"out": tmp_path}, ["lr_base=0", "lr=1", "lr=2"], None)
    assert only.strategy_fields["lr"] == 2.0
