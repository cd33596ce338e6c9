"""`python -m wsejax`, the same as `wsejax`."""

import sys

from wsejax.cli import main

sys.exit(main())
