#!/usr/bin/env python
"""Train or evaluate a detector: `fsaf-d2 train`, see --help."""

from fsaf_d2.commands.train_command import main

if __name__ == "__main__":
    main()
