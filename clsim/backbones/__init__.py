"""Pretrained transformers as towers."""
