"""`python -m bp` is `bp`."""

import sys

from bp.cli import main

sys.exit(main())
