"""Journal, TensorBoard, figures and console in a small run played by hand: three experiences, two steps in each."""

import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clsim import provenance
from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.errors import RequestError
from clsim.events import State, Step
from clsim.metrics import measures
from clsim.recorders.console import Console, report
from clsim.recorders.figures import (
    Point,
    accuracy_cost_figure,
    accuracy_matrix_figure,
    bars_figure,
    percent,
    to_array,
)
from clsim.recorders.journal import Journal, read_records
from clsim.recorders.tensorboard import TensorBoard
from clsim.results import Run

NAMES = ["classes 0 1", "classes 2 3", "classes 4 5"]
ROWS = [[9, None, None], [5, 8, None], [6, 4, 7]]
TOTAL = [10, 10, 10]
CONFIG = {"seed": 0, "precision": "fp32", "strategy": {"name": "l2p", "top_k": 3, "cosine": True}}
COST = {"seconds_training": 12.34, "trainable_parameters": 12345, "memory_bytes": 3 * 2**20, "gain": None}


@dataclass
class Ear:
    """A listener that keeps what it receives."""

    heard: list
    closed: bool = False

    def write(self, record):
        self.heard.append(record)

    def close(self):
        self.closed = True


def benchmark(names):
    stream = [SimpleNamespace(name=name) for name in names]
    return SimpleNamespace(train_stream=stream, test_stream=stream)


def fresh_state(num_experiences=3):
    names = tuple(f"class {c}" for c in range(2 * num_experiences))
    return State(torch.nn.Identity(), StreamInfo(names, (), "class", num_experiences), seed=0)


def a_step(s, loss, size=4):
    step = Step(s, np.arange(size), Batch(torch.zeros(size, 3, 2, 2)))
    step.loss = loss
    return step


def play(s, recorders, experiences=range(3), gradients=True, log=lambda s: None):
    """Raise the events of a run as the loop does, for some of its experiences."""

    def say(event, given=s):
        for recorder in recorders:
            getattr(recorder, event, lambda s: None)(given)

    def evaluate(row):
        say("before_eval")
        s.total, s.correct = TOTAL, [*s.correct, row]
        s.metrics = measures(s.correct, s.total).values
        say("after_eval")

    weight = torch.nn.Parameter(torch.zeros(()))
    say("before_training")
    for index in experiences:
        s.current = SimpleNamespace(index=index)
        say("before_training_exp")
        if gradients:
            s.exp_steps, s.made_optimizer = 2, torch.optim.SGD([weight], 0.5 / (index + 1))
            for s.epoch in range(2):
                say("before_training_epoch")
                step = a_step(s, weight + 1.0 / (s.step + 1))
                s.step += 1
                say("after_training_iteration", step)
                say("after_training_epoch")
        log(s)
        s.epoch = 0
        say("after_training_exp")
        s.trained = index + 1
        evaluate(ROWS[index])
    say("after_training")


def lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


# journal


def test_journal_records(tmp_path):
    ear = Ear([])
    journal, s = Journal(tmp_path / "events.jsonl", [ear]), fresh_state()
    play(s, [journal])
    journal.end(s.metrics, COST, CONFIG)
    journal.close()
    records = lines(tmp_path / "events.jsonl")
    assert records == ear.heard
    assert ear.closed
    assert [record["event"] for record in records] == ["start", *["step", "step", "evaluation"] * 3, "end"]
    assert all(record.pop("time") > 1e9 for record in records)
    assert records[0] == {"event": "start", "seed": 0, "protocol": "class", "experiences": 3}
    assert records[5] == {"event": "step", "step": 4, "experience": 2, "epoch": 2, "loss": 0.25, "lr": 0.25}
    assert records[6] == {
        "event": "evaluation",
        "experience": 2,
        "step": 4,
        "correct": [5, 8, None],
        "total": TOTAL,
        "accuracy": [0.5, 0.8, None],
        "metrics": measures(ROWS[:2], TOTAL).values,
    }
    assert records[-1] == {"event": "end", "metrics": s.metrics, "cost": COST, "config": CONFIG}


