"""`python -m layby`: run a worker."""

import sys

from layby._worker import main

if __name__ == "__main__":
    sys.exit(main())
