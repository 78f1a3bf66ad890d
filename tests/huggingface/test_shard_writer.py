"""Files written tensor by tensor are those that the safetensors library reads."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nvlm_train.huggingface.shard_format import INDEX
from nvlm_train.huggingface.shard_writer import Planned, ShardWriter, shards_of

TENSORS = {"a.gate": torch.randn(1).bfloat16(), "b": torch.randn(7, 3), "c.position": torch.arange(6).view(2, 3),
           "d": torch.randn(5, 2).half(), "e": torch.randn(300, 2)}
PLANNED = [Planned(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


@pytest.mark.parametrize("limit", [10_000, 100])
def test_what_is_written_is_read_back(tmp_path, limit):
    with ShardWriter(tmp_path, PLANNED, limit) as writer:
        for name in sorted(TENSORS, reverse=True):      # in another order than planned
            writer.write(name, TENSORS[name].T.contiguous().T)      # not contiguous
    assert (tmp_path / INDEX).exists() == (limit == 100)
    read = {name: tensor for file in writer.files for name, tensor in load_file(tmp_path / file).items()}
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_index_names_the_file_of_every_tensor(tmp_path):
    with ShardWriter(tmp_path, PLANNED, 100) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert len(writer.files) == 3 and writer.files[0] == "model-00001-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as handle:
            assert name in handle.keys()  # noqa: SIM118 (it is no dictionary)
            assert handle.metadata() == {"format": "pt"}


def test_files_are_as_full_as_allowed():
    sizes = [[tensor.size for tensor in shard] for shard in shards_of(PLANNED, 100)]
    assert sizes == [[2, 84], [48, 20], [2400]]     # one tensor alone may be larger


def test_nothing_is_left_out_written_twice_or_changed(tmp_path):
    with pytest.raises(ValueError, match="4 planned tensors were never written, such as a.gate"), \
            ShardWriter(tmp_path, PLANNED, 10_000) as writer:
        writer.write("b", TENSORS["b"])
        with pytest.raises(ValueError, match="second time"):
            writer.write("b", TENSORS["b"])
        with pytest.raises(ValueError, match="torch.float64"):
            writer.write("e", TENSORS["e"].double())
    with pytest.raises(ValueError, match="2 tensors are planned under 1 names"):
        ShardWriter(tmp_path, [PLANNED[0], PLANNED[0]], 100)
