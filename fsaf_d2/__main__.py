"""``python -m fsaf_d2 COMMAND``: ``fsaf-d2``, for torchrun and where it is on no PATH."""

import sys

from .commands.program import main

if __name__ == "__main__":
    sys.exit(main())
