"""What reading and writing a Hugging Face folder's safetensors share: the index's name, and how dtypes are called."""

import torch

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}      # numbers that can be trained on
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float64: "F64", torch.int64: "I64"}   # what can be written
