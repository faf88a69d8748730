"""Images to batches: readers, tables, streams."""
