"""Rehearsal memories as --with names them. What they keep is in test_parts_in_steps.py."""

import pytest

from clsim.errors import RequestError
from clsim.named_parts import named_part


def test_named_parts():
    assert named_part("er:500").made.capacity == 500
    assert named_part("er").made.capacity == 500
    assert named_part("er_per_class:7").made.per_class
    for text, words in (
        ("err:5", "did you mean 'er'"),
        ("er:1:2", "er:1:2: write er:SIZE or er,size=VALUE"),
        ("er:x", "er:x: size must be a whole number, not 'x'"),
        ("er:0", "er:0: .*at least 1"),
        ("er,sise=5", r"er,sise=5: no field 'sise' \(did you mean 'size'\?\)"),
        ("er:5,size=5", "size is given twice"),
        ("er_per_class:5,per_class=false", "per_class is given twice"),
    ):
        with pytest.raises(RequestError, match=words):
            named_part(text)
