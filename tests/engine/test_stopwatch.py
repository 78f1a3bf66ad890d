import time

import torch

from nvlm_train.engine.stopwatch import Stopwatch


def test_the_time_between_start_and_stop_and_nothing_before_both():
    watch = Stopwatch(torch.device("cpu"))
    assert watch.read() == 0.0
    watch.stop()
    assert watch.read() == 0.0
    began = time.perf_counter()
    watch.start()
    assert watch.read() == 0.0
    time.sleep(0.02)
    watch.stop()
    assert 0.02 <= watch.read() <= time.perf_counter() - began
