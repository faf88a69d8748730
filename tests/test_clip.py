"""CLIP's towers against open_clip's own forward; tokens, cuts and refusals; backbones by name."""

import open_clip
import pytest
import torch

from clsim.backbones import load_clip
from clsim.backbones.clip import ClipVisionTower, OpaqueTower, TextTower
from clsim.backbones.load import load_backbone
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError

TEXTS = ["a photo of a striped star.", "x", "the very small dotted ring, a pencil drawing of 7 unknown things"]


def model_and_towers(name):
    torch.manual_seed(0)
    if name == "nano":
        clip = load_clip.small_clip(load_clip.NANO).eval()
        return clip, *load_clip.small_towers(clip, 16), load_clip.small_tokenizer()
    clip = open_clip.create_model(name).eval()
    tokenizer = open_clip.get_tokenizer(name)
    return clip, ClipVisionTower(clip.visual, InputSpec(224)), TextTower(clip, tokenizer), tokenizer


@pytest.mark.parametrize("name", ["nano", pytest.param("ViT-B-32", marks=pytest.mark.slow)])
@torch.no_grad()
def test_towers_equal_open_clip(name):
    clip, image, text, tokenizer = model_and_towers(name)
    images = torch.randn(2, 3, image.pixels.size, image.pixels.size)
    assert torch.allclose(image(images), clip.encode_image(images), atol=1e-5)
    assert torch.allclose(text(TEXTS), clip.encode_text(tokenizer(TEXTS)), atol=1e-5)
    assert text.logit_scale == pytest.approx(1 / 0.07)


def test_gradients_equal_open_clip():
    clip, _, text, tokenizer = model_and_towers("nano")
    clip.double()  # gradients of random weights are large: float32 would round them in the third decimal
    weight = clip.token_embedding.weight
    (ours,) = torch.autograd.grad(text(TEXTS).square().sum(), weight)
    (theirs,) = torch.autograd.grad(clip.encode_text(tokenizer(TEXTS)).square().sum(), weight)
    assert torch.allclose(ours, theirs)


def test_every_word_of_the_captions_is_one_token_and_others_are_spelt():
    from clsim.data import captions, glyphs

    tokenizer = load_clip.small_tokenizer()
    words = captions.vocabulary(glyphs.class_names())
    assert all(len(tokenizer.encode(word)) == 1 for word in words)
    assert tokenizer.decode(tokenizer.encode("zebra crossing")).strip() == "zebra crossing"


def test_texts_are_cut_behind_the_longest_and_one_that_is_too_long_is_named():
    text = load_backbone("clip_nano").text
    ids, ends = text.tokens(["a star", "a", "star"])
    assert ids.shape == (3, 4) and ends.tolist() == [3, 2, 2]
    fits = " ".join(["a"] * 62)
    assert text.tokens([fits])[0].shape == (1, 64)
    with pytest.raises(RequestError, match="has 65 tokens; the text tower takes 64"):
        text.tokens([f"{fits} a"])


def test_features_start_at_any_position():
    text = load_backbone("clip_nano").text
    ids, ends = text.tokens(["a star"])
    there = text.features(text.embed(ids), ends, start=3)
    assert not torch.allclose(there, text(["a star"]), atol=1e-4)
    assert torch.allclose(
        there, text.features(text.embed(ids) + text.positions[3:7] - text.positions[:4], ends), atol=1e-5
    )


def test_a_resnet_gives_features_and_has_no_tokens():
    torch.manual_seed(0)
    clip = open_clip.create_model("RN50").eval()
    tower = OpaqueTower(clip.visual, InputSpec(224), clip.visual.output_dim).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(tower(images), clip.encode_image(images))
    assert tower.out_dim == 1024 and tower.dtype == torch.float32
    with pytest.raises(RequestError, match="has no tokens to tune"):
        tower.encode(images)


def test_text_models_of_other_kinds_are_refused():
    clip = load_clip.small_clip(load_clip.NANO)
    clip.text_pool_type = "last"
    with pytest.raises(RequestError, match="read their feature at the end of the text"):
        TextTower(clip, load_clip.small_tokenizer())


def test_unknown_models_and_tags_are_named_with_what_there_is():
    with pytest.raises(RequestError, match="did you mean 'ViT-B-16'"):
        load_backbone("clip:ViT-B16/openai")
    with pytest.raises(RequestError, match="openai"):
        load_backbone("clip:ViT-B-16/openapi")


def test_local_weights_of_an_open_clip_model_load(tmp_path):
    torch.manual_seed(3)
    clip = open_clip.create_model("ViT-S-32-alt", force_quick_gelu=False).eval()
    file = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), file)
    tag = open_clip.list_pretrained_tags_by_model("ViT-B-32")[0]
    with pytest.raises(RequestError, match="do not fit"):
        load_backbone(f"clip:ViT-B-32/{tag}", file)


@pytest.fixture
def stored_clip(tmp_path, monkeypatch):
    """A small open_clip model whose only tag is "here", and whose weights, random, are in a file."""
    torch.manual_seed(3)
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), file)
    create = load_clip.create_model

    def from_file(name, pretrained, **options):
        return create(name, pretrained=pretrained and str(file), **options)

    monkeypatch.setattr(load_clip, "list_pretrained_tags_by_model", lambda name: ["here"])
    monkeypatch.setattr(load_clip, "get_pretrained_cfg", lambda name, tag: {"mean": (0.5,) * 3, "std": (0.5,) * 3})
    monkeypatch.setattr(load_clip, "create_model", from_file)
    return file


@pytest.mark.parametrize("local", [True, False])
@torch.no_grad()
def test_a_tower_of_another_image_size_is_open_clips_model_of_that_size(stored_clip, local):
    backbone = load_backbone("clip:ViT-S-32-alt/here", stored_clip if local else None, 96)
    assert (backbone.image.pixels.size, backbone.image.grid) == (96, (3, 3))
    clip = open_clip.create_model("ViT-S-32-alt", pretrained=str(stored_clip), force_image_size=96).eval()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(backbone.image(images), clip.encode_image(images), rtol=0, atol=1e-5)
    ids = open_clip.get_tokenizer("ViT-S-32-alt")(TEXTS)
    torch.testing.assert_close(backbone.text(TEXTS), clip.encode_text(ids), rtol=0, atol=1e-5)


def test_images_for_published_weights_are_resized_as_in_their_training(stored_clip, monkeypatch):
    assert load_backbone("clip:ViT-S-32-alt/here").image.pixels.interpolation == "bicubic"
    assert load_backbone("clip_nano").image.pixels.interpolation == "bilinear"
    published = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    assert published["interpolation"] == "bicubic"
    monkeypatch.setattr(load_clip, "get_pretrained_cfg", lambda name, tag: published | {"interpolation": "bilinear"})
    assert load_backbone("clip:ViT-S-32-alt/here").image.pixels.interpolation == "bilinear"


def test_open_clips_towers_that_cannot_have_that_size_are_named(stored_clip):
    with pytest.raises(RequestError, match="patches of 32x32 pixels, which do not divide --image-size 100; 96 and 128"):
        load_backbone("clip:ViT-S-32-alt/here", None, 100)
    for name in ("clip:RN50/here", "clip:convnext_base/here"):
        with pytest.raises(RequestError, match=f"{name} takes images of one size only: its image tower is not"):
            load_backbone(name, None, 96)
