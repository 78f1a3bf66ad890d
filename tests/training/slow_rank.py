"""`nvlm train` with one rank that takes longer than it should: run by test_stragglers.py under torchrun."""

import os
import sys
import time

from nvlm_train.cli import main
from nvlm_train.model.nvlm import Nvlm

SLOW, SECONDS = "1", 0.2

if __name__ == "__main__":
    if os.environ["RANK"] == SLOW:
        forward = Nvlm.forward

        def slowed(self, *arguments, **settings):
            time.sleep(SECONDS)
            return forward(self, *arguments, **settings)

        Nvlm.forward = slowed
    sys.exit(main(["train", "recipe=nvlm_d_tiny", "stage=pretrain", f"run.dir={sys.argv[1]}", "train.steps=5", "train.warmup_steps=1",
                   "train.global_batch=4", "run.examples=0", "run.eval_batches=1", "run.device=cpu", "~data.validation"]))
