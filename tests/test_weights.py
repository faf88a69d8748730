"""Files of weights as people have them: every layout gives the library's features, and what does not fit is refused."""

import argparse
import json
import os
import pickle
import re
import zipfile

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from clsim.backbones import load_clip
from clsim.backbones.layouts import for_clip, for_timm
from clsim.backbones.load import Backbone, load_backbone, require_library_features
from clsim.backbones.stored import load_into, read_weights
from clsim.backbones.vit import VisionTower, nano_vit
from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError
from clsim.strategies.l2p import L2P

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def small(seed=0, **options):
    """A small ViT whose weights are all away from zeros and ones."""
    torch.manual_seed(seed)
    model = VisionTransformer(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(size=16, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def nano(seed=3):
    torch.manual_seed(seed)
    return nano_vit()


def saved(tmp_path, content, name="weights.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def loaded(content, tmp_path):
    """The weights of vit_nano after loading this file into it."""
    return load_backbone("vit_nano", saved(tmp_path, content)).image.vit.state_dict()


def same(found, expected):
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# what fits


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


LAYOUTS = {
    "plain": lambda w, o: w,
    "a head": lambda w, o: w | {"head.weight": torch.ones(3, 32), "fc.bias": torch.ones(3)},
    **{p: lambda w, o, p=p: prefixed(p, w) for p in ("module.", "model.", "backbone.", "encoder.", "teacher.")},
    "nested prefixes": lambda w, o: prefixed("module._orig_mod.backbone.", w),
    "state_dict": lambda w, o: {"state_dict": w, "epoch": 3},
    "model": lambda w, o: {"model": w, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
    "EMA alone": lambda w, o: {"state_dict_ema": prefixed("module.", w)},
    "EMA of a model": lambda w, o: {"model_ema": w, "epoch": 3},
    "weights and EMA": lambda w, o: {"state_dict": w, "state_dict_ema": o},
    "Lightning": lambda w, o: {"state_dict": prefixed("model.", w), "pytorch-lightning_version": "2", "hparams": {}},
    "MAE": lambda w, o: {
        "model": w
        | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.bias": torch.ones(8), "decoder_norm.bias": torch.ones(8)}
    },
    "DINO": lambda w, o: {
        "student": prefixed("module.backbone.", o),
        "teacher": prefixed("backbone.", w) | {"head.mlp.0.weight": torch.ones(2, 2)},
    },
    "DINO in one": lambda w, o: (
        prefixed("student.backbone.", o)
        | prefixed("teacher.backbone.", w)
        | {"teacher.dino_head.last_layer.weight": torch.ones(2), "student.dino_head.last_layer.weight": torch.ones(2)}
    ),
    "MoCo": lambda w, o: prefixed("module.momentum_encoder.", o) | prefixed("module.base_encoder.", w),
    "Meta's chunks of blocks": lambda w, o: {re.sub(r"^blocks\.", "blocks.0.", n): t for n, t in w.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_in_every_wrapper_are_the_same_weights(layout, tmp_path):
    expected = nano().state_dict()
    assert same(loaded(LAYOUTS[layout](expected, nano(4).state_dict()), tmp_path), expected)


def test_half_precision_is_read_into_float32(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        expected = {name: tensor.to(dtype) for name, tensor in nano().state_dict().items()}
        found = loaded(expected, tmp_path)
        assert same(found, {name: tensor.float() for name, tensor in expected.items()})
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_the_copy_that_is_used_is_said(tmp_path, capsys):
    weights = nano().state_dict()
    loaded({"student": prefixed("backbone.", weights), "teacher": prefixed("backbone.", weights)}, tmp_path)
    assert capsys.readouterr().err == "clsim: weights.pt has the weights 'teacher', 'student'; 'teacher' is used\n"
    loaded(prefixed("student.", weights) | prefixed("teacher.", weights), tmp_path)
    assert capsys.readouterr().err == "clsim: the weights teacher.* are used, and not student.*\n"


# what does not


REFUSED = {
    "a block too many": (lambda w: w | {"blocks.2.norm1.bias": torch.ones(32)}, "has 'blocks.2.norm1.bias', for which"),
    "a scale": (lambda w: w | {"blocks.0.ls1.gamma": torch.ones(32)}, "has 'blocks.0.ls1.gamma', for which"),
    "a norm": (lambda w: w | {"norm_pre.bias": torch.ones(32)}, "has 'norm_pre.bias', for which"),
    "one in a wrapper": (
        lambda w: prefixed("model.", w) | {"adapter.up": torch.ones(2)},
        "has 'adapter.up', for which",
    ),
    "registers": (lambda w: w | {"register_tokens": torch.ones(1, 4, 32)}, "has 'reg_token', for which"),
    "missing": (lambda w: {n: t for n, t in w.items() if n != "norm.bias"}, "the file lacks 'norm.bias'$"),
    "many missing": (lambda w: {"cls_token": w["cls_token"]}, "lacks 'pos_embed', .* and 25 more"),
    "a shape": (lambda w: w | {"norm.bias": torch.ones(31)}, r"another shape for 'norm.bias' \(\(31,\), not \(32,\)\)"),
    "another width": (lambda w: w | {"cls_token": torch.ones(1, 2, 32)}, "another shape for 'cls_token'"),
    "NaN": (lambda w: w | {"norm.bias": torch.full((32,), torch.nan)}, "NaN or infinite numbers in 'norm.bias'"),
    "infinity": (lambda w: w | {"norm.bias": torch.full((32,), torch.inf)}, "NaN or infinite numbers in 'norm.bias'"),
    "integers": (lambda w: w | {"norm.bias": torch.ones(32).int()}, "'norm.bias' of type int32, where floating-point"),
    "all integers": (lambda w: {n: t.char() for n, t in w.items()}, "'cls_token', .* and 26 more of type int8"),
    "a list": (lambda w: list(w.values()), "it has a list, not tensors by name"),
    "a tensor": (lambda w: w["cls_token"], "it has a Tensor, not tensors by name"),
    "a text": (lambda w: "weights", "it has a str, not tensors by name"),
    "nothing": (lambda w: {}, "no tensors in it; it has nothing"),
    "no tensors": (lambda w: {"epoch": 3, "lr": 0.1}, "no tensors in it; it has 'epoch', 'lr'"),
    "a list as state_dict": (lambda w: {"state_dict": [1, 2]}, "no tensors in it; it has 'state_dict'"),
    "other patches": (
        lambda w: w | {"patch_embed.proj.weight": torch.ones(32, 3, 8, 8)},
        "patches of 8x8 pixels, not 4x4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_by_name(case, tmp_path):
    change, words = REFUSED[case]
    with pytest.raises(RequestError, match=words) as caught:
        loaded(change(nano().state_dict()), tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_head_may_have_any_numbers(tmp_path):
    expected = nano().state_dict()
    head = {"head.weight": torch.full((3, 32), torch.nan), "head.bias": torch.ones(3).int()}
    assert same(loaded(expected | head, tmp_path), expected)


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def broken_files(folder):
    torch.save(nano().state_dict(), folder / "whole.pt")
    save_file(nano().state_dict(), folder / "whole.safetensors")
    whole, safe = (folder / "whole.pt").read_bytes(), (folder / "whole.safetensors").read_bytes()
    np.savez(folder / "objects.npz", a=np.array([Evil()], dtype=object))
    contents = {
        "empty.pt": b"",
        "empty.safetensors": b"",
        "half.pt": whole[: len(whole) // 2],
        "half.safetensors": safe[: len(safe) // 2],
        "half.npz": (folder / "objects.npz").read_bytes()[:200],
        "text.pt": b"hello\n" * 9,
        "zeros.pt": bytes(999),
        "json.safetensors": b'{"a": 1}',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"a": Evil()}, folder / "evil.pt")
    torch.save({"a": Evil()}, folder / "evil_old.pt", _use_new_zipfile_serialization=False)
    torch.save(nano(), folder / "module.pt")
    os.mkfifo(folder / "pipe.pt")
    (folder / "folder.pt").mkdir()
    return [*contents, "objects.npz", "evil.pt", "evil_old.pt", "module.pt", "pipe.pt", "folder.pt"]


def test_files_that_are_not_weights_are_refused_in_one_line_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in broken_files(tmp_path):
        with pytest.raises(RequestError, match=f"cannot read weights from {name}: ") as caught:
            load_backbone("vit_nano", tmp_path.__class__(name))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, name
        assert "weights_only" not in str(caught.value), name
    assert not (tmp_path / "was_run").exists()


# other layouts, compared with the library's own conversion or features


def test_hugging_faces_vit_has_hugging_faces_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        layer_norm_eps=1e-6,
    )
    vit = transformers.ViTForImageClassification(config).eval()
    vit.save_pretrained(tmp_path)
    model = VisionTransformer(**SMALL, mlp_ratio=2).eval()
    load_into(model, for_timm(read_weights(tmp_path / "model.safetensors"), model, "here"), "here")
    with torch.no_grad():
        expected = vit.vit(images()).last_hidden_state
        torch.testing.assert_close(model.forward_features(images()), expected, rtol=0, atol=1e-4)


def test_hugging_faces_dinov2_with_registers_has_its_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    dino = transformers.Dinov2WithRegistersModel(config).eval()
    dino.save_pretrained(tmp_path)
    model = VisionTransformer(**SMALL, init_values=1.0, reg_tokens=4, no_embed_class=True).eval()
    load_into(model, for_timm(read_weights(tmp_path / "model.safetensors"), model, "here"), "here")
    with torch.no_grad():
        expected = dino(images()).last_hidden_state
        torch.testing.assert_close(model.forward_features(images()), expected, rtol=0, atol=1e-4)


def test_metas_registers_have_no_position_and_the_class_token_keeps_its_own():
    ours = small(reg_tokens=2, no_embed_class=True, init_values=0.1)
    weights = dict(ours.state_dict())
    position = torch.full((1, 1, 24), 0.5)
    meta = {n: t for n, t in weights.items() if n not in ("reg_token", "cls_token", "pos_embed")}
    meta |= {"register_tokens": weights["reg_token"], "cls_token": weights["cls_token"] - position}
    meta |= {"pos_embed": torch.cat([position, weights["pos_embed"]], dim=1)}
    for extra in ({}, {"mask_token": torch.zeros(1, 24)}):
        found = for_timm(meta | extra, ours, "here")
        assert set(found) == set(weights)
        torch.testing.assert_close(dict(found), weights)


def google(model, big=False, stacked=False):
    """The weights of a timm model in Google's layout."""
    w = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    attention, mlp, norm2 = (0, 0, 1) if big else (1, 3, 2)
    found = {"cls": w["cls_token"], "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0)}
    found |= {"embedding/bias": w["patch_embed.proj.bias"], "head/bias": np.ones(3), "head/kernel": np.ones((24, 3))}
    found["pos_embedding" if big else "Transformer/posembed_input/pos_embedding"] = w["pos_embed"]
    found |= {"Transformer/encoder_norm/scale": w["norm.weight"], "Transformer/encoder_norm/bias": w["norm.bias"]}
    blocks = []
    for i in range(len(model.blocks)):
        block, p = {}, f"blocks.{i}."
        for j, name in enumerate(("query", "key", "value")):
            path = f"MultiHeadDotProductAttention_{attention}/{name}"
            block[f"{path}/kernel"] = w[f"{p}attn.qkv.weight"][24 * j : 24 * (j + 1)].T.reshape(24, 2, 12)
            block[f"{path}/bias"] = w[f"{p}attn.qkv.bias"][24 * j : 24 * (j + 1)].reshape(2, 12)
        out = f"MultiHeadDotProductAttention_{attention}/out"
        block |= {
            f"{out}/kernel": w[f"{p}attn.proj.weight"].T.reshape(2, 12, 24),
            f"{out}/bias": w[f"{p}attn.proj.bias"],
        }
        for j in (0, 1):
            block[f"MlpBlock_{mlp}/Dense_{j}/kernel"] = w[f"{p}mlp.fc{j + 1}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{j}/bias"] = w[f"{p}mlp.fc{j + 1}.bias"]
            block[f"LayerNorm_{(0, norm2)[j]}/scale"] = w[f"{p}norm{j + 1}.weight"]
            block[f"LayerNorm_{(0, norm2)[j]}/bias"] = w[f"{p}norm{j + 1}.bias"]
        blocks.append(block)
    if stacked:
        return found | {f"Transformer/encoderblock/{n}": np.stack([b[n] for b in blocks]) for n in blocks[0]}
    return found | {f"Transformer/encoderblock_{i}/{n}": t for i, b in enumerate(blocks) for n, t in b.items()}


@pytest.mark.parametrize(
    ("prefix", "options"),
    [("", {}), ("opt/target/", {}), ("params/", {"big": True}), ("params/img/", {"big": True, "stacked": True})],
)
def test_googles_archives_are_read_as_timm_reads_them(prefix, options, tmp_path):
    ours, theirs, file = small(), small(1), tmp_path / "google.npz"
    np.savez(file, **{prefix + name: tensor for name, tensor in google(ours, **options).items()})
    theirs.load_pretrained(str(file))
    found = small(2)
    load_into(found, for_timm(read_weights(file), found, str(file)), str(file))
    assert same(found.state_dict(), ours.state_dict()) and same(theirs.state_dict(), ours.state_dict())


def test_googles_archives_that_do_not_fit_are_refused(tmp_path):
    deeper, file = small(depth=3), tmp_path / "google.npz"
    np.savez(file, **google(deeper))
    model = small()
    with pytest.raises(RequestError, match=r"has 'blocks.2.attn.qkv.weight', .* and 8 more, for which"):
        load_into(model, for_timm(read_weights(file), model, "here"), "here")
    np.savez(file, **{n: t for n, t in google(model).items() if n != "cls"})
    with pytest.raises(RequestError, match="lacks 'cls_token'$"):
        load_into(model, for_timm(read_weights(file), model, "here"), "here")


def test_mae_fine_tuned_weights_pool_by_average(tmp_path, monkeypatch, capsys):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, depth=1, **options))
    torch.manual_seed(0)
    tuned = timm.create_model("vit_tiny_patch16_224", num_classes=5, global_pool="avg").eval()
    with torch.no_grad():
        tuned.fc_norm.bias.add_(torch.randn(192))
    backbone = load_backbone("vit_tiny_patch16_224", saved(tmp_path, {"model": tuned.state_dict()}))
    assert "pools by average" in capsys.readouterr().err
    with torch.no_grad():
        expected = tuned.forward_head(tuned.forward_features(images(224)), pre_logits=True)
        torch.testing.assert_close(backbone.image(images(224)), expected, rtol=0, atol=1e-4)


# CLIP


def small_clip(quick=False, seed=0):
    """A CLIP with heads of width 64, as OpenAI's have, for images of 16x16."""
    torch.manual_seed(seed)
    vision = {"layers": 2, "width": 64, "patch_size": 4, "image_size": 16}
    text = {"context_length": 77, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2}
    return open_clip.CLIP(32, vision, text, quick_gelu=quick).eval()


def archive(clip, file):
    """The model's weights as a TorchScript archive with OpenAI's three numbers."""

    class Sub(torch.nn.Module):
        def forward(self):
            return 1

    top = Sub()
    for name, tensor in clip.state_dict().items():
        *path, last = name.split(".")
        module = top
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, Sub())
            module = dict(module.named_children())[part]
        module.register_parameter(last, torch.nn.Parameter(tensor.clone(), requires_grad=False))
    for name, number in (("input_resolution", 16), ("context_length", 77), ("vocab_size", 99)):
        top.register_buffer(name, torch.tensor(number))
    torch.jit.script(top).save(str(file))
    return file


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_an_archive_of_torchscript_is_read_without_its_program(tmp_path, monkeypatch):
    clip = small_clip().half()
    file = archive(clip, tmp_path / "clip.pt")
    expected = clip.state_dict()
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("the program was loaded"))
    weights = read_weights(file)
    assert same(weights, expected)
    assert set(weights) - set(expected) == {"input_resolution", "context_length", "vocab_size"}
    other = small_clip(seed=1)
    load_into(other, for_clip(weights, other), "here")
    assert same(other.state_dict(), {n: t.float() for n, t in expected.items()})


def test_an_archive_with_anything_but_weights_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pt"
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("evil/data.pkl", pickle.dumps({"weight": Evil()}))
        content.writestr("evil/constants.pkl", pickle.dumps(()))
    with pytest.raises(RequestError, match="Python objects .*mkdir"):
        read_weights(file)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openais_archive_is_quick_gelu_in_timm_or_refused(tmp_path):
    clip = small_clip(quick=True)
    weights = read_weights(archive(clip, tmp_path / "clip.pt"))
    options = SMALL | {"embed_dim": 64, "num_heads": 1, "pre_norm": True, "norm_layer": torch.nn.LayerNorm}
    with pytest.raises(RequestError, match="trained with QuickGELU; this backbone has GELU: .*clip_quickgelu"):
        for_timm(weights, VisionTransformer(**options), "here")
    model = VisionTransformer(**options, act_layer="quick_gelu").eval()
    load_into(model, for_timm(weights, model, "here"), "here")
    with torch.no_grad():
        expected = clip.encode_image(images())
        torch.testing.assert_close(model(images()) @ clip.visual.proj, expected, rtol=0, atol=1e-4)


def test_hugging_faces_clip_has_hugging_faces_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    both = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    text = both | {"vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=both | {"image_size": 16, "patch_size": 4}, projection_dim=32
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    clip = small_clip(quick=True)
    load_into(clip, for_clip(read_weights(tmp_path / "model.safetensors"), clip), "here")
    ids = torch.tensor([[97, 5, 6, 98, *[0] * 73]])
    with torch.no_grad():
        output = theirs(input_ids=ids, pixel_values=images())
        found = clip.encode_image(images(), normalize=True), clip.encode_text(ids, normalize=True)
    torch.testing.assert_close(found[0], output.image_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], output.text_embeds, rtol=0, atol=1e-4)


@pytest.fixture
def vit_s_32(tmp_path, monkeypatch):
    """Writes weights of open_clip's ViT-S-32-alt, whose only tag, "here", stands for GELU."""
    torch.manual_seed(3)
    clip = open_clip.create_model("ViT-S-32-alt")
    about = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setattr(load_clip, "list_pretrained_tags_by_model", lambda name: ["here"])
    monkeypatch.setattr(load_clip, "get_pretrained_cfg", lambda name, tag: about)
    return clip, tmp_path


@pytest.mark.parametrize("how", ["numbers", "open_clip_config.json", "config.json", "nothing"])
def test_quick_gelu_is_used_where_the_file_says_so(vit_s_32, how, capsys):
    clip, folder = vit_s_32
    weights = dict(clip.state_dict())
    if how == "numbers":
        weights |= {n: torch.tensor(1) for n in ("input_resolution", "context_length", "vocab_size")}
    elif how == "open_clip_config.json":
        (folder / how).write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    elif how == "config.json":
        (folder / how).write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}))
    backbone = load_backbone("clip:ViT-S-32-alt/here", saved(folder, weights))
    acts = {type(block.part("act")).__name__ for tower in backbone.towers() for block in tower.layers}
    assert acts == {"GELU" if how == "nothing" else "QuickGELU"}
    assert ("was trained with QuickGELU, which is used" in capsys.readouterr().err) == (how != "nothing")


# the comparison with the library


def test_a_tower_whose_features_differ_from_the_librarys_is_refused():
    tower = VisionTower(small(), InputSpec(16)).eval()
    require_library_features("vit", tower)
    tower.layers = tower.layers[:1]
    with pytest.raises(RequestError, match=r"vit cannot be used: the image features .* differ .* by \d+\.\d%"):
        require_library_features("vit", tower)


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_clip_whose_features_differ_from_the_librarys_is_refused(which):
    clip = load_clip.small_clip(load_clip.NANO)
    image, text = load_clip.small_towers(clip, 16)
    load_clip.require_library_features("clip", clip, image, text)
    changed = image if which == "image" else text
    changed.layers = changed.layers[:1]
    with pytest.raises(RequestError, match=f"clip cannot be used: the {which} features"):
        load_clip.require_library_features("clip", clip, image, text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deit_tiny_distilled_patch16_224", "is a VisionTransformerDistilled, whose .* is not that of timm's"),
        ("resnet18", "'resnet18' is a ResNet; image towers are timm VisionTransformers"),
        ("vit_base_patch16_siglip_224", "towers pool by class token or average, not 'map'"),
        ("vit_base_patch16_rpn_224", "towers are made of timm's plain Block with Attention, not ResPostBlock"),
    ],
)
def test_backbones_that_cannot_work_are_refused_before_any_download(name, words, no_download):
    with pytest.raises(RequestError, match=words):
        load_backbone(name)


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base", "roberta-ViT-B-32"])
def test_clips_that_cannot_work_are_refused_before_any_download(model, monkeypatch):
    create = load_clip.create_model

    def offline(name, pretrained=None, **options):
        assert not pretrained, "nothing may be downloaded"
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(load_clip, "create_model", offline)
    tag = open_clip.list_pretrained_tags_by_model(model)[0]
    with pytest.raises(RequestError, match="text tower|image tower"):
        load_backbone(f"clip:{model}/{tag}")


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True, "reg_tokens": 1}])
def test_l2p_adds_the_position_of_the_class_token_to_its_prompts_where_there_is_one(options):
    tower = VisionTower(small(**options), InputSpec(16)).eval().requires_grad_(False)
    info = StreamInfo(("a", "b"), (), "class", 1)
    with torch.no_grad():
        batch = Batch(images(), tower(images()), torch.tensor([0, 1]))
    found = []
    for order in ("prompts_cls_patches", "cls_prompts_patches"):
        torch.manual_seed(0)
        learner = L2P(order=order).build(Backbone("small", tower), info).eval()
        with torch.no_grad():
            found.append(learner(batch).features)
    assert torch.equal(*found) == bool(options)


