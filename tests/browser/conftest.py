"""Lets the tests of this folder find the browser's driver, and the builders of run folders."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "reports")]
