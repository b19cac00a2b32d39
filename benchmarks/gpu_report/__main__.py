"""`python benchmarks/gpu_report`: see cli.py."""

import sys
from pathlib import Path

# This folder's own modules are imported as a package; `profile` or `files` of elsewhere are not hidden.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpu_report.cli import main  # noqa: E402

sys.exit(main())
