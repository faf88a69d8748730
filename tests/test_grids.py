"""Grids: one run for each value, each a row of its own in the comparison."""

import pytest
from conftest import SMALL, TOY

import clsim
from clsim import compare, config, grids
from clsim.config import RunConfig
from clsim.errors import RequestError


def plan(*fields, toml=None, **options):
    return config.plan({"scenario": TOY, "strategy": "linear", "backbone": "vit_nano"} | options, fields, toml)


def test_each_value_is_a_run_and_several_fields_make_the_product():
    runs = plan("lr=0.03|0.06|0.12", "--mask=seen|all", "scenario.order_seed=1|2", epochs="1|2", seed="0,1")
    assert len(runs) == 3 * 2 * 2 * 2 * 2
    values = {
        (
            r.strategy_fields["lr"],
            r.strategy_fields["mask"],
            r.scenario_fields["order_seed"],
            r.strategy_fields["epochs"],
        )
        for r in runs
    }
    assert len(values) == 24 and (0.06, "all", 2, 1) in values
    assert {type(run.strategy_fields["lr"]) for run in runs} == {float}
    one = plan("lr=0.06", "mask=all", "scenario.order_seed=2", epochs=1, seed=1)
    assert one[0] in runs, "a run of a grid is the run of a command of its own"


def test_options_and_fields_of_one_strategy_among_several():
    runs = plan("linear.lr=0.1|0.2", strategy="ncm,linear", backbone="vit_nano|vit_micro")
    found = [(run.strategy, run.strategy_fields.get("lr"), run.backbone) for run in runs]
    assert len(found) == 6 and [each[2] for each in found if each[0] == "ncm"] == ["vit_nano", "vit_micro"]
    with_parts = plan(**{"with": ["er:5|er:10"]})
    assert [run.parts for run in with_parts] == [("er:5",), ("er:10",)]
    assert len(plan("lr=0.1|0.1|0.10")) == 1, "each value once"


def test_a_file_may_have_grids_and_the_command_line_overrides_them(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text('epochs = "1|2"\n[strategy]\nname = "linear"\nlr = "0.1|0.2"\n[scenario]\norder_seed = "3|4"\n')
    assert len(plan(toml=file, strategy=None)) == 8
    assert len(plan("lr=0.5", toml=file, strategy=None)) == 4
    (run,) = plan("lr=0.5", "scenario.order_seed=3", epochs=1)
    assert RunConfig.from_toml(run.to_toml()) == run


def test_wrong_grids_are_refused():
    for fields, words in (
        (["lr=0.1|"], "lr=0.1| has an empty value in its grid"),
        (["lr=0.1|x"], "lr must be a number, not 'x'"),
        (["mask=seen|sene"], "did you mean 'seen'"),
        (
            [f"lr={'|'.join(map(str, range(101)))}", f"batch_size={'|'.join(map(str, range(1, 101)))}"],
            "10,100 settings",
        ),
    ):
        with pytest.raises(RequestError) as caught:
            plan(*fields)
        assert words in str(caught.value)


def test_a_request_without_a_grid_keeps_its_layers():
    layer = config._Layer(every={"lr": "0.1"})
    assert list(grids.expanded(layer)) == [(layer,)] and next(grids.expanded(layer))[0] is layer


@pytest.mark.usefixtures("without_pictures")
def test_the_comparison_has_a_row_for_each_setting(tmp_path):
    asked = {"scenario": TOY, "strategy": "linear", "backbone": "vit_nano", "out": tmp_path, "seed": "0,1"} | SMALL
    runs = clsim.run(**asked, lr="0.03|0.3", **{"scenario.train_per_class": "4|6"})
    assert len({run.directory for run in runs}) == 8
    groups = compare.group(runs)
    assert sorted((each.scenario, each.strategy, len(each.runs)) for each in groups) == [
        (f"toy train_per_class={images}", f"linear lr={lr}", 2) for images in (4, 6) for lr in (0.03, 0.3)
    ]


def test_a_mistake_in_one_setting_is_found_before_the_first_run(tmp_path):
    asked = {"scenario": TOY, "strategy": "l2p", "backbone": "vit_nano", "out": tmp_path, "precision": "fp32"}
    with pytest.raises(RequestError, match="top_k"):
        clsim.run(**asked, top_k="1|1000")
    assert not list(tmp_path.rglob("config.toml"))
