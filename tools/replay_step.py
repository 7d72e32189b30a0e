#!/usr/bin/env python
"""Repeat a step that was not finite: `fsaf-d2 replay`, see --help."""

from fsaf_d2.commands.replay_command import main

if __name__ == "__main__":
    main()
