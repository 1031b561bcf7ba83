"""The process of one stage, started by run.py: python -m stages NAME WORK LOCK [--dry]."""

import importlib
import sys
from pathlib import Path

import kit

name, work, lock = sys.argv[1:4]
kit.main(name, importlib.import_module(f"stages.{name}"), Path(work), Path(lock), "--dry" in sys.argv[4:])
