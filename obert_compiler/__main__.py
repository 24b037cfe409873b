"""``python -m obert_compiler`` is ``obertc``."""

import sys

from obert_compiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
