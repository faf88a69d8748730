"""Learned words before, around or behind a class's name, read by CLIP's frozen text tower without doing anything twice.

Three things are left out that change nothing. Behind the end of a text nothing is read: sequences are cut there. The
tower is causal: what stands before the first token in which the classes differ is the same for all of them, and its
keys and values are computed once. Frozen tokens are looked up once. A test holds values and gradients against the
plain computation.
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
    """Puts kept keys and values before a sequence's own; (G,P,D) ones serve G*K sequences, K after K."""

    def __init__(self, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.kept = kept

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        before = (each.repeat_interleave(len(keys) // len(each), dim=0) for each in self.kept[block])
        return tuple(torch.cat(pair, dim=1) for pair in zip(before, (keys, values), strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Wording:
    """Where a prompt's M learned vectors stand among the K classes' words."""

    entries: Tensor  # (K,N) token ids, or -1 - m where vector m stands; cut behind the longest text
    ends: Tensor  # (K,) positions of the end-of-text tokens
    shared: int  # leading positions at which all classes have the same

    @classmethod
    def of(
        cls, text: TextTower, class_names: Sequence[str], length: int, position: Position = "end", ending: str = "."
    ) -> "Wording":
        """`length` vectors before, half before and half behind, or behind each name; then `ending`.

        Raises RequestError for a text that does not fit into the context.
        """
        vectors = [-1 - m for m in range(length)]
        half = {"end": length, "middle": length // 2, "front": 0}[position]
        start, end = _words(text, "")
        rows = []
        for name in map(readable, class_names):
            whole, alone = _words(text, f"{name}{ending}")[1:-1], _words(text, name)[1:-1]
            behind = whole[len(alone) :] if whole[: len(alone)] == alone else whole
            if behind is whole and vectors[half:]:
                raise RequestError(f"{name!r} and {ending!r} make one word: nothing can be put between them")
            words = [*alone, *vectors[half:], *behind] if vectors[half:] else whole
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
    """Token ids of a text, its start and end included."""
    ids, ends = text.tokens([words])
    return ids[0, : int(ends[0]) + 1].tolist()  # type: ignore[no-any-return]


class PromptedText(nn.Module):
    """Class features under learned context vectors, from a frozen text tower."""

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
        self.register_buffer("words", words, persistent=False)  # (K,N,D), of no meaning where a vector stands

    def forward(self, context: Tensor) -> Tensor:
        """(G,M,D) contexts that the classes share -> (G,K,E) features, for each context on its own."""
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
        """(K,M,D) contexts, one of each class's own -> (K,E) features."""
        learned = context.gather(1, self._vectors(ALL, self.entries)[..., None].expand(-1, -1, context.shape[-1]))
        tokens = torch.where((self.entries < 0)[..., None], learned, self.words.to(context.dtype))
        return self.text.features(tokens, self.ends)

    def _tokens(self, context: Tensor, where: slice, entries: Tensor, words: Tensor) -> Tensor:
        """(G,M,D) contexts -> (G,K,n,D) embeddings of the positions `where`."""
        learned = context[:, self._vectors(where, entries)]
        return torch.where((entries[:, where] < 0)[..., None], learned, words[:, where].to(context.dtype))

    @staticmethod
    def _vectors(where: slice, entries: Tensor) -> Tensor:
        """(K,n) which vector stands at each position; 0 where none does."""
        return (-1 - entries[:, where]).clamp(min=0)


def new_context(text: TextTower, length: int, words: str = "", copies: tuple[int, ...] = ()) -> nn.Parameter:
    """(*copies, M, D) context vectors: N(0, 0.02^2), or the embeddings of `words`.

    Zhou et al. 2022, arXiv:2109.01134, section 3.1. Raises RequestError if the words are not M tokens.
    """
    if not words:
        return nn.Parameter(0.02 * torch.randn(*copies, length, text.width))
    ids = _words(text, words)[1:-1]
    if len(ids) != length:
        raise RequestError(f"{words!r} has {len(ids)} tokens, and the context {length}: they must be as many")
    with torch.no_grad():
        start = text.embed(torch.tensor(ids)).float()
    return nn.Parameter(start.expand(*copies, -1, -1).clone())
