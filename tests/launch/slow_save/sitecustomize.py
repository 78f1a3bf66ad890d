"""On PYTHONPATH of a job: the rename that publishes a checkpoint takes NVLM_TEST_SLOW_SAVE_S seconds, as large ones may."""

import os
import time
from pathlib import Path

_rename = os.rename


def _slow_rename(source, target, **options):
    if Path(target).name.startswith("step-"):
        time.sleep(float(os.environ["NVLM_TEST_SLOW_SAVE_S"]))
    _rename(source, target, **options)


os.rename = _slow_rename
