"""Search spaces, and the settings that a grid, a search at random and TPE try."""

import sys

import pytest

from clsim import search
from clsim.errors import RequestError
from clsim.search import Range, Values


def test_fields_with_several_values_are_searched():
    found, fixed = search.space(
        {"lr": "0.01|0.1", "depth": "1..4", "decay": "1e-5..1e-2", "top_k": "3", "m": "-1..1.0"}
    )
    assert found == {
        "lr": Values(("0.01", "0.1")),
        "depth": Range(1, 4, True),
        "decay": Range(1e-5, 1e-2, False),
        "m": Range(-1, 1, False),
    }
    assert fixed == {"top_k": "3"}
    assert [each.log for each in found.values() if isinstance(each, Range)] == [False, True, False]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.1|", "empty value"),
        ("5..1", "smaller one"),
        ("1..1", "smaller one"),
        ("1..1e999", "smaller one"),
        ("e..1", "no range"),
    ],
)
def test_values_without_sense(value, words):
    with pytest.raises(RequestError, match=words):
        search.space({"lr": value})


def test_places_in_a_range():
    assert [Range(1, 4, True).at(share) for share in (0, 0.24, 0.26, 0.99, 1)] == ["1", "1", "2", "4", "4"]
    assert [Range(1e-4, 1e-2, False).at(share) for share in (0, 0.5, 1)] == ["0.0001", "0.001", "0.01"]
    assert [Range(0, 1, False).at(share) for share in (0, 0.25, 1)] == ["0", "0.25", "1"]


def test_a_grid_has_every_combination():
    settings = search.grid({"a": Values(("1", "2")), "b": Values(("x", "y"))})
    assert settings == [{"a": "1", "b": "x"}, {"a": "1", "b": "y"}, {"a": "2", "b": "x"}, {"a": "2", "b": "y"}]
    with pytest.raises(RequestError, match="a grid needs the values of lr"):
        search.grid({"lr": Range(0, 1, False)})


def test_settings_at_random_do_not_depend_on_how_many_there_are():
    space = {"lr": Range(1e-4, 1e-1, False), "depth": Range(1, 4, True), "kind": Values(("a", "b"))}
    many = search.drawn(space, 30, seed=0)
    assert search.drawn(space, 10, seed=0) == many[:10]
    assert search.drawn(space, 10, seed=1) != many[:10]
    assert {each["kind"] for each in many} == {"a", "b"}
    assert {each["depth"] for each in many} == {"1", "2", "3", "4"}
    rates = [float(each["lr"]) for each in many]
    assert 1e-4 <= min(rates) < 1e-3 < 1e-2 < max(rates) <= 1e-1
    assert len(search.drawn({"kind": Values(("a", "b"))}, 30, seed=0)) == 2, "each setting once"


def test_tpe_learns_and_repeats_itself():
    space = {"x": Range(0, 1, False), "kind": Values(("a", "b"))}

    def tried(trials: int) -> list[search.Setting]:
        ask, found = search.TPE(space, seed=0), []
        for number in range(trials):
            found.append(ask.setting())
            near = -abs(float(found[-1]["x"]) - 0.3) - (found[-1]["kind"] == "b")
            ask.tell(None if number == 2 else near)
        return found

    settings = tried(40)
    assert tried(40) == settings
    late = settings[20:]
    assert sum(each["kind"] == "a" for each in late) > 15
    assert sum(abs(float(each["x"]) - 0.3) < 0.2 for each in late) > 12


def test_tpe_needs_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RequestError, match=r"pip install 'clsim\[tune\]'"):
        search.TPE({"x": Range(0, 1, False)}, seed=0)


def test_the_best_is_the_first_of_equals():
    assert search.best([0.1, None, 0.5, 0.5]) == 2
    with pytest.raises(RequestError, match="no setting could be trained"):
        search.best([None, None])
