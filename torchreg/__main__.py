"""``python -m torchreg``: the command line."""

import sys

from torchreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
