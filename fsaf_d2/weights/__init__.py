"""Files of weights: what may be in them, how others name theirs, and where they are published."""
