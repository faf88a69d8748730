"""The old name of `clsim.bases`, kept for users' strategies."""

from clsim.bases import Adaptation, PromptPools, TextPrompts, TextTuner, Tuner

__all__ = ["Adaptation", "PromptPools", "TextPrompts", "TextTuner", "Tuner"]
