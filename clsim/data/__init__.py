"""From images to batches: readers, tables, streams."""
