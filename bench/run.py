"""Run a table: `python3 bench/run.py TABLE`, the same as `python3 -m bench TABLE` in the checkout."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("bench", run_name="__main__")
