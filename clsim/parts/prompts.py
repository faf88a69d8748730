"""Prompt pools: learned tokens that an image chooses for itself."""

import torch
from torch import Tensor, nn


class PromptPool(nn.Module):
    """M prompts of L tokens, each under a key; a query takes the prompts whose keys are nearest.

    Wang et al. 2022, arXiv:2112.08654, section 4.
    """

    def __init__(self, size: int, length: int, width: int, low: float, high: float) -> None:
        """Keys and prompts start uniform in [low, high]."""
        super().__init__()
        self.keys = nn.Parameter(torch.empty(size, width).uniform_(low, high))
        self.prompts = nn.Parameter(torch.empty(size, length, width).uniform_(low, high))

    def similarity(self, query: Tensor) -> Tensor:
        """(B,D) queries -> (B,M) cosines to the keys."""
        return nn.functional.normalize(query, dim=1) @ nn.functional.normalize(self.keys, dim=1).T

    def take(self, chosen: Tensor) -> Tensor:
        """(B,N) prompt ids -> (B, N*L, D) tokens."""
        return self.prompts[chosen].flatten(1, 2)


def nearest(similarity: Tensor, count: int) -> Tensor:
    """(B,M) cosines -> (B,count) ids, nearest first, each image for itself."""
    return similarity.topk(count, dim=1).indices


def majority(chosen: Tensor, size: int) -> Tensor:
    """(B,N) ids -> the N ids that the batch chose most often, for every image alike; ties go to the lower id."""
    votes = chosen.flatten().bincount(minlength=size)
    winners = votes.argsort(descending=True, stable=True)[: chosen.shape[1]]
    return winners.expand(len(chosen), -1)
