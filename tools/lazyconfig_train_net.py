#!/usr/bin/env python
"""Train what a Python config describes: `fsaf-d2 train-lazy`, see --help."""

from fsaf_d2.commands.lazy_command import main

if __name__ == "__main__":
    main()
