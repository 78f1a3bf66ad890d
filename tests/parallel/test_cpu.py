"""What stands in for CUDA on a CPU is still fit for libraries that come later."""

import megatron.core.tensor_parallel  # noqa: F401  before CUDA's names mean the CPU, as engines do
import pytest
import torch

from nvlm_train.parallel import cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing stands in for CUDA here")
def test_streams_and_events_are_types():
    """transformers names them in annotations when it is imported: `torch.cuda.Stream | None`."""
    cpu.enable()
    for kind in (torch.cuda.Stream, torch.cuda.Event):
        assert isinstance(kind(), kind | None)
    with torch.cuda.stream(torch.cuda.Stream(priority=-1)):
        torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
