"""Captions of glyphs: the texts of clip_micro's pretraining, and the words of its tokenizer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# {c}: the class, {d}: a word for the domain; the last ones of each are held out of pretraining, a tenth of all
PLAIN_TEMPLATES = (
    "a {c}", "a {c}.", "{c}", "{c}.", "the {c}", "this is a {c}", "one {c}.", "there is a {c} here",
    "an image of a {c}", "a picture of a {c}.", "a good image of the {c}", "a small {c}", "a large {c}.",
    "a view of the {c}.", "an example of a {c}.",
)  # fmt: skip
DOMAIN_TEMPLATES = (
    "a {d} of a {c}", "a {d} of a {c}.", "a {d} of the {c}", "the {d} of a {c}.", "{c}, {d}", "{c}, {d}.", "{d}: {c}",
    "{d} {c}", "a {c} in {d} style", "a {c}, a {d} image.", "this is a {d} of a {c}", "a {c} as a {d}.",
    "a good {d} of a {c}.", "a {c} seen in a {d}", "one {d} with a {c}.",
)  # fmt: skip
HELD_OUT_TEMPLATES = (PLAIN_TEMPLATES[-1], *DOMAIN_TEMPLATES[-2:])

# the domain's own name first
DOMAIN_WORDS = {
    "clipart": ("clipart", "flat drawing"),
    "infograph": ("infograph", "chart"),
    "painting": ("painting", "oil picture"),
    "quickdraw": ("quickdraw", "doodle"),
    "real": ("real", "photo"),
    "sketch": ("sketch", "pencil drawing"),
}

# put before a caption, so that every position of the context is trained; "x" stands for learned tokens (CoOp)
FILLERS = ("x", "so", "and", "very", "now", "then", "it", "we", "see", "look", "at", "here", "of", "in", "with", ",")


@dataclass(frozen=True)
class Caption:
    """A caption's text, and the domain that it names; -1 if it names none."""

    text: str
    domain: int


def caption(name: str, domain: int, domain_names: Sequence[str], draw: np.random.Generator) -> Caption:
    """A caption for an image of the class called `name`, from the templates that are not held out."""
    templates = [t for t in (*PLAIN_TEMPLATES, *DOMAIN_TEMPLATES) if t not in HELD_OUT_TEMPLATES]
    template = templates[draw.integers(len(templates))]
    words = DOMAIN_WORDS[domain_names[domain]]
    text = template.format(c=name, d=words[draw.integers(len(words))])
    return Caption(text, domain if "{d}" in template else -1)


def behind_fillers(text: str, count: int, draw: np.random.Generator) -> str:
    """The caption after `count` filler tokens."""
    return " ".join([*(FILLERS[i] for i in draw.integers(len(FILLERS), size=count)), text])


def vocabulary(class_names: Sequence[str]) -> list[str]:
    """Every word of the captions, sorted."""
    texts = [*PLAIN_TEMPLATES, *DOMAIN_TEMPLATES, *FILLERS, *class_names]
    texts += [word for words in DOMAIN_WORDS.values() for word in words]
    words = {word.strip(".,:") for text in texts for word in text.format(c="", d="").split()}
    return sorted(words - {""})


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909), frequent pairs first, until each word is one token.

    Characters end a word with ``</w>``, as in CLIP's vocabulary; words are of ASCII letters.
    """
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    found: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for tokens in spelt:
            for pair in itertools.pairwise(tokens):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return found
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        spelt = [_merged(tokens, best) for tokens in spelt]


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """The tokens, with every occurrence of the pair merged."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        together = tuple(tokens[i : i + 2]) == pair
        out.append("".join(pair) if together else tokens[i])
        i += 2 if together else 1
    return out
