"""Tuners: what they change at first, how many parameters they have, what learns, and what folds away."""

import warnings
from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from clsim import config, plugins, runner
from clsim.backbones.load import Backbone, load_backbone
from clsim.backbones.towers import PLAIN, TunerHooks
from clsim.backbones.vit import VisionTower
from clsim.data.batches import Batch
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError
from clsim.learner import build_learner
from clsim.outputs import as_outputs
from clsim.parts import tuners
from clsim.prediction import Predictor
from clsim.strategies.lora import LowRank
from clsim.strategies.mlp import MlpHead
from clsim.strategies.p_tuning import EncodedTokens
from clsim.strategies.prefix_tuning import EncodedPairs
from clsim.strategies.side import SideTuned

WIDTH, DEPTH, CLASSES = 32, 2, 3  # vit_nano, and the towers of clip_nano; both have MLPs four times as wide
INFO = StreamInfo(("arrow", "striped star", "ring"), (), "class", 2)
ON_BOTH = ["bias", "adapter", "prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2", "lora"]
ON_IMAGES = ["partial", "tinytl", "vpt_shallow", "vpt_deep", "ssf", "side"]
FROZEN = [name for name in ON_BOTH + ON_IMAGES if name not in ("bias", "partial", "tinytl")]


EXPERIENCE = ExperienceInfo(0, "all", (0, 1, 2), 12)


def make(name, backbone="vit_nano", **fields):
    torch.manual_seed(0)
    loaded = load_backbone(backbone)
    strategy = plugins.load("strategies", name)(**fields)
    learner = strategy.build(loaded, INFO)
    return strategy, loaded, learner


def batch_for(backbone, count=4):
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Batch(images, backbone.image(images), torch.arange(count) % CLASSES)


def trainable(module):
    return {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}


# at first


@pytest.mark.parametrize("name", ["adapter", "lora", "ssf", "tinytl", "bias", "partial"])
def test_at_first_the_tower_is_as_it_was(name):
    _, backbone, learner = make(name)
    batch = batch_for(backbone)
    with torch.no_grad():
        assert torch.allclose(learner.images(batch), load_backbone("vit_nano").image(batch.images), atol=1e-6)


@pytest.mark.parametrize("name", ["adapter", "lora", "bias"])
def test_at_first_the_text_tower_is_as_it_was(name):
    _, _, learner = make(name, "clip_nano", tower="text")
    said = load_backbone("clip_nano").text([f"a photo of a {c}." for c in INFO.class_names])
    with torch.no_grad():
        assert torch.allclose(learner.texts(), said, atol=1e-6)


def test_side_tuning_begins_in_the_middle_and_at_weight_1_is_the_tower():
    _, backbone, learner = make("side")
    batch, side = batch_for(backbone), learner.images
    with torch.no_grad():
        base = backbone.image(batch.images)
        assert torch.allclose(side(batch), (base + side.sides[0](batch.images)) / 2, atol=1e-6)
        side.weights[0].fill_(torch.inf)
        assert torch.allclose(side(batch), base, atol=1e-6)


# how many


HEAD = (WIDTH + 1) * CLASSES
COUNTS = {
    # biases of a block: qkv, proj, fc1, fc2 and two norms; of the embedding and of the last norm
    "bias": DEPTH * (3 + 1 + 4 + 1 + 2) * WIDTH + 2 * WIDTH,
    "partial": 12 * WIDTH**2 + 13 * WIDTH + 2 * WIDTH,
    "adapter": 2 * DEPTH * (2 * WIDTH * 16 + 16 + WIDTH),
    "lora": DEPTH * 4 * (WIDTH + 3 * WIDTH),
    "ssf": 2 * (DEPTH * (3 + 1 + 4 + 1 + 2) + 2) * WIDTH,
    "vpt_shallow": 10 * WIDTH,
    "vpt_deep": DEPTH * 10 * WIDTH,
    "prompt_tuning": 10 * WIDTH,
    "p_tuning_v2": DEPTH * 2 * 10 * WIDTH,
    "prefix_tuning": 10 * WIDTH + (WIDTH + 1) * 64 + (64 + 1) * DEPTH * 2 * WIDTH,
}


@pytest.mark.parametrize("name", COUNTS)
def test_trainable_parameters_are_as_many_as_the_formula_says(name):
    _, _, learner = make(name)
    assert sum(trainable(learner).values()) == COUNTS[name] + HEAD


