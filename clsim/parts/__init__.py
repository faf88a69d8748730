"""What strategies are made of: tuners, heads, prompts, memories, regularisers."""

from clsim.errors import RequestError, unknown
from clsim.events import Part

# what --with takes: name -> what stands behind the colons
NAMED_PARTS = {"er": "IMAGES", "er_per_class": "IMAGES"}


def named_part(text: str) -> Part:
    """A part from its name and values, e.g. ``er:500``: a memory of 500 images. Raises RequestError."""
    from clsim.parts.memory import Reservoir

    name, *values = text.split(":")
    if name not in NAMED_PARTS:
        raise unknown("part", name, NAMED_PARTS)
    try:
        (capacity,) = values
        return Reservoir(int(capacity), per_class=name == "er_per_class")
    except ValueError as error:
        raise RequestError(
            f"--with {text}: write {name}:{NAMED_PARTS[name]} with a whole number of at least 1"
        ) from error
