"""``python -m gnnquant``."""

import sys

from gnnquant.cli import main

sys.exit(main())
