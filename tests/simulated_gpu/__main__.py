"""`PYTHONPATH=tests python -m simulated_gpu ...` is `python ...` where there is a simulated GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from simulated_gpu import environment, why_not

if reason := why_not():
    sys.exit(f"no simulated GPU: {reason}")
with tempfile.TemporaryDirectory() as directory:
    given = {**os.environ, **environment(Path(directory))}
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env=given, check=False).returncode)
