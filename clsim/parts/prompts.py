"""The old name of `clsim.parts.prompt_pools`, kept for users' strategies."""

from clsim.parts.prompt_pools import PerExperience, PoolOutputs, Prefixes, Progress, blocks_of, check_depth, cosines

__all__ = ["PerExperience", "PoolOutputs", "Prefixes", "Progress", "blocks_of", "check_depth", "cosines"]
