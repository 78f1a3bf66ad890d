"""docs/export.md names the tensors that are written."""

import re
from pathlib import Path

from export_toys import QWEN, tiny_run

import nvlm_train
from nvlm_train.huggingface.names import nvlm_entries

TEXT = (Path(nvlm_train.__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
MODELS = (("nvlm_d_tiny_6b",), ("nvlm_d_tiny", *QWEN), ("nvlm_x_tiny",),
          ("nvlm_h_tiny", "model.cross_attention.qk_norm=true", "model.cross_attention.ffn=64"))


def test_the_table_of_names_is_complete():
    listed = set(re.findall(r"`((?:vision_model|mlp1|language_model)\.[\w.]+)`", TEXT))
    written = {re.sub(r"\.layers\.\d+\.", ".layers.N.", name)
               for words in MODELS for entry in nvlm_entries(tiny_run(*words).model) for name in entry.theirs}
    biases = {name for name in written if name.endswith(".bias")} - listed      # told in words, beside their weights
    assert listed == written - biases
    parts = {name.removesuffix(".bias").rpartition(".")[2] for name in biases}
    assert parts == {"norm1", "norm2", "qkv", "q_proj", "k_proj", "v_proj"}
    assert len(listed) > 40
