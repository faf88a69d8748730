"""Engines: what runs many configurations side by side, in processes of this machine or on others."""
