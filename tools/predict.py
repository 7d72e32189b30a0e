#!/usr/bin/env python
"""Find objects in images and videos: `fsaf-d2 predict`, see --help."""

import sys

from fsaf_d2.commands.predict_command import main

if __name__ == "__main__":
    sys.exit(main())
