"""clsim.doctor: one screen about the machine, without reading an image, a secret, or waiting for the Hub."""

import http.server
import threading

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from clsim import cli, doctor, plugins
from clsim.data import formats
from clsim.data.streams import DataAccess


class Silent(http.server.BaseHTTPRequestHandler):
    """Answers 501 to everything."""

    def log_message(self, *_):
        pass


@pytest.fixture
def sets(tmp_path, write_parquet):
    """A data directory: CIFAR-100 as two files that are no images, and one of two splits of MNIST."""
    nothing = [b"no image"]
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar100" / f"{split}.parquet", nothing, [0], image="img", label="fine_label")
    write_parquet(tmp_path / "mnist" / "test.parquet", nothing, [0])
    write_parquet(tmp_path / "pacs" / "train-00000-of-00002.parquet", nothing, [0], domains=["photo"])
    return tmp_path


def data_rows(folder):
    return {title.strip(): text for title, text in doctor.data(folder) if title}


def test_scenarios_are_sorted_by_what_the_folder_has_and_nothing_is_decoded(sets, monkeypatch):
    monkeypatch.setattr(formats, "read_parquet", lambda *_: pytest.fail("a file was read"))
    found = data_rows(sets)
    assert found["data"] == str(sets) and found["complete"] == "split_cifar100"
    assert "split_digits" in found["need none"] and "split_glyphs" in found["need none"]
    assert "digit_domains (mnist/train, usps)" in found["missing"]
    assert doctor.asked_of("pacs", sets).missing == ["pacs/train is damaged"]  # one of two shards
    assert doctor.asked_of("five_datasets", sets).missing[:2] == ["svhn", "mnist/train"]
    assert doctor.asked_of("folder", sets).any_set
    listed = " ".join(text for _, text in doctor.data(sets))
    assert {name for name in plugins.names("scenarios") if name not in listed} == {"folder"}
    (sets / "pacs" / "train-00001-of-00002.parquet").write_bytes(b"there")
    assert data_rows(sets)["complete"] == "pacs, split_cifar100"


def test_a_scenario_that_doctor_calls_complete_can_be_built(sets, write_parquet, tmp_path):
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(100)]
    for split in ("train", "test"):
        file = tmp_path / "cifar100" / f"{split}.parquet"
        write_parquet(file, images, range(100), [f"c{i}" for i in range(100)], image="img", label="fine_label")
    assert "split_cifar100" in data_rows(sets)["complete"]
    data = DataAccess(sets, tmp_path / "cache", 8)
    assert len(plugins.load("scenarios", "split_cifar100")().build(data).train_stream) == 10


def test_without_a_folder_data_sets_come_from_the_hub(tmp_path):
    assert "split_cifar100" in data_rows(None)["from Hub"] and "no --data-dir" in data_rows(None)["data"]
    assert data_rows(tmp_path / "nowhere")["data"].endswith("no such folder")


def test_the_screen_has_every_part_and_no_secret(sets, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:hf_secret@127.0.0.1:9")
    monkeypatch.setattr(doctor, "SPEED_SECONDS", 0.02)
    assert cli.main(["doctor", "--data-dir", str(sets)]) == 0
    out = capsys.readouterr().out
    titles = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert titles == ["clsim", "Python", "packages", "extras", "CPU", "devices", "auto", "bf16", "cache", "data", "Hub"]
    assert "127.0.0.1 is not reachable" in out and "secret" not in out and "MISSING" not in out
    assert len(out.splitlines()) <= 25


def test_the_hub_is_asked_unless_told_not_to(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert doctor.hub() == "127.0.0.1 is reachable (status 501)"
    server.shutdown()
    assert doctor.hub(seconds=0.05).startswith("127.0.0.1 is not reachable")  # nobody answers any more
    server.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "nonsense")
    assert doctor.hub() == "not asked: HF_HUB_OFFLINE is set"


def test_extras_say_what_is_missing(monkeypatch):
    required = ["torch>=2", 'ray>=2; extra == "ray"', "nowhere-to-be-had==1; extra == 'pretrain'", 'x; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    monkeypatch.setattr(doctor, "version", lambda name: None if name.startswith("nowhere") else "1")
    assert doctor.extras() == ["ray", "pretrain (not installed: nowhere-to-be-had)"]


def test_speed_counts_products_per_second(monkeypatch):
    monkeypatch.setattr(doctor, "SPEED_SECONDS", 0.05)
    assert doctor.speed("cpu", torch.float32) > 1
