"""Prompts around class names: where the words stand, and that what is left out changes neither values nor gradients."""

import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.errors import RequestError
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
    with pytest.raises(RequestError, match="'a photo of' has 3 tokens, and the context 4"):
        new_context(text, 4, "a photo of")
