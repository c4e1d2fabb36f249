"""Run the command line with ``python -m convfactor``."""

import sys

from convfactor.cli import main

sys.exit(main())
