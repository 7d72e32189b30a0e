#!/usr/bin/env python
"""Write report.html anew: `fsaf-d2 report`, see --help."""

from fsaf_d2.commands.report_command import main

if __name__ == "__main__":
    main()
