"""Prompts around class names: where the words stand, and that what is left out changes neither values nor gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from clsim import plugins
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.errors import RequestError
from clsim.parts.text import Kept, TrainingStarted, start_training
from clsim.parts.text_prompts import PromptedText, Wording, new_context

NAMES = ("star", "striped star", "very large dotted ring", "moon_moon")


@pytest.fixture(scope="module")
def text():
    return load_backbone("clip_nano").text


def word(text, word):
    return text.tokens([word])[0][0, 1].item()


def test_words_stand_where_the_paper_has_them(text):
    start, end = text.tokens([""])[0][0].tolist()
    star, striped, dot = (word(text, w) for w in ("star", "striped", "."))
    rows = {
        "end": [[start, -1, -2, -3, star, dot, end, 0], [start, -1, -2, -3, striped, star, dot, end]],
        "middle": [[start, -1, star, -2, -3, dot, end, 0], [start, -1, striped, star, -2, -3, dot, end]],
        "front": [[start, star, -1, -2, -3, dot, end, 0], [start, striped, star, -1, -2, -3, dot, end]],
    }
    for position, expected in rows.items():
        wording = Wording.of(text, NAMES[:2], 3, position)
        assert wording.entries.tolist() == expected
        assert wording.ends.tolist() == [6, 7]
        assert wording.shared == {"end": 4, "middle": 2, "front": 1}[position]


def plain(text, wording, context):
    """Every class's whole sequence, padded to the tower's full length, through the tower: (K,E)."""
    words = text.embed(wording.entries.clamp(min=0))
    rows = []
    for k, entries in enumerate(wording.entries.tolist()):
        own = context[k] if context.ndim == 3 else context
        row = torch.stack([own[-1 - e] if e < 0 else words[k, i] for i, e in enumerate(entries)])
        rows.append(torch.nn.functional.pad(row, (0, 0, 0, text.context_length - len(row))))
    return text.features(torch.stack(rows), wording.ends)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_shared_prefixes_change_neither_values_nor_gradients(text, position):
    torch.manual_seed(0)
    wording = Wording.of(text, NAMES, 5, position)
    contexts = torch.randn(3, 5, text.width, requires_grad=True)
    ours = PromptedText(text, wording)(contexts)
    theirs = torch.stack([plain(text, wording, context) for context in contexts])
    assert ours.shape == (3, 4, text.out_dim)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), contexts)[0] for out in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_specific_contexts_are_each_read_by_their_class(text, position):
    torch.manual_seed(0)
    wording = Wording.of(text, NAMES, 4, position)
    contexts = torch.randn(4, 4, text.width, requires_grad=True)
    ours, theirs = PromptedText(text, wording).each(contexts), plain(text, wording, contexts)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), contexts)[0] for out in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)
    (one,) = torch.autograd.grad(PromptedText(text, wording).each(contexts)[2].sum(), contexts)
    assert one[2].abs().sum() > 0 and one[[0, 1, 3]].abs().sum() == 0


def test_a_context_of_words_says_what_the_words_say(text):
    wording = Wording.of(text, NAMES, 4)
    context = new_context(text, 4, "a photo of a")
    said = text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    assert torch.allclose(PromptedText(text, wording)(context[None])[0], said, atol=1e-5)


def test_only_the_context_learns(text):
    prompted = PromptedText(text, Wording.of(text, NAMES, 2))
    assert not [name for name, p in prompted.named_parameters() if p.requires_grad]
    assert new_context(text, 3, copies=(4,)).shape == (4, 3, text.width)
    torch.manual_seed(0)
    assert new_context(text, 200).std().item() == pytest.approx(0.02, rel=0.05)


def test_what_does_not_fit_is_named_with_its_length(text):
    with pytest.raises(RequestError, match="class 'star' makes a prompt of 65 tokens; the tower takes 64"):
        Wording.of(text, ("star",), 61)
    with pytest.raises(RequestError, match="'a photo of' has 3 tokens, but the context has 4"):
        new_context(text, 4, "a photo of")


# DAPL's released code


def test_dapl_s_texts_and_those_of_its_released_code(text):
    dapl = plugins.load("strategies", "dapl")
    paper, release = (dapl(**dapl.presets[name]) for name in ("paper", "release"))
    assert paper.ending("Real_World") == ", a Real World image."
    assert release.ending("Real World") == ", a real_world image.."
    info = StreamInfo(("star", "ring"), ("real", "sketch"), "pair", 1, has_target=True)
    learner = release.build(load_backbone("clip_nano"), info)
    said = text.tokens([f"star , a {domain} image.." for domain in info.domain_names])[0]
    vectors = [-1 - m for m in range(32)]
    for prompted, ids in zip(learner.prompted, said.tolist(), strict=True):
        assert prompted.entries[0].tolist()[: len(ids) + 32] == [ids[0], *vectors, *ids[1:]]


def test_dapl_s_released_schedule_counts_steps():
    """One step of warm-up, then a cosine of 25 steps to zero, and up again: against PyTorch's scheduler."""
    dapl = plugins.load("strategies", "dapl")
    strategy = dapl(**dapl.presets["release"])
    found = [strategy.learning_rate_at(epoch, step, 40) for epoch in range(3) for step in range(40)]
    optimizer = torch.optim.SGD([torch.zeros(1)], 3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
    expected = [1e-5]
    for _ in range(119):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[26] == pytest.approx(0, abs=1e-9) and found[51] == pytest.approx(3e-3)


# class features kept in evaluation


class Doubled(nn.Module):
    """Twice its weight; it counts how often that was computed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.started = TrainingStarted()
        self.kept = Kept()
        self.made = 0

    def forward(self):
        return self.kept(self, self.make)

    def make(self):
        self.made += 1
        return 2 * self.weight if not self.started() else 3 * self.weight


@torch.no_grad()
def test_class_features_are_computed_once_while_nothing_changes():
    module = Doubled().eval()
    assert [module().tolist() for _ in range(3)] == [[2, 4]] * 3 and module.made == 1


@torch.no_grad()
def test_class_features_are_computed_again_when_a_weight_was_written_to():
    module = Doubled().eval()
    module()
    module.weight.mul_(2)
    assert module().tolist() == [4, 8]
    module.weight[1] = 0
    assert module().tolist() == [4, 0] and module.made == 3
    module.load_state_dict({"weight": torch.tensor([5.0, 6.0])})
    assert module().tolist() == [10, 12]
    module.weight = nn.Parameter(torch.tensor([0.5, 0.5]))
    assert module().tolist() == [1, 1]


@torch.no_grad()
def test_class_features_are_computed_again_in_another_precision():
    module = Doubled().eval()
    module()
    with torch.autocast("cpu", torch.bfloat16):
        module()
        module()
    assert module.made == 2
    module()
    assert module.made == 3
    assert module.to(torch.bfloat16)().dtype == torch.bfloat16


@torch.no_grad()
def test_class_features_are_computed_again_when_training_starts():
    module = Doubled().eval()
    module()
    start_training(module)
    assert module().tolist() == [3, 6]


@torch.no_grad()
def test_class_features_of_a_teacher_are_its_own():
    module = Doubled().eval()
    module()
    teacher = {"weight": torch.tensor([7.0, 8.0])}
    assert functional_call(module, teacher, ()).tolist() == [14, 16]
    assert functional_call(module, teacher, ()).tolist() == [14, 16] and module.made == 2
    assert module().tolist() == [2, 4]


def test_class_features_are_never_kept_with_gradients():
    module = Doubled().eval()
    with torch.no_grad():
        module()
    first, second = module(), module()
    assert first.requires_grad and second.requires_grad and module.made == 3
    (first + second).sum().backward()
    assert module.weight.grad.tolist() == [4, 4]
    module.train()
    with torch.no_grad():
        module()
        module()
    assert module.made == 5, "nor in training"


@pytest.mark.parametrize("fused", [False, True])
def test_class_features_are_those_after_the_last_step_of_any_optimizer(fused):
    """PyTorch does not count what a fused optimizer writes."""
    module = Doubled()
    optimizer = torch.optim.SGD(module.parameters(), 0.5, fused=fused)
    for expected in ([0, 2], [-2, 0]):
        module.train()().sum().backward()
        with torch.no_grad():
            module.eval()()  # between gradient and step, as a teacher would
        module.train()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert module.eval()().tolist() == expected


@pytest.mark.parametrize("name", ["coop", "dapl", "prompt_tuning", "p_tuning", "bias", "lora"])
def test_logits_in_evaluation_follow_the_weights(name):
    """Against a copy that has kept nothing."""
    torch.manual_seed(0)
    fields = {} if name in ("coop", "dapl") else {"tower": "text"}
    strategy = plugins.load("strategies", name)(**fields)
    info = StreamInfo(("star", "ring"), ("real", "sketch"), "pair", 1, has_target=True)
    backbone = load_backbone("clip_nano")
    learner = strategy.build(backbone, info).eval()
    batch = Batch(None, torch.randn(3, backbone.image.out_dim))
    found = []
    with torch.no_grad():
        for change in (lambda: None, lambda: strategy.begin(learner, ExperienceInfo(0, "", (0, 1), 2)), None):
            if change is None:
                for p in learner.parameters():
                    p.add_(0.1 * p.requires_grad * torch.randn_like(p))
            else:
                change()
            found.append(learner(batch).logits)
            assert torch.equal(learner(batch).logits, found[-1])
            assert torch.equal(copy.deepcopy(learner).train().eval()(batch).logits, found[-1])
    assert not torch.allclose(found[2], found[1], atol=1e-3)
