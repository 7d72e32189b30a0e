#!/usr/bin/env python
"""Write a detector as ONNX or TorchScript: `fsaf-d2 export`, see --help."""

import sys

from fsaf_d2.commands.export_command import argument_parser, main  # noqa: F401

if __name__ == "__main__":
    sys.exit(main())
