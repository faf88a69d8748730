"""clip_micro's pretraining: what it sees, its loss by hand, repeatable and resumable, and a file that loads."""

import json

import numpy as np
import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.backbones.stored import WEIGHTS
from clsim.data import captions, glyphs
from clsim.pretrain import clip_micro
from clsim.pretrain.clip_micro import Pairs, Pretraining, Recipe, contrast, matches, pairs

RECIPE = Recipe(steps=4, batch_size=8, warmup_steps=2)


def test_batches_hold_no_class_that_is_held_out_and_no_picture_twice():
    batches = [pairs(Recipe(batch_size=256), step) for step in range(3)]
    assert not {c for batch in batches for c in batch.classes.tolist()} & glyphs.HELD_OUT
    pictures = [image.tobytes() for batch in batches for image in batch.images]
    assert len(set(pictures)) == len(pictures)
    shares = np.bincount(np.concatenate([batch.domains for batch in batches]), minlength=6) / 768
    assert np.abs(shares - Recipe().domain_shares).max() < 0.06
    again = pairs(Recipe(batch_size=256), 1)
    assert np.array_equal(again.images, batches[1].images) and again.captions == batches[1].captions


def test_an_image_fits_the_captions_that_are_true_of_it():
    written = [captions.Caption("a", -1), captions.Caption("b", 5), captions.Caption("c", 4)]
    batch = Pairs(np.zeros((3, 3, 32, 32), np.uint8), np.array([7, 7, 9]), np.array([4, 5, 4]), written)
    # the first caption tells no domain; the second one image's; the third is of another class
    assert matches(batch).tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_the_contrast_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    one_each = torch.eye(2, dtype=torch.bool)
    rows = (-2 + np.log(np.exp(2) + 1) - 1 + np.log(1 + np.exp(1))) / 2  # the columns say the same
    assert contrast(logits, one_each).item() == pytest.approx(rows)
    # the first caption fits both images: its column's target is a half each
    shared = torch.tensor([[True, False], [True, True]])
    row = (-2 + np.log(np.exp(2) + 1)) + (-0.5 + np.log(1 + np.exp(1)))
    column = (-1 + np.log(np.exp(2) + 1)) + (-1 + np.log(1 + np.exp(1)))
    assert contrast(logits, shared).item() == pytest.approx((row / 2 + column / 2) / 2)


def job(out, recipe=RECIPE):
    return Pretraining(recipe, out, say=lambda text: None)


def test_same_seed_same_file_and_an_interrupted_one_goes_on_to_it(tmp_path):
    whole = job(tmp_path / "whole").run().read_bytes()
    job(tmp_path / "broken").run(stop=2)
    second = job(tmp_path / "broken")
    assert second.trainer.step == 2
    assert second.run().read_bytes() == whole


def test_the_weights_load(tmp_path):
    done = job(tmp_path)
    backbone = load_backbone("clip_micro", done.run(stop=1))
    for name, tensor in backbone.image.visual.state_dict().items():
        assert torch.equal(tensor, done.clip.visual.state_dict()[name].half().float())


def test_captions_behind_fillers_fit_the_context(tmp_path):
    texts = job(tmp_path)._texts(["a photo of a striped star."] * 8, 0)
    assert texts.shape == (8, 128)


def test_the_bundled_weights_say_how_they_were_made():
    said = json.loads((WEIGHTS / "clip_micro.json").read_text())
    assert said["recipe"] == json.loads(json.dumps(clip_micro.asdict(Recipe())))
    assert (WEIGHTS / "clip_micro.safetensors").stat().st_size <= 8e6


@pytest.mark.slow
def test_the_bundled_weights_are_as_good_as_they_say():
    said = json.loads((WEIGHTS / "clip_micro.json").read_text())["zero-shot accuracy"]
    found = clip_micro.quality(load_backbone("clip_micro"))
    for group, hows in said.items():
        for how, domains in hows.items():
            for domain, share in domains.items():
                assert found[group][how][domain] == pytest.approx(share, abs=0.01), (group, how, domain)
    assert said["held out"]["one template"]["real"] > 0.6
