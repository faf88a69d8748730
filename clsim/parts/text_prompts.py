"""Learned words before, around or after a class's name; CLIP's frozen text tower computes shared prefixes once.

Three things make this faster without changing the result. Nothing after the end of a text is read, so sequences are
cut there. The tower is causal: the tokens before the first difference between the classes are the same for all of
them, so their keys and values are computed once. Embeddings of frozen tokens are looked up once. A test compares values
and gradients with the plain computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clsim.backbones.clip import TextTower
from clsim.backbones.towers import ALL, TunerHooks
from clsim.errors import RequestError
from clsim.parts.text import readable

Position = Literal["end", "middle", "front"]


class KeyValueCache(TunerHooks):
    """Keeps each block's keys and values."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept.append((keys, values))
        return keys, values


class CachedKeysValues(TunerHooks):
    """Puts cached keys and values before a sequence's own; each of (G,P,D) is used for K of G*K sequences."""

    def __init__(self, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.kept = kept

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        before = (each.repeat_interleave(len(keys) // len(each), dim=0) for each in self.kept[block])
        return tuple(torch.cat(pair, dim=1) for pair in zip(before, (keys, values), strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Wording:
    """The positions of a prompt's M learned vectors among the words of K classes."""

    entries: Tensor  # (K,N) token ids, or -1 - m at the position of vector m; cut after the longest text
    ends: Tensor  # (K,) positions of the end-of-text tokens
    shared: int  # number of leading positions that are the same for all classes

    @classmethod
    def of(
        cls, text: TextTower, class_names: Sequence[str], length: int, position: Position = "end", ending: str = "."
    ) -> "Wording":
        """`length` vectors before each name, half before and half after it, or after it; then `ending`.

        Raises RequestError for a text that does not fit into the context.
        """
        vectors = [-1 - m for m in range(length)]
        half = {"end": length, "middle": length // 2, "front": 0}[position]
        start, end = _words(text, "")
        rows = []
        for name in map(readable, class_names):
            whole, alone = _words(text, f"{name}{ending}")[1:-1], _words(text, name)[1:-1]
            after = whole[len(alone) :] if whole[: len(alone)] == alone else whole
            if after is whole and vectors[half:]:
                raise RequestError(f"{name!r} and {ending!r} form one word: no vectors can be put between them")
            words = [*alone, *vectors[half:], *after] if vectors[half:] else whole
            rows.append([start, *vectors[:half], *words, end])
            if len(rows[-1]) > text.context_length:
                many = len(rows[-1])
                raise RequestError(
                    f"class {name!r} makes a prompt of {many} tokens; the tower takes {text.context_length}"
                )
        ends = torch.tensor([len(row) - 1 for row in rows])
        entries = torch.tensor([row + [0] * (int(ends.max()) + 1 - len(row)) for row in rows])
        same = (entries == entries[0]).all(dim=0) & (torch.arange(entries.shape[1]) < ends.min())
        return cls(entries, ends, int(same.int().cumprod(dim=0).sum()))


def _words(text: TextTower, words: str) -> list[int]:
    """Token ids of a text, including its start and end."""
    ids, ends = text.tokens([words])
    return ids[0, : int(ends[0]) + 1].tolist()  # type: ignore[no-any-return]


class PromptedText(nn.Module):
    """Class features with learned context vectors, from a frozen text tower."""

    entries: Tensor
    ends: Tensor
    words: Tensor

    def __init__(self, text: TextTower, wording: Wording) -> None:
        super().__init__()
        self.text = text
        self.shared = wording.shared
        self.register_buffer("entries", wording.entries, persistent=False)
        self.register_buffer("ends", wording.ends, persistent=False)
        with torch.no_grad():
            words = text.embed(wording.entries.clamp(min=0))
        self.register_buffer("words", words, persistent=False)  # (K,N,D), unused at the positions of learned vectors

    def forward(self, context: Tensor) -> Tensor:
        """(G,M,D) contexts, each shared by all classes -> (G,K,E) features, one set for each context."""
        groups, classes, length = len(context), *self.entries.shape
        prefix, rest = slice(0, self.shared), slice(self.shared, length)
        past = KeyValueCache()
        tokens = self._tokens(context, prefix, self.entries[:1], self.words[:1])[:, 0]
        self.text.features(tokens, torch.zeros(groups, dtype=torch.int64, device=tokens.device), past)
        tokens = self._tokens(context, rest, self.entries, self.words).flatten(0, 1)
        ends = (self.ends - self.shared).repeat(groups)
        features = self.text.features(tokens, ends, CachedKeysValues(past.kept), start=self.shared)
        return features.unflatten(0, (groups, classes))  # type: ignore[no-any-return]

    def each(self, context: Tensor) -> Tensor:
        """(K,M,D) contexts, one for each class -> (K,E) features."""
        learned = context.gather(1, self._vectors(ALL, self.entries)[..., None].expand(-1, -1, context.shape[-1]))
        tokens = torch.where((self.entries < 0)[..., None], learned, self.words.to(context.dtype))
        return self.text.features(tokens, self.ends)

    def _tokens(self, context: Tensor, where: slice, entries: Tensor, words: Tensor) -> Tensor:
        """(G,M,D) contexts -> (G,K,n,D) embeddings of the positions `where`."""
        learned = context[:, self._vectors(where, entries)]
        return torch.where((entries[:, where] < 0)[..., None], learned, words[:, where].to(context.dtype))

    @staticmethod
    def _vectors(where: slice, entries: Tensor) -> Tensor:
        """(K,n) index of the vector at each position; 0 if there is none."""
        return (-1 - entries[:, where]).clamp(min=0)


def new_context(text: TextTower, length: int, words: str = "", copies: tuple[int, ...] = ()) -> nn.Parameter:
    """(*copies, M, D) context vectors: N(0, 0.02^2), or the embeddings of `words`.

    Zhou et al. 2022, arXiv:2109.01134, section 3.1. Raises RequestError if the words are not M tokens.
    """
    if not words:
        return nn.Parameter(0.02 * torch.randn(*copies, length, text.width))
    ids = _words(text, words)[1:-1]
    if len(ids) != length:
        raise RequestError(f"{words!r} has {len(ids)} tokens, but the context has {length}: the numbers must be equal")
    with torch.no_grad():
        start = text.embed(torch.tensor(ids)).float()
    return nn.Parameter(start.expand(*copies, -1, -1).clone())