# names


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ViT-B/16", "vit_base_patch16_224"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("vit-base-patch16-224", "vit_base_patch16_224"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("ViT-L/14", "vit_large_patch14_224"),
        ("dinov2_vits14", "vit_small_patch14_dinov2"),
        ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2"),
        ("facebook/dinov2-base", "vit_base_patch14_dinov2"),
        ("dino_vits16", "vit_small_patch16_224.dino"),
        ("mae_vit_base_patch16", "vit_base_patch16_224.mae"),
        ("hf_hub:timm/vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("hf-hub:timm/vit_small_patch16_224", "vit_small_patch16_224"),
        ("openai/clip-vit-base-patch16", "clip:ViT-B-16/openai"),
        ("vit_mikro", "vit_micro"),
        ("clip:ViT-B-16", "clip:ViT-B-16/openai"),
        ("clip:ViT-B/16", "clip:ViT-B-16/openai"),
        ("clip:vit-b-16/openai", "ViT-B-16"),
        ("vit_base_patch16_224.augreg_in21", "augreg_in21k"),
    ],
)
def test_names_as_people_write_them_get_the_right_one_and_a_short_list(name, right):
    with pytest.raises(RequestError) as caught:
        load_backbone(name)
    message = str(caught.value)
    assert f"(did you mean {right!r}?)" in message
    assert message.count(",") <= 9 and len(message) < 400


def test_a_name_like_nothing_gets_a_short_list_too():
    with pytest.raises(RequestError, match="^no backbone 'qqqq'") as caught:
        load_backbone("qqqq")
    assert len(str(caught.value)) < 300
