"""A rank on a GPU says which one it has, and whether the driver finds fault with it: pytest tests/gpu/test_health.py"""

import pytest
import torch

from nvlm_train.doctor import NOTE, PROBLEM
from nvlm_train.health.facts import facts_of
from nvlm_train.health.gpus import remarks
from nvlm_train.parallel.job import Place

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_the_gpu_is_named_with_what_must_agree():
    facts = facts_of(Place(), torch.device("cuda", 0))
    assert facts.gpu.startswith(torch.cuda.get_device_name(0)) and {"CUDA of torch", "NCCL", "NVIDIA driver"} <= set(facts.versions)


def test_remarks_are_sentences():
    assert all(status in (NOTE, PROBLEM) and text for status, text in remarks(torch.device("cuda", 0)))
