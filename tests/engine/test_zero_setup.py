"""What DeepSpeed is told, and what is said where it is missing. No process is started and DeepSpeed is not needed."""

import sys

import pytest
import torch
from torch.nn import Parameter

from nvlm_train.config.schema import Train
from nvlm_train.engine.optimizer import set_rates
from nvlm_train.engine.zero_setup import adamw, load_deepspeed
from nvlm_train.errors import ConfigError

NAMED = {"connector.norm.weight": Parameter(torch.ones(4)), "connector.linear_fc1.weight": Parameter(torch.ones(4, 4)),
         "language.embedding.weight": Parameter(torch.ones(8, 4)), "vision.position": Parameter(torch.ones(1, 4), requires_grad=False)}


def test_without_deepspeed_one_line_says_what_to_install(monkeypatch):
    for name, value in (("DS_ACCELERATOR", "cpu"), ("LOCAL_RANK", "0")):    # else set, and left behind
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"DeepSpeed does not load .*: pip install 'nvlm-train\[deepspeed\]'") as caught:
        load_deepspeed(torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_groups_decay_matrices_and_scale_rates_by_pattern():
    optimizer = adamw(NAMED.items(), Train(lr=1.0, weight_decay=0.5, lr_multipliers={"connector": 0.25}), fused=False)
    set_rates(optimizer, 0.1, 0.5)
    found = {id(param): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for param in group["params"]}
    assert found == {id(NAMED["connector.norm.weight"]): (0.025, 0.0), id(NAMED["connector.linear_fc1.weight"]): (0.025, 0.5),
                     id(NAMED["language.embedding.weight"]): (0.1, 0.5)}


def test_two_patterns_with_different_factors_are_refused():
    with pytest.raises(ConfigError, match=r"connector.norm.weight 2 factors, \[0.25, 0.5\]"):
        adamw(NAMED.items(), Train(lr_multipliers={"connector": 0.25, "*.norm.weight": 0.5}), fused=False)
