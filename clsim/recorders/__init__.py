"""What is kept and shown of a run: console, TensorBoard, JSON lines."""
