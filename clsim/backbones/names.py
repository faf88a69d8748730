"""Names of backbones as people write them, and the nearest right ones. Lists in messages are short."""

import difflib
import re
from collections.abc import Iterable

from clsim.backbones.registry import BUNDLED
from clsim.errors import RequestError

LISTED = 8  # names in a message
SIZES = {"t": "tiny", "ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
SIZES |= {size: size for size in SIZES.values()}
SIZE = "(tiny|small|base|large|huge|giant|ti|t|s|b|l|h|g)"


def nearest(kind: str, name: str, known: Iterable[str], guess: str | None = None) -> RequestError:
    """An error for an unknown name: the nearest right name, and at most eight others, the nearest first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=LISTED, cutoff=0.4)
    guess = guess or (near[0] if near else None)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    shown = [*near, *(n for n in names if n not in near)][:LISTED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return RequestError(f"no {kind} {name!r}{hint}; there are: {', '.join(shown) or 'none'}{more}")


def no_backbone(name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not a model of timm; `known`: timm's models."""
    architectures = set(known)
    guess = as_written(name)
    if guess.partition(".")[0] not in architectures and not guess.startswith("clip:"):
        near = difflib.get_close_matches(guess, [*BUNDLED, *sorted(architectures)], n=1, cutoff=0.4)
        guess = near[0] if near else ""
    similar = difflib.get_close_matches(guess or name, sorted(architectures), n=LISTED - len(BUNDLED), cutoff=0.4)
    also = [n for n in similar if n != guess]
    hint = f" (did you mean {guess!r}?)" if guess else ""
    return RequestError(
        f"no backbone {name!r}{hint}; there are: {', '.join([*BUNDLED, *also])}, timm's other VisionTransformers, "
        "and clip:MODEL/TAG of open_clip"
    )


def as_written(name: str) -> str:
    """timm's or open_clip's name for one in the style of a paper, of a repository, or of the Hub."""
    plain = re.sub(r"^(hf[-_]hub|timm|hf):(//)?", "", name.strip().lower())
    plain = re.sub(r"^[a-z0-9_-]+/(?=[a-z0-9_.-]{4})", "", plain)  # the owner on the Hub
    tag = plain.partition(".")[2]
    flat = re.sub(r"[^a-z0-9.]+", "_", plain).strip("_")
    if found := re.match(rf"(open)?clip_(?:vit_)?{SIZE}_?(?:patch)?(\d+)", flat):
        return f"clip:ViT-{SIZES[found[2]][0].upper()}-{found[3]}/openai"
    if found := re.match(rf"dinov2_(with_registers_)?(?:vit)?_?{SIZE}_?(?:14)?(_reg)?", flat):
        registers = "reg4_" if found[1] or found[3] else ""
        return f"vit_{SIZES[found[2]]}_patch14_{registers}dinov2"
    if found := re.match(rf"dino_(?:vit)?_?{SIZE}_?(16|8)", flat):
        return f"vit_{SIZES[found[1]]}_patch{found[2]}_224.dino"
    if found := re.match(rf"(mae_)?vit_?{SIZE}_?(?:patch)?_?(\d+)(?:_(\d+))?(_mae)?(?=[._]|$)", flat):
        tag = "mae" if found[1] or found[5] else tag
        return f"vit_{SIZES[found[2]]}_patch{found[3]}_{found[4] or 224}{'.' if tag else ''}{tag}"
    return flat
