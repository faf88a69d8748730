"""Named random streams: each consumer of randomness draws from a generator of its own.

A stream is derived from the seed and a name alone, so that adding a consumer shifts none of the
others, and nothing has to be saved for a resumed run to draw what an unbroken one would have drawn.
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