def test_journal_row_before_training(tmp_path):
    journal, s = Journal(tmp_path / "events.jsonl"), fresh_state()
    s.correct, s.total, s.has_baseline_row = [[1, 2, 3]], TOTAL, True
    journal.after_eval(s)
    journal.close()
    (record,) = lines(tmp_path / "events.jsonl")
    assert (record["experience"], record["accuracy"]) == (0, [0.1, 0.2, 0.3])


def test_what_parts_log(tmp_path):
    journal, s = Journal(tmp_path / "events.jsonl"), fresh_state()
    s.current, s.step = SimpleNamespace(index=1), 7
    weight = torch.nn.Parameter(torch.tensor([math.nan, 2.0]))
    tensors = (torch.tensor([3, 4]), torch.tensor(0.1), torch.tensor(7), weight, torch.tensor([True]))
    for value in (1.5, 2, np.float32(0.5), math.nan, [1.0, math.inf], np.zeros(2), *tensors):
        journal.log(s, "thing", value)
    journal.close()
    records = lines(tmp_path / "events.jsonl")
    plain = [1.5, 2, 0.5, None, [1.0, None], [0.0, 0.0]]
    assert [record["value"] for record in records] == [*plain, [3, 4], torch.tensor(0.1).item(), 7, [None, 2.0], [True]]
    assert {(record["name"], record["step"], record["experience"]) for record in records} == {("thing", 7, 2)}


TENSORS = [torch.zeros(2, 2), torch.zeros(0), torch.zeros(2, dtype=torch.complex64)]


@pytest.mark.parametrize("value", ["text", [[1, 2], [3, 4]], [], None, *TENSORS])
def test_what_cannot_be_logged(tmp_path, value):
    journal = Journal(tmp_path / "events.jsonl")
    with pytest.raises(TypeError, match=r"log\('thing', ...\) takes a number or a list of numbers"):
        journal.log(fresh_state(), "thing", value)
    journal.close()


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.write("step", loss=math.nan, deep={"list": [1.0, -math.inf]})
    journal.close()
    (record,) = lines(tmp_path / "events.jsonl")
    assert record["loss"] is None
    assert record["deep"] == {"list": [1.0, None]}


def test_steps_wait_for_the_end_of_the_epoch(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.write("step", step=1)
    assert path.read_text() == ""
    journal.after_training_epoch(fresh_state())
    assert len(lines(path)) == 1
    journal.close()


@pytest.fixture
def reads(monkeypatch):
    """Calls for which the host waits until a tensor's values are computed."""
    made = []

    def counted(name, own):
        def call(tensor, *args, **kwargs):
            made.append(name)
            return own(tensor, *args, **kwargs)

        return call

    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__", "__array__", "__repr__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    return made


def test_no_step_waits_for_a_value_and_an_epoch_is_one_read(tmp_path, reads):
    path, s = tmp_path / "events.jsonl", fresh_state()
    journal = Journal(path, [TensorBoard(tmp_path, benchmark(NAMES))])
    s.current, s.made_optimizer = SimpleNamespace(index=0), torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 0.5)
    losses = (torch.arange(1, 5, dtype=torch.float32) / 10).requires_grad_()
    recorders = [journal, Console(benchmark(NAMES))]  # standard error is no terminal
    for step in range(4):
        for recorder in recorders:
            recorder.after_training_iteration(a_step(s, losses[step]))
        journal.log(s, "norms", losses[:2] * step)
        journal.log(s, "share", losses.mean())
    assert reads == [] and path.read_text() == ""
    journal.after_training_epoch(s)
    assert reads == ["tolist"]
    records = lines(path)
    assert [record["event"] for record in records] == ["step", "log", "log"] * 4
    assert [record["loss"] for record in records[::3]] == [loss.item() for loss in losses]
    assert records[4]["value"] == losses[:2].tolist() and records[5]["value"] == losses.mean().item()
    journal.close()


