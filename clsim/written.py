"""The first name of `clsim.plugin_source`."""

from clsim.plugin_source import Class, Field, File, body, lineage, module_file, read

__all__ = ["Class", "Field", "File", "body", "lineage", "module_file", "read"]
