"""Recorders, which keep and show what happens in a run: JSON lines, TensorBoard, console, pictures."""