@pytest.mark.parametrize("ask", [lambda journal, s: journal.offset(), lambda journal, s: journal.close()])
def test_what_waits_is_written_when_the_file_is_needed(tmp_path, ask):
    journal, s = Journal(tmp_path / "events.jsonl"), fresh_state()
    journal.log(s, "a", torch.tensor(1.5))
    journal.log(s, "b", 2)
    ask(journal, s)
    assert [(record["name"], record["value"]) for record in lines(tmp_path / "events.jsonl")] == [("a", 1.5), ("b", 2)]
    journal.close()


def test_records_stay_in_order_and_have_the_time_at_which_things_happened(tmp_path, monkeypatch):
    clock = iter(range(100, 200))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    journal, s = Journal(tmp_path / "events.jsonl"), fresh_state()
    s.correct, s.total = ROWS[:1], TOTAL
    usage = torch.tensor([1, 2])
    journal.log(s, "usage", usage)
    usage += 5  # a buffer of the learner, which the next step changes
    journal.log(s, "share", 0.5)
    journal.after_eval(s)
    records = lines(tmp_path / "events.jsonl")
    assert [record["event"] for record in records] == ["log", "log", "evaluation"]
    assert [record["time"] for record in records] == [100, 101, 102]
    assert records[0]["value"] == [1, 2]
    journal.close()


def test_detected_tasks_are_in_the_evaluation_that_counted_them(tmp_path):
    journal, s = Journal(tmp_path / "events.jsonl"), fresh_state()
    s.total = TOTAL
    for row, tasks in ((ROWS[0], None), (ROWS[1], [3, 4, None])):
        s.correct.append(row)
        if tasks is not None:
            s.task_correct += [[None] * 3, tasks]
        journal.after_eval(s)
    journal.close()
    first, second = lines(tmp_path / "events.jsonl")
    assert "task_correct" not in first
    assert second["task_correct"] == [3, 4, None]


def test_evaluations_inside_an_experience(tmp_path, capsys):
    board = TensorBoard(tmp_path, benchmark(NAMES))
    journal, s = Journal(tmp_path / "events.jsonl", [board]), fresh_state()
    shown = Console(benchmark(NAMES))
    s.current, s.total, s.trained = SimpleNamespace(index=1), [10, 30, 20], 1
    for images, step, row in ((320, 10, [5, 3, None]), (640, 20, [7, 9, None])):
        s.anytime.append({"images": images, "step": step, "correct": row})
        for recorder in (journal, shown):
            getattr(recorder, "after_anytime_eval", lambda s: None)(s)
    journal.close()
    first, _ = lines(tmp_path / "events.jsonl")
    assert first.pop("time") > 1e9
    assert first == {
        "event": "anytime",
        "experience": 2,
        "step": 10,
        "images": 320,
        "correct": [5, 3, None],
        "total": [10, 30, 20],
        "accuracy": [0.5, 0.1, None],
    }
    # (5 + 3) of 40 images, then (7 + 9)
    assert points(read_back(tmp_path), "anytime/average") == [(320, 0.2), (640, 0.4)]
    assert capsys.readouterr() == ("", "")


