"""Named random streams: each consumer of random numbers has its own generator.

A stream depends only on the seed and a name. So a new consumer does not change the others, and a resumed run draws the
same numbers as an uninterrupted run without saving any state.
"""

import hashlib

import torch


def derive(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream called `name`, e.g. ``derive(0, "augmentation", experience, epoch)``."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream called `name`."""
    return torch.Generator().manual_seed(derive(seed, *name))
