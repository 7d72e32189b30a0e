"""``python -m fsaf_d2 COMMAND``: the program ``fsaf-d2``, for torchrun and where it is on no PATH."""

import sys

from .commands.program import main

if __name__ == "__main__":
    sys.exit(main())
