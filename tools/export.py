#!/usr/bin/env python
"""Write a detector as ONNX or TorchScript: `fsaf-d2 export`, see --help."""

import sys

from fsaf_d2.commands.export_command import main

if __name__ == "__main__":
    sys.exit(main())