def test_trainable_parameters_of_the_networks():
    width, hidden = WIDTH, 8
    directions = 2 * 4 * hidden  # of an LSTM's layer: four gates each way
    lstm = directions * (width + hidden + 2) + directions * (2 * hidden + hidden + 2)
    mlp = (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width
    _, _, learner = make("p_tuning", hidden=hidden, prompt_length=5)
    assert sum(trainable(learner).values()) == 5 * width + lstm + mlp + HEAD
    _, _, learner = make("tinytl", groups=8)
    lite = width * width // 8 * 9 + width * width + 4 * width
    assert sum(trainable(learner).values()) == COUNTS["bias"] + (DEPTH - 1) * lite + HEAD


@pytest.mark.parametrize("name", ON_BOTH)
def test_on_text_there_is_no_head_and_both_towers_count_twice(name):
    numbers = {where: sum(trainable(make(name, "clip_nano", tower=where)[2]).values()) for where in ("text", "both")}
    image = sum(trainable(make(name, "clip_nano")[2].images).values())
    assert numbers["both"] == image + numbers["text"]


# what learns


def gradients(learner, batch):
    nn.functional.cross_entropy(as_outputs(learner(batch)).logits, batch.labels).backward()
    return {name for name, p in learner.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("name", ON_BOTH + ON_IMAGES)
def test_gradients_reach_all_and_only_what_it_trains(name):
    _, backbone, learner = make(name)
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)
    batch = batch_for(backbone)
    gradients(learner, batch)
    optimizer.step()  # what stands behind a zero gets its first gradient when the zero has moved
    optimizer.zero_grad()
    wanted = set(trainable(learner))
    assert gradients(learner, batch) == wanted
    assert not [n for n in wanted if "tower" in n] or name not in FROZEN


@pytest.mark.parametrize("name", ON_BOTH)
def test_gradients_reach_the_text_tower_s_tuner(name):
    strategy, backbone, learner = make(name, "clip_nano", tower="text")
    strategy.begin(learner, EXPERIENCE)
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)
    batch = batch_for(backbone)
    gradients(learner, batch)
    optimizer.step()
    optimizer.zero_grad()
    assert gradients(learner, batch) == set(trainable(learner))


def test_the_first_gradient_of_an_adapter_reaches_its_weights():
    """With both layers at zero only the second bias would ever get one."""
    _, backbone, learner = make("adapter")
    reached = gradients(learner, batch_for(backbone))
    assert {f"images.sites.up.{i}.weight" for i in range(2 * DEPTH)} <= reached


def test_adam_leaves_the_networks_of_other_tasks_alone():
    side = SideTuned(load_backbone("vit_nano").image, 4, networks=2)
    head, batch = nn.Linear(WIDTH, CLASSES), batch_for(load_backbone("vit_nano"))
    side.turn_to(0)
    for task in (0, 1):
        side.turn_to(task)
        optimizer = torch.optim.Adam([p for p in side.parameters() if p.requires_grad], 0.1)
        before = [p.clone() for p in side.sides[1 - task].parameters()] + [side.weights[1 - task].clone()]
        for _ in range(2):
            optimizer.zero_grad()
            head(side(Batch(batch.images, task=task))).square().sum().backward()
            optimizer.step()
        after = [*side.sides[1 - task].parameters(), side.weights[1 - task]]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_task_s_images_are_seen_by_its_own_network():
    side = SideTuned(load_backbone("vit_nano").image, 4, networks=2)
    images = batch_for(load_backbone("vit_nano")).images
    with torch.no_grad():
        first, second = (side(Batch(images, task=task)) for task in (0, 1))
        assert not torch.allclose(first, second)
        side.turn_to(1)
        assert torch.equal(side(Batch(images)), second)


def test_each_experience_of_the_task_protocol_trains_its_own_network():
    info = StreamInfo(INFO.class_names, (), "task", 2, tells_task=True)
    strategy = plugins.load("strategies", "side")(channels=4)
    learner = strategy.build(load_backbone("vit_nano"), info)
    for task in (0, 1):
        strategy.begin(learner, replace(EXPERIENCE, index=task, task_label=task))
        own = {n for n, _ in learner.images.named_parameters() if n.startswith((f"sides.{task}.", f"weights.{task}"))}
        assert trainable(learner.images).keys() == own != set()


