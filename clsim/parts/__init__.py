"""What strategies are made of: tuners, heads, prompts, memories, regularisers."""

from clsim.errors import RequestError, unknown
from clsim.events import Part

# what --with takes: name -> what stands behind the colons, and what its values may be
NAMED_PARTS = {
    "er": ("IMAGES", "a whole number of at least 1"),
    "er_per_class": ("IMAGES", "a whole number of at least 1"),
    "ewc": ("LAMBDA", "a number of at least 0"),
    "lwf": ("ALPHA", "a number of at least 0"),
    "der": ("ALPHA:BETA:IMAGES", "two numbers of at least 0 and a whole number of at least 1"),
}
REGULARISERS = ("ewc", "lwf", "der")  # those that add to the loss


def named_part(text: str) -> Part:
    """A part from its name and values, e.g. ``er:500``: a memory of 500 images. Raises RequestError."""
    from clsim.parts.memory import DarkExperience, Reservoir
    from clsim.parts.regularisers import Ewc, Lwf

    name, *values = text.split(":")
    if name not in NAMED_PARTS:
        raise unknown("part", name, NAMED_PARTS)
    shape, what = NAMED_PARTS[name]
    if len(values) != len(shape.split(":")):
        raise RequestError(f"--with {text}: write {name}:{shape} with {what}")
    try:
        match name:
            case "ewc":
                return Ewc(float(values[0]))
            case "lwf":
                return Lwf(float(values[0]))
            case "der":
                return DarkExperience(float(values[0]), float(values[1]), int(values[2]))
            case _:
                return Reservoir(int(values[0]), per_class=name == "er_per_class")
    except ValueError as error:
        raise RequestError(f"--with {text}: write {name}:{shape} with {what}") from error
