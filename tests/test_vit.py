"""VisionTower against timm's own forward, forwards and backwards; what it refuses; what its fingerprint covers."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock, VisionTransformer

from clsim.backbones.load import load_backbone, resampled
from clsim.backbones.towers import attend
from clsim.backbones.vit import ConvStem, VisionTower, micro_vit, nano_vit, timm_layer
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def small(**options):
    return VisionTransformer(**{**SMALL, **options})


MODELS = {
    "micro": micro_vit,
    "nano": nano_vit,
    "tiny": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0),
    "layer scale, qk norm, registers": lambda: small(init_values=0.3, qk_norm=True, reg_tokens=3),
    "average": lambda: small(global_pool="avg"),
    "average with prefix": lambda: small(global_pool="avg", reg_tokens=2, pool_include_prefix=True),
    "average without class token": lambda: small(global_pool="avg", class_token=False),
    "no embedding of the class": lambda: small(no_embed_class=True, reg_tokens=1),
    "norm before, none after": lambda: small(pre_norm=True, final_norm=False),
    "norm of the pooled": lambda: small(fc_norm=True),
    "no biases": lambda: small(qkv_bias=False, proj_bias=False),
    "norms in attention and mlp": lambda: small(scale_attn_norm=True, scale_mlp_norm=True),
}


def randomised(name):
    """A model in evaluation mode whose weights are all away from their starting values, zeros and ones among them."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images_for(model, count=2):
    size = model.patch_embed.img_size[0] if hasattr(model.patch_embed, "img_size") else 32
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_the_tower_is_timms_forward(name):
    model = randomised(name)
    images = images_for(model)
    tower = VisionTower(model, InputSpec(images.shape[-1])).eval()
    with torch.no_grad():
        torch.testing.assert_close(tower(images), model(images), rtol=0, atol=1e-5)
        tokens = tower.encode(tower.embed(images))
        torch.testing.assert_close(tokens, model.forward_features(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(tower.pool(tokens), model(images), rtol=0, atol=1e-5)
    assert tower.width == tower.out_dim == tower(images).shape[1]


@pytest.mark.parametrize("name", ["nano", "layer scale, qk norm, registers", "no biases"])
@pytest.mark.parametrize("read", [slice(0, 1), slice(1, 4), slice(2, None), slice(None)])
def test_reading_some_tokens_is_slicing_all(name, read):
    model = randomised(name)
    tower = VisionTower(model, InputSpec(16)).eval()
    with torch.no_grad():
        tokens = tower.embed(images_for(model))
        torch.testing.assert_close(tower.encode(tokens, read), tower.encode(tokens)[:, read], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["micro", "layer scale, qk norm, registers", "average", "no biases"])
def test_gradients_are_timms(name):
    model = randomised(name)
    images = images_for(model)
    direction = torch.randn(2, model.embed_dim, generator=torch.Generator().manual_seed(2))

    def gradients(forward):
        given = images.clone().requires_grad_()
        model.zero_grad()
        (forward(given) * direction).sum().backward()
        return [given.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = gradients(model)
    found = gradients(VisionTower(model, InputSpec(images.shape[-1])).eval())
    assert len(found) == len(expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max() + 1))


def test_extra_tokens_are_attended_to():
    # prompts are put before the others: the first token's features must change, and only by them
    tower = VisionTower(randomised("nano"), InputSpec(16)).eval()
    with torch.no_grad():
        tokens = tower.embed(images_for(tower.vit))
        prompts = torch.randn(2, 5, tower.width, generator=torch.Generator().manual_seed(3))
        together = torch.cat([prompts, tokens], dim=1)
        assert tower.encode(together, slice(0, 5)).shape == (2, 5, tower.width)
        assert not torch.allclose(tower.encode(together, slice(5, 6)), tower.encode(tokens, slice(0, 1)), atol=1e-3)


def test_attention_by_hand():
    # one head of width 1, weights that copy: queries, keys and values are the tokens 0, ln 2; scale 1
    block = Block(1, num_heads=1)
    attention = block.attn
    with torch.no_grad():
        attention.qkv.weight.fill_(1.0)
        attention.proj.weight.fill_(1.0)
        attention.proj.bias.zero_()
        x = torch.tensor([[[0.0], [0.5]]])
        found = attend(0, timm_layer(block), x)
    # token 0 asks with 0: equal weights, mean 0.25; token 1 asks with 0.5: exp(0) and exp(0.25)
    weight = torch.tensor(0.25).exp()
    assert found[0, 0].item() == pytest.approx(0.25)
    assert found[0, 1].item() == pytest.approx(float(0.5 * weight / (1 + weight)))


def test_images_do_not_see_each_other_in_training():
    tower = VisionTower(micro_vit(), InputSpec(32)).train()
    images = images_for(tower.vit, 4)
    with torch.no_grad():
        torch.testing.assert_close(tower(images)[:1], tower(images[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: small(block_fn=ResPostBlock), "ResPostBlock"),
        (lambda: small(block_fn=ParallelScalingBlock), "ParallelScalingBlock"),
        (lambda: small(attn_layer="diff"), "DiffAttention"),
        (lambda: small(global_pool="map"), "'map'"),
        (lambda: small(global_pool="max"), "'max'"),
    ],
)
def test_other_kinds_are_refused_by_name(model, named):
    with pytest.raises(RequestError, match=named):
        VisionTower(model(), InputSpec(16))


def test_a_classifier_is_left_out():
    tower = VisionTower(small(num_classes=7), InputSpec(16))
    assert tower(torch.zeros(1, 3, 16, 16)).shape == (1, 24)
    assert not any(name.startswith("vit.head") for name in tower.state_dict())


def test_the_stem_makes_a_token_of_every_four_pixels():
    stem = ConvStem(img_size=32, embed_dim=16)
    assert stem(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 16)
    assert (stem.num_patches, stem.grid_size, stem.feat_ratio()) == (64, (8, 8), 4)


def test_the_stem_equals_its_layers_forwards_and_backwards_whatever_the_layout():
    torch.manual_seed(0)
    stem = ConvStem(img_size=32, embed_dim=16).eval()
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    expected = stem.layers(images).flatten(2).transpose(1, 2)
    found = stem(images)
    assert found.is_contiguous()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    learned = [images, *stem.parameters()]
    pull = torch.randn_like(found)
    theirs = torch.autograd.grad(expected, learned, pull)
    for own, wanted in zip(torch.autograd.grad(found, learned, pull), theirs, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-4, atol=1e-5)


def test_the_fingerprint_covers_weights_types_and_pixels():
    def tower(pixels=None):
        torch.manual_seed(0)
        return VisionTower(nano_vit(), pixels or InputSpec(16))

    changed, half = tower(), tower().bfloat16()
    with torch.no_grad():
        changed.vit.blocks[1].mlp.fc1.bias[3] += 1e-6
    prints = [
        tower().fingerprint(),
        changed.fingerprint(),
        half.fingerprint(),
        tower(InputSpec(16, crop=1.0)).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert tower().fingerprint() == prints[0]
    assert half.dtype == torch.bfloat16


# image sizes


@pytest.fixture
def native(tmp_path, monkeypatch):
    """Writes random weights of a shallow timm model at its own image size; timm then builds it with two blocks."""
    create = partial(timm.create_model, depth=2)

    def write(name):
        torch.manual_seed(0)
        model = create(name, num_classes=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        file = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), file)

        def from_file(name, pretrained=False, **options):
            overlay = {"file": str(file)} if pretrained else None
            return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

        monkeypatch.setattr(timm, "create_model", from_file)
        return file

    return write


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_tiny_patch16_224", 96, (6, 6)),
        ("vit_tiny_patch16_224", 256, (16, 16)),
        ("vit_small_patch14_dinov2", 56, (4, 4)),
        ("vit_small_patch14_reg4_dinov2", 56, (4, 4)),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_a_tower_of_another_image_size_is_timms_model_of_that_size(native, name, size, grid, local):
    file = native(name)
    reference = timm.create_model(name, pretrained=True, num_classes=0, img_size=size).eval()
    tower = load_backbone(name, file if local else None, size).image
    assert (tower.pixels.size, tower.grid) == (size, grid)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tower(images), reference(images), rtol=0, atol=1e-5)


def test_the_native_size_and_none_are_the_same_tower(native):
    file = native("vit_tiny_patch16_224")
    towers = [load_backbone("vit_tiny_patch16_224", file, size).image for size in (None, 224, 96)]
    prints = [tower.fingerprint() for tower in towers]
    assert prints[0] == prints[1] != prints[2]


def test_resampling_keeps_prefix_tokens_and_the_mean_of_a_ramp():
    # a 2x2 grid with the values 0 1 2 3 to 4x4, behind a class token and a register of 7 and 9
    vit = small(reg_tokens=1)
    stored = torch.tensor([7.0, 9.0, 0.0, 1.0, 2.0, 3.0]).view(1, 6, 1)
    found = resampled({"pos_embed": stored, "norm.bias": torch.ones(1)}, vit)
    assert found["norm.bias"].item() == 1
    found = found["pos_embed"][0, :, 0]
    assert found[:2].tolist() == [7.0, 9.0] and len(found) == 2 + 16
    grid = found[2:].view(4, 4)
    assert grid.mean().item() == pytest.approx(1.5, abs=1e-5)
    torch.testing.assert_close(grid + grid.flip(0, 1), torch.full((4, 4), 3.0))
    torch.testing.assert_close(grid[1:] - grid[:-1], (grid[1:, :1] - grid[:-1, :1]).expand(3, 4))


def test_files_without_a_square_grid_are_left_to_the_check_of_shapes():
    vit = small()
    for stored in (torch.zeros(1, 1 + 15, 24), torch.zeros(1, 1, 24), torch.zeros(17, 24)):
        assert resampled({"pos_embed": stored}, vit)["pos_embed"] is stored
    assert resampled({}, vit) == {}


def test_a_local_file_of_another_size_is_resampled_and_one_of_another_model_does_not_fit(native, capsys):
    file = native("vit_tiny_patch16_224")
    found = load_backbone("vit_tiny_patch16_384", file).image
    assert capsys.readouterr().err == "clsim: the weights' positions are resampled from 14x14 patches to 24x24\n"
    assert found.grid == (24, 24)
    assert found.fingerprint() == load_backbone("vit_tiny_patch16_384", file, 384).image.fingerprint()
    with pytest.raises(RequestError, match="has another shape for"):
        load_backbone("vit_small_patch16_224", file, 96)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (100, "patches of 16x16 pixels, which do not divide --image-size 100; 96 and 112 are possible"),
        (8, "do not divide --image-size 8; 16 and 32 are possible"),
        (0, "--image-size 0"),
        (-16, "--image-size -16"),
    ],
)
def test_sizes_that_patches_do_not_tile_are_refused_before_weights_are_asked_for(no_download, size, words):
    with pytest.raises(RequestError, match=words):
        load_backbone("vit_tiny_patch16_224.augreg_in21k", None, size)
    with pytest.raises(RequestError, match="'resnet18' is a ResNet; image towers are timm VisionTransformers"):
        load_backbone("resnet18", None, 96)


@pytest.mark.parametrize("name", ["vit_micro", "vit_nano", "clip_micro", "clip_nano"])
def test_bundled_backbones_have_one_size(name):
    with pytest.raises(RequestError, match=f"{name} takes images of one size only; --image-size is for"):
        load_backbone(name, image_size=64)


def test_the_class_token_has_a_position_unless_the_model_gives_it_none():
    model = small()
    assert torch.equal(VisionTower(model, InputSpec(16)).first_position, model.pos_embed[:, :1])
    for without in (small(no_embed_class=True, reg_tokens=1), small(class_token=False, global_pool="avg")):
        position = VisionTower(without, InputSpec(16)).first_position
        assert position.shape == (1, 1, 24) and not position.any()
