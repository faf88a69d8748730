"""The list of backbones, without importing torch."""

from clsim.errors import unknown

BUNDLED = {
    "vit_micro": "small ViT for 32x32 images (2.9 M parameters), pretrained on Tiny-ImageNet; comes with the package",
    "clip_micro": "small CLIP for 32x32 images and 64 tokens, pretrained on captioned glyphs; comes with the package",
    "vit_nano": "tiny ViT with random weights (seed 0), for tests",
    "clip_nano": "tiny CLIP with random weights (seed 0), for tests",
}
FAMILIES = {
    "<timm name>": "any timm VisionTransformer by model and tag, e.g. vit_base_patch16_224.augreg_in21k",
    "clip:<model>/<tag>": "any of open_clip's models by name and tag, e.g. clip:ViT-B-16/openai",
}
WITH_TEXT = "clip_micro and clip:<model>/<tag> (open_clip's names)"


def default_backbone(needs_text: bool) -> str:
    """The default backbone of a run."""
    return "clip_micro" if needs_text else "vit_micro"


def describe(name: str) -> str:
    """One line about a bundled backbone. Raises RequestError with the list if the name is unknown."""
    if name not in BUNDLED:
        raise unknown("bundled backbone", name, BUNDLED)
    return BUNDLED[name]
