"""The first name of `clsim.field_values`."""

from clsim.field_values import check, field_types, make, resolved, split_field

__all__ = ["check", "field_types", "make", "resolved", "split_field"]
