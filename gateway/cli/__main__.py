"""`python -m gateway.cli`: the command without its installed script."""

import sys

from gateway.cli import main

sys.exit(main())
