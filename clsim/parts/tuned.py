"""The old name of `clsim.parts.learners`, kept for users' strategies."""

from clsim.parts.learners import BankFeatures, Headed, TextClassifier, TextsInContext, TunedImage, TunedText, tuned

__all__ = ["BankFeatures", "Headed", "TextClassifier", "TextsInContext", "TunedImage", "TunedText", "tuned"]
