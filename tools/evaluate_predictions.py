#!/usr/bin/env python
"""Evaluate predictions: `fsaf-d2 evaluate --predictions`, see --help."""

from fsaf_d2.commands.predictions_command import main

if __name__ == "__main__":
    main()
