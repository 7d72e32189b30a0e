#!/usr/bin/env python
"""Check a data set: `fsaf-d2 check`, see --help."""

import sys

from fsaf_d2.commands.check_command import main

if __name__ == "__main__":
    sys.exit(main())
