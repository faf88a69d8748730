"""Streams of tasks, one file each."""
