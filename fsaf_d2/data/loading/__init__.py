"""From records to batches: which images, how they are read, resized, changed and packed."""
