"""Pretrained transformers seen as towers."""