def test_a_loaded_run_of_side_tuning_has_the_logits_of_the_trained_learner(tmp_path):
    """Without a task, too: the network that learned last classifies."""
    fields = {"scenario.protocol": "task", "scenario.train_per_class": "4", "scenario.test_per_class": "2"}
    options = {"strategy": "side", "backbone": "vit_nano", "out": tmp_path, "precision": "fp32"}
    (only,) = config.plan(options, fields | {"epochs": "1"}, None)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "build_learner", lambda *given: made.append(build_learner(*given)) or made[0])
        run = runner.Job.prepare(only).execute(fresh=False, quiet=True)
    (trained, _), loaded = made[0], Predictor(run.directory).learner
    trained.eval()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    assert trained.images.current == 4
    with torch.no_grad():
        for batch in (Batch(images), Batch(images, task=1), Batch(images, task=4)):
            assert torch.equal(loaded(batch).logits, trained(batch).logits)
        of_first, of_last = (loaded(Batch(images, task=task)).logits for task in (0, 4))
        assert torch.equal(loaded(Batch(images)).logits, of_last) and not torch.allclose(of_first, of_last)


# tokens


class Lengths(TunerHooks):
    """Notes how many tokens each block is given by another tuner."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def enter(self, block, tokens):
        tokens = self.inner.enter(block, tokens)
        self.seen.append(tokens.shape[1])
        return tokens


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep", "prompt_tuning", "p_tuning"])
def test_prompts_are_replaced_and_never_stacked(name):
    _, backbone, learner = make(name, prompt_length=5)
    watch = Lengths(learner.images.sites)
    with torch.no_grad():
        backbone.image(batch_for(backbone).images, watch)
    assert watch.seen == [17 + 5] * DEPTH


def test_deep_prompts_equal_the_paper_s_arithmetic():
    """Behind each block its prompts' outputs are dropped and the next block's own are put there: by timm's blocks."""
    _, backbone, learner = make("vpt_deep", prompt_length=3)
    images, vit = batch_for(backbone).images, backbone.image.vit
    with torch.no_grad():
        tokens = backbone.image.embed(images)
        for prompts, block in zip(learner.images.sites.tokens.tokens, vit.blocks, strict=True):
            tokens = block(torch.cat([tokens[:, :1], prompts.expand(4, -1, -1), tokens[:, 1:]], dim=1))
            tokens = torch.cat([tokens[:, :1], tokens[:, 4:]], dim=1)
        assert torch.allclose(learner.images(Batch(images)), vit.norm(tokens)[:, 0], atol=1e-5)


def test_prompts_are_not_averaged_into_the_feature():
    torch.manual_seed(0)
    vit = VisionTransformer(16, 4, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool="avg")
    averaging = VisionTower(vit, InputSpec(16))
    prompts = tuners.Prompts(tuners.Tokens(1, 2, 32, 0.5))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = torch.cat([averaging.embed(images), prompts.tokens()[0].expand(2, -1, -1)], dim=1)
        outputs = averaging.vit.norm(averaging.vit.blocks(tokens))
        start = averaging.vit.num_prefix_tokens
        expected = averaging.vit.fc_norm(outputs[:, start : tokens.shape[1] - 2].mean(1))
        assert torch.allclose(averaging(images, prompts), expected, atol=1e-5)


def test_visual_prompts_start_within_the_published_bound():
    _, _, learner = make("vpt_shallow", prompt_length=200)
    bound = (6 / (3 * 4**2 + WIDTH)) ** 0.5
    assert learner.images.sites.tokens.tokens.abs().max().item() == pytest.approx(bound, rel=0.01)


# what published code does


