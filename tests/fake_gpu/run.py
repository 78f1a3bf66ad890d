"""A script, or a module, as on a GPU: run.py script.py arguments… | run.py -m module arguments…"""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from tests.fake_gpu import gpu

gpu.enable()
if sys.argv[1] == "-m":
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
