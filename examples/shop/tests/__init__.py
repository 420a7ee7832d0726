"""Tests of the shop, without a gateway: `manage.py test tests`.

The three services are the stub in examples/services, as a process of its own.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