@pytest.mark.parametrize("name", ["vit_nano", "clip_nano"])
@torch.no_grad()
def test_ssf_scales_patches_before_class_token_and_positions_are_added(name):
    _, backbone, learner = make("ssf", name)
    tower, sites = backbone.image, learner.images.sites
    scale = sites.scale["patches"].copy_(torch.linspace(0.5, 2, WIDTH))
    shift = sites.shift["patches"].copy_(torch.linspace(-1, 1, WIDTH))
    images = batch_for(backbone).images
    if name == "vit_nano":
        vit = tower.vit
        patches = vit.patch_embed(images) * scale + shift
        tokens = torch.cat([vit.cls_token.expand(4, -1, -1), patches], dim=1) + vit.pos_embed
    else:
        visual = tower.visual
        patches = visual.conv1(images).flatten(2).mT * scale + shift
        tokens = torch.cat([visual.class_embedding.expand(4, 1, -1), patches], dim=1) + visual.positional_embedding
        tokens = visual.ln_pre(tokens)
    torch.testing.assert_close(learner.images(Batch(images)), tower.pool(tower.encode(tokens)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_ssf_starts_at_one_and_zero_or_near_them():
    sites = make("ssf")[2].images.sites
    assert all((scale == 1).all() for scale in sites.scale.values())
    assert all((shift == 0).all() for shift in sites.shift.values())
    sites = make("ssf", spread=0.02)[2].images.sites
    scale, shift = (torch.cat(list(each.values())) for each in (sites.scale, sites.shift))
    assert scale.mean().item() == pytest.approx(1, abs=0.003) and scale.std().item() == pytest.approx(0.02, rel=0.1)
    assert shift.mean().item() == pytest.approx(0, abs=0.003) and shift.std().item() == pytest.approx(0.02, rel=0.1)


def test_keys_and_values_of_p_tuning_v2_start_close_to_zero_and_as_released_like_an_embedding():
    presets = plugins.load("strategies", "p_tuning_v2").presets
    for preset, spread in (("clsim", 0.02), ("release", 1.0)):
        pairs = make("p_tuning_v2", prefix_length=100, **presets[preset])[2].images.sites.source.pairs
        assert pairs.std().item() == pytest.approx(spread, rel=0.05)
    torch.manual_seed(0)
    assert nn.Embedding(100, 2 * DEPTH * WIDTH).weight.std().item() == pytest.approx(1.0, rel=0.05)


@torch.no_grad()
def test_tinytl_s_branch_as_released():
    """Mean of 2x2 cells, convolution in 2 groups, norms of 8 features, ReLU, 1x1 convolution, bilinear upsampling."""
    release = plugins.load("strategies", "tinytl").presets["release"]
    branch = make("tinytl", **release)[2].images.sites.lite[0]
    first, norm, _, second, last = branch.layers
    nn.init.normal_(last.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, WIDTH, 4, 4)
    half = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    assert first.groups == 2 and norm.num_groups == last.num_groups == WIDTH // 8

    def normed(maps, module):
        groups = maps.unflatten(1, (WIDTH // 8, 8)).flatten(2)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return groups.view_as(maps) * module.weight[:, None, None] + module.bias[:, None, None]

    inner = nn.functional.conv2d(half, first.weight, padding=1, groups=2)
    inner = torch.einsum("oi,bihw->bohw", second.weight[:, :, 0, 0], normed(inner, norm).clamp(min=0))
    inner = normed(inner, last)
    # rows and columns of the large map at 0.25, 0.75, 1.25 and 1.75 of the small one, whose cells are at 0.5 and 1.5
    weights = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    torch.testing.assert_close(branch(x), weights @ inner @ weights.T, rtol=0, atol=1e-5)


# folding away


def test_encoded_tokens_and_pairs_fold_into_plain_ones():
    torch.manual_seed(0)
    for recurrent in (True, False):
        encoded = EncodedTokens(5, WIDTH, 8, recurrent)
        assert torch.allclose(encoded(), encoded.folded()(), atol=1e-5)
    backbone = load_backbone("vit_nano")
    pairs = EncodedPairs(DEPTH, 4, WIDTH, 8)
    images = batch_for(backbone).images
    with torch.no_grad():
        learned, folded = (backbone.image(images, tuners.Prefix(source)) for source in (pairs, pairs.folded()))
    assert torch.allclose(learned, folded, atol=1e-5)


def test_low_rank_additions_merge_into_the_weights():
    torch.manual_seed(0)
    tower = load_backbone("vit_nano").image
    targets = ("qkv", "proj", "fc1", "fc2")
    lora = LowRank(tower.layers, 2, 4.0, targets)
    for b in lora.b:
        nn.init.normal_(b)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        learned = tower(images, lora)
        for i, layer in enumerate(tower.layers):
            for name in targets:
                weight = layer.weights(name)[0]
                weight.copy_(lora.merged(i, name, weight))
        assert torch.allclose(tower(images, PLAIN), learned, atol=1e-5)


# against peft


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports
        return pytest.importorskip("peft")


def test_p_tuning_s_encoder_equals_peft_s(peft):
    config = peft.PromptEncoderConfig(
        peft_type="P_TUNING", task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, token_dim=WIDTH, encoder_hidden_size=8,
        num_transformer_submodules=1, encoder_reparameterization_type="LSTM", encoder_num_layers=2, encoder_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = peft.PromptEncoder(config), EncodedTokens(5, WIDTH, 8, recurrent=True)
    ours.embeddings.data.copy_(theirs.embedding.weight)
    ours.lstm.load_state_dict(theirs.lstm_head.state_dict())
    ours.mlp.load_state_dict(theirs.mlp_head.state_dict())
    assert torch.allclose(ours(), theirs(torch.arange(5)[None]), atol=1e-5)


def test_prefix_tuning_s_encoder_equals_peft_s(peft):
    config = peft.PrefixTuningConfig(
        peft_type="PREFIX_TUNING", task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, token_dim=WIDTH, num_layers=DEPTH,
        num_transformer_submodules=1, prefix_projection=True, encoder_hidden_size=8, num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = peft.PrefixEncoder(config), EncodedPairs(DEPTH, 5, WIDTH, 8)
    ours.embeddings.data.copy_(theirs.embedding.weight)
    ours.network.load_state_dict(theirs.transform.state_dict())
    made = theirs(torch.arange(5)[None])[0].view(5, DEPTH, 2, WIDTH).permute(1, 2, 0, 3)
    assert torch.allclose(ours(), made, atol=1e-5)


def test_low_rank_additions_equal_peft_s(peft):
    torch.manual_seed(0)
    tower = load_backbone("vit_nano").image
    lora = LowRank(tower.layers, 2, 6.0, ("qkv", "fc1"))
    for b in lora.b:
        nn.init.normal_(b)
    images = torch.randn(2, 3, 16, 16)
    ours = tower(images, lora)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["qkv", "fc1"], lora_dropout=0.0)
    model = peft.get_peft_model(load_backbone("vit_nano").image.vit, config)
    for i, block in enumerate(model.base_model.model.blocks):
        for j, layer in enumerate((block.attn.qkv, block.mlp.fc1)):
            layer.lora_A["default"].weight.data.copy_(lora.a[2 * i + j])
            layer.lora_B["default"].weight.data.copy_(lora.b[2 * i + j])
    assert torch.allclose(ours, model(images), atol=1e-5)


# heads, refusals


def test_a_deep_head_learns_from_a_batch_of_one_and_scores_each_image_alone():
    torch.manual_seed(0)
    head = MlpHead(WIDTH, 8, 3, CLASSES)
    x = torch.randn(6, WIDTH)
    head(x[:1]).sum().backward()
    head(x)
    head.eval()
    assert torch.allclose(head(x)[2:3], head(x[2:3]), atol=1e-6)
    assert [type(layer).__name__ for layer in head.body] == ["Linear", "ReLU", "BatchNorm"] * 2


def test_a_tower_without_blocks_is_refused():
    opaque = Backbone("resnet", type("Opaque", (nn.Module,), {"layers": []})())
    with pytest.raises(RequestError, match="no transformer"):
        plugins.load("strategies", "adapter")().build(opaque, INFO)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("lora", {"rank": 0}, "rank must be at least 1"),
        ("lora", {"targets": ("qvk",)}, "did you mean 'qkv'"),
        ("vpt_deep", {"prompt_length": 0}, "prompt_length must be at least 1"),
        ("mlp", {"layers": 1}, "layers must be at least 2"),
        ("p_tuning", {"hidden": 0}, "hidden must be at least 1"),
        ("partial", {"blocks": 3}, "blocks=3 is more than the 2"),
        ("tinytl", {"groups": 5}, "groups=5 does not divide the 32"),
        ("tinytl", {"norm_channels": 12}, "norm_channels=12 does not divide the 32"),
        ("ssf", {"spread": -1.0}, "spread must be at least 0"),
        ("p_tuning_v2", {"spread": -1.0}, "spread must be at least 0"),
    ],
)
def test_fields_out_of_range_are_refused(name, fields, message):
    with pytest.raises((ValueError, RequestError), match=message):
        make(name, **fields)