def test_journal_goes_on_where_the_checkpoint_was(tmp_path):
    path = tmp_path / "events.jsonl"
    journal, s = Journal(path), fresh_state()
    play(s, [journal], range(1))
    offset, kept = journal.offset(), lines(path)
    journal.write("step", step=99)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"event": "st')  # killed in the middle of a line
    assert len(list(read_records(path))) == len(kept) + 1

    ear = Ear([])
    journal = Journal(path, [ear], offset)
    assert ear.heard == kept
    assert journal.offset() == offset
    play(s, [journal], range(1, 3))
    journal.close()
    assert lines(path) == ear.heard
    events = [record["event"] for record in ear.heard]
    assert events == ["start", *["step", "step", "evaluation"] * 3]
    assert [record["step"] for record in ear.heard if record["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_a_journal_with_a_broken_line_is_named(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\n{"event": \n')
    with pytest.raises(RequestError, match=r"events\.jsonl is missing or broken: JSONDecodeError"):
        list(read_records(path))
    with pytest.raises(RequestError, match=r"nowhere is missing or broken: FileNotFoundError"):
        list(read_records(tmp_path / "nowhere"))


def test_journal_starts_again_over_an_older_one(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "old"}\n')
    journal = Journal(path)
    assert journal.offset() == 0
    play(fresh_state(), [journal], range(1))
    journal.close()
    assert [record["event"] for record in lines(path)] == ["start", "step", "step", "evaluation"]


@pytest.mark.parametrize("content", [None, "{}\n"])
def test_a_journal_that_is_too_short(tmp_path, content):
    path = tmp_path / "events.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match="missing or shorter than its checkpoint says"):
        Journal(path, offset=100)


# TensorBoard


def read_back(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(board, tag):
    return [(point.step, pytest.approx(point.value)) for point in board.Scalars(tag)]


def usage(journal):
    def log(s):
        journal.log(s, "prompt_usage", [s.trained, 5])
        journal.log(s, "penalty", 0.5)

    return log


def test_tensorboard(tmp_path):
    journal, s = Journal(tmp_path / "events.jsonl", [TensorBoard(tmp_path, benchmark(NAMES))]), fresh_state()
    play(s, [journal], log=usage(journal))
    journal.end(s.metrics, COST, CONFIG)
    journal.close()
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1  # no sub-run
    board = read_back(tmp_path)
    assert points(board, "train/loss") == [(n, 1 / n) for n in range(1, 7)]
    assert points(board, "train/lr") == [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.25), (5, 1 / 6), (6, 1 / 6)]
    assert points(board, "accuracy/01 classes 0 1") == [(1, 0.9), (2, 0.5), (3, 0.6)]
    assert points(board, "accuracy/03 classes 4 5") == [(3, 0.7)]
    assert points(board, "metrics/average_accuracy") == [(1, 0.9), (2, 0.65), (3, 1.7 / 3)]
    assert points(board, "metrics/forgetting") == [(2, 0.4), (3, 0.35)]
    assert points(board, "prompt_usage/00") == [(1, 0), (2, 1), (3, 2)]
    assert points(board, "log/penalty") == [(2, 0.5), (4, 0.5), (6, 0.5)]
    assert "metrics/forward_transfer" not in board.Tags()["scalars"]
    # a run of milliseconds: its first pictures, and its last ones
    assert [image.step for image in board.Images("accuracy_matrix")] == [1, 3]
    assert [image.step for image in board.Images("prompt_usage")] == [1, 3]
    first = next(record for record in lines(tmp_path / "events.jsonl") if record["event"] == "step")
    assert board.Scalars("train/loss")[0].wall_time == pytest.approx(first["time"], abs=1e-5)


def test_tensorboard_hyperparameters(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = TensorBoard(tmp_path, benchmark(NAMES))
    board.write(
        {"event": "end", "metrics": {"forgetting": 0.4, "x": None}, "config": CONFIG, "cost": COST, "time": 5.0}
    )
    board.close()
    summaries = read_back(tmp_path).PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(summaries["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["strategy.top_k"].number_value == 3
    assert session.hparams["strategy.cosine"].string_value == "True"
    assert session.hparams["precision"].string_value == "fp32"
    experiment = HParamsPluginData.FromString(summaries["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["metrics/forgetting"]


def test_no_point_twice_after_resuming(tmp_path):
    path, names = tmp_path / "events.jsonl", benchmark(NAMES)
    journal, s = Journal(path, [TensorBoard(tmp_path, names)]), fresh_state()
    play(s, [journal], range(2))
    offset = journal.offset()
    journal.write("step", step=5, loss=9.0, lr=9.0)  # lost with the process
    journal.close()
    journal = Journal(path, [TensorBoard(tmp_path, names)], offset)
    play(s, [journal], range(2, 3))
    journal.end(s.metrics, COST, CONFIG)
    journal.close()
    board = read_back(tmp_path)
    assert points(board, "train/loss") == [(n, 1 / n) for n in range(1, 7)]
    assert points(board, "accuracy/01 classes 0 1") == [(1, 0.9), (2, 0.5), (3, 0.6)]
    assert [image.step for image in board.Images("accuracy_matrix")] == [1, 3]


@pytest.mark.parametrize(
    ("seconds", "drawn"),
    [(1000.0, list(range(1, 101))), (0.001, [1, 100])],
    ids=["every picture of a slow run", "two of a fast one"],
)
def test_pictures_take_a_small_share_of_a_run(seconds, drawn, tmp_path):
    board = TensorBoard(tmp_path, benchmark(NAMES))
    for t in range(1, 101):
        at = {"experience": t, "time": seconds * t}
        board.write(at | {"event": "log", "name": "usage", "value": [t, 1.0], "step": t})
    board.write({"event": "end", "metrics": {}, "config": CONFIG, "cost": COST, "time": 1.0})
    board.close()
    found = read_back(tmp_path)
    assert [image.step for image in found.Images("usage")] == drawn
    assert len(found.Scalars("usage/00")) == 100


def test_tensorboard_without_steps(tmp_path):
    journal = Journal(tmp_path / "events.jsonl", [TensorBoard(tmp_path, benchmark(NAMES))])
    play(fresh_state(), [journal], gradients=False, log=usage(journal))
    journal.close()
    board = read_back(tmp_path)
    assert points(board, "log/penalty") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert "train/loss" not in board.Tags()["scalars"]


def test_tensorboard_joint_and_large_pools(tmp_path):
    board = TensorBoard(tmp_path, benchmark(NAMES))
    evaluation = {"event": "evaluation", "correct": [6, 4, 7], "total": TOTAL, "accuracy": [0.6, 0.4, 0.7]}
    board.write(evaluation | {"experience": 3, "metrics": {"forgetting": None}, "time": 1.0})
    pool = {"event": "log", "name": "usage", "value": [1.0] * 65, "step": 1, "experience": 3, "time": 1.0}
    board.write(pool)
    board.close()
    tags = read_back(tmp_path).Tags()
    assert sorted(tags["images"]) == ["accuracy_matrix", "usage"]
    assert sorted(tags["scalars"]) == [f"accuracy/{i:02d} {name}" for i, name in enumerate(NAMES, start=1)]


# figures


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_accuracy_matrix_figure():
    figure = accuracy_matrix_figure(ROWS[:2], TOTAL, NAMES)
    axes = figure.axes[0]
    assert texts(figure) == ["90.0", "50.0", "80.0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tested on", "after experience")
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{i}: {n}" for i, n in enumerate(NAMES, 1)]
    assert to_array(figure).shape == to_array(accuracy_matrix_figure(ROWS, TOTAL, NAMES)).shape
    with_row = accuracy_matrix_figure([[1, 2, 3], *ROWS], TOTAL, NAMES, before=True)
    assert with_row.axes[0].get_yticklabels()[0].get_text() == "before"
    assert texts(with_row)[:3] == ["10.0", "20.0", "30.0"]


def test_numbers_do_not_overlap_with_20_experiences():
    figure = accuracy_matrix_figure([[100] * 20] * 20, [100] * 20, [f"classes {i}" for i in range(20)])
    pixels = to_array(figure)
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
    axes = figure.axes[0]
    cell = abs(axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0])
    assert len(axes.texts) == 400
    assert all(text.get_window_extent().width < cell for text in axes.texts)


def test_many_experiences_have_colours_only():
    figure = accuracy_matrix_figure([[50] * 40] * 40, [100] * 40, ["a name " * 10] * 40)
    assert texts(figure) == []
    assert len(figure.axes[0].get_yticklabels()) == 20
    assert len(figure.axes[0].get_yticklabels()[0].get_text()) <= 35


def test_bars_figure():
    figure = bars_figure([1, 0.25, 1234], "usage")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1, 0.25, 1234]
    assert texts(figure) == ["1", "0.25", "1234"]
    assert figure.axes[0].get_title() == "usage"
    assert texts(bars_figure([1.0] * 21, "usage")) == []
    assert to_array(bars_figure([0.0] * 100, "usage")).ndim == 3


def test_accuracy_cost_figure():
    spread = [Point("lora", 1e4, 50.0, 2.0), Point("finetune", 3e6, 60.0), Point("ncm", 0, 40.0)]
    crowd = [Point(f"method {i}", 1000 + i, 50.0 + i / 100) for i in range(6)]
    figure = accuracy_cost_figure({"stream": spread, "other": crowd})
    first, second = figure.axes
    assert (first.get_title(), first.get_xscale(), first.get_xlabel()) == ("stream", "log", "trainable parameters")
    places = {text.get_text(): text.xy for text in first.texts}
    assert places == {"lora": (1e4, 50.0), "finetune": (3e6, 60.0), "ncm": (1, 40.0)}
    (line,) = [line for line in first.lines if line.get_linestyle() == "--"]
    assert list(line.get_ydata()) == [40.0, 40.0]
    assert {container.has_yerr for container in first.containers} == {True} and len(first.containers) == 2
    to_array(figure)
    boxes = [text.get_window_extent() for text in second.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "a name covers another"
    assert to_array(accuracy_cost_figure({"nothing is trained": [Point("ncm", 0, 40.0)]})).ndim == 3
    (wide,) = accuracy_cost_figure({"two seeds": [Point("lora", 1e4, 50.0, 120.0), Point("ssf", 2e4, 99.0)]}).axes
    assert wide.get_ylim() == (0, 100)


def test_percent():
    assert [percent(0.876, 10), percent(0.876, 11), percent(None, 3), percent(math.nan, 3)] == ["87.6", "88", "-", "-"]


# console


class Terminal(io.StringIO):
    def isatty(self):
        return True


EXPECTED = """\
after experience 1/3: average 90.0 %, accuracies 90.0
after experience 2/3: average 65.0 %, forgetting 40.0 %, accuracies 50.0 80.0
after experience 3/3: average 56.7 %, forgetting 35.0 %, accuracies 60.0 40.0 70.0
"""


@pytest.mark.parametrize("gradients", [True, False])
def test_plain_lines(capsys, gradients):
    play(fresh_state(), [Console(benchmark(NAMES))], gradients=gradients)
    assert capsys.readouterr() == (EXPECTED, "")


def test_line_before_training(capsys):
    s = fresh_state()
    s.correct, s.total, s.has_baseline_row = [[1, 2, 3]], TOTAL, True
    s.metrics = measures(s.correct, s.total, before=True).values
    recorder = Console(benchmark(NAMES))
    recorder.before_eval(s)
    recorder.after_eval(s)
    assert capsys.readouterr().out == "before training: accuracies 10.0 20.0 30.0\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet(monkeypatch, terminal):
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    play(fresh_state(), [Console(benchmark(NAMES), quiet=True)])
    assert out.getvalue() == err.getvalue() == ""


@pytest.mark.parametrize("piped", [True, False])
def test_progress_on_a_terminal(monkeypatch, piped):
    out, err = io.StringIO() if piped else Terminal(), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr("clsim.recorders.console.PAUSE", 0.0)
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    play(fresh_state(), [Console(benchmark(NAMES))])
    assert out.getvalue() == EXPECTED
    shown = err.getvalue()
    assert "experience 2/3, epoch 2, loss 0.250" in shown
    assert "evaluating after experience 3/3" in shown
    assert "images/s" in shown
    assert "100%" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor is hidden, and comes back


def test_time_left(monkeypatch):
    err = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", err)
    recorder, s = Console(benchmark(NAMES)), fresh_state()
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    s.current, s.trained, s.exp_steps = SimpleNamespace(index=1), 1, 10
    s.step = s.exp_first = 10  # a resumed run: 1/3 is done
    recorder.before_training(s)
    recorder.before_training_exp(s)
    recorder.before_training_epoch(s)
    s.step, now = 15, 110.0  # in 10 s a sixth of the run; a half is left
    recorder.after_training_iteration(a_step(s, torch.tensor(0.5), size=8))
    recorder.close()
    assert "50% 0:00:30 left, experience 2/3, epoch 1, loss 0.500, 1 images/s" in plain(err.getvalue())


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def a_run(names, correct, total, before=False, **summary):
    found = measures(correct, total, before)
    matrix = {"correct": correct, "total": total, "experiences": names, "classes": [["a"]] * len(total)}
    written = {"scenario": "split_digits", "strategy": "l2p", "backbone": "vit_micro", "seed": 3, "cost": COST}
    written |= {"metrics": found.values, "notes": found.notes | {"caveat 1": "small [images]"}}
    written |= {"code": provenance.code_digest()} | summary
    return Run(Path("runs/split_digits/l2p/vit_micro-s3-0badcafe"), {}, matrix, written)


def test_report(capsys):
    report(a_run(NAMES, ROWS, TOTAL))
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    assert "split_digits: l2p on vit_micro, seed 3" in text
    assert ["after,", "on", "(%)", "1", "2", "3"] in rows
    assert ["2", "50.0", "80.0", "-"] in rows
    assert "1: classes 0 1" in text
    assert ["average", "accuracy", "56.67"] in rows
    assert "forward transfer" in text
    assert "experiences are not tested before they are learned" in text
    assert "caveat 1: small [images]" in text
    assert ["seconds", "training", "12.3"] in rows
    assert ["trainable", "parameters", "12,345"] in rows
    assert ["memory", "3.0", "MiB"] in rows
    assert text.endswith("runs/split_digits/l2p/vit_micro-s3-0badcafe\n")
    assert text.isascii()
    assert "\x1b" not in text


def test_report_of_a_run_that_other_code_made(capsys):
    report(a_run(NAMES, ROWS, TOTAL))
    assert "made by" not in capsys.readouterr().out
    report(a_run(NAMES, ROWS, TOTAL, code="0123456789ab"))
    now = provenance.code_digest()
    note = f"made by other code of clsim (0123456789ab, now {now}): repeat with --fresh to run it again"
    assert note in capsys.readouterr().out.splitlines()
    old = a_run(NAMES, ROWS, TOTAL)
    del old.summary["code"]
    report(old)
    note = "made by an earlier version of clsim: repeat with --fresh to run it again"
    assert note in capsys.readouterr().out.splitlines()


def test_detected_tasks_are_a_metric_like_others(capsys):
    run = a_run(NAMES, ROWS, TOTAL)
    run.metrics["task_accuracy"] = 0.4321
    report(run)
    assert ["task", "accuracy", "43.21"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    s = fresh_state()
    s.trained, s.correct, s.total = 1, ROWS[:1], TOTAL
    s.metrics = {"average_accuracy": 0.9, "forgetting": None, "task_accuracy": 0.4321}
    Console(benchmark(NAMES)).after_eval(s)
    assert capsys.readouterr().out == "after experience 1/3: average 90.0 %, tasks detected 43.2 %, accuracies 90.0\n"


def test_report_with_a_row_before_training(capsys):
    report(a_run(NAMES, [[1, 2, 3], *[[5, 5, 5]] * 3], TOTAL, before=True))
    assert ["before", "10.0", "20.0", "30.0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("experiences", [1, 20, 24, 60])
def test_report_is_at_most_120_columns_wide(capsys, experiences):
    names = [f"classes {5 * i}-{5 * i + 4}" for i in range(experiences)]
    report(a_run(names, [[100] * experiences] * experiences, [100] * experiences))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for number, name in enumerate(names, 1):
        assert f"{number}: {name}" in text


def test_report_of_joint_training(capsys):
    report(a_run(NAMES, [[None] * 3, [None] * 3, [6, 4, 7]], TOTAL))
    text = capsys.readouterr().out
    assert "not tested after each experience on all that were learned" in text
    assert ["3", "60.0", "40.0", "70.0"] in [line.split() for line in text.splitlines()]
