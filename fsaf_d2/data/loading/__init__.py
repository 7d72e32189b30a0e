"""From records to batches: which pictures, how they are read, resized, changed and packed."""
