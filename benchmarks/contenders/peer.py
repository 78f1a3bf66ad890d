"""The peer: what most people would use in place of this project on one GPU. transformers' InternVL with random weights, bf16 weights, fused
AdamW, samples padded to the longest of their micro-batch."""

import torch

from benchmarks.contenders.result import facts
from benchmarks.contenders.workloads import Piece, Shapes
from benchmarks.timing import timed

MICRO = {"pretraining": 16, "finetuning": 4}        # samples at a time; twice as many do not fit 80 GB


def model_for(workload: str, s: Shapes, device: torch.device, dtype: torch.dtype):
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={"hidden_size": s.vit_width, "num_hidden_layers": s.vit_layers, "num_attention_heads": s.vit_heads,
                       "intermediate_size": s.vit_ffn, "image_size": [s.tile, s.tile], "patch_size": [s.patch, s.patch]},
        text_config={"model_type": "qwen2", "vocab_size": s.vocab, "hidden_size": s.width, "intermediate_size": s.ffn,
                     "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
                     "tie_word_embeddings": False, "max_position_embeddings": 32_768},
        image_token_id=s.vocab - 1, image_seq_length=s.tile_tokens, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    with device:
        model = InternVLForConditionalGeneration(config).to(dtype)
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        language = "language_model" in name or "lm_head" in name
        parameter.requires_grad_("vision_tower" not in name and not (language and workload == "pretraining"))
    return model.train()


def batches_of(work: list[Piece], s: Shapes, micro: int, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Samples in their order, padded on the right."""
    drawn, found = torch.Generator().manual_seed(0), []
    for at in range(0, len(work), micro):
        held = work[at:at + micro]
        longest = max(piece.tiles * s.tile_tokens + piece.text for piece in held)
        ids = torch.zeros(len(held), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, piece in enumerate(held):
            shown = piece.tiles * s.tile_tokens
            end = shown + piece.text
            ids[row, :shown] = s.vocab - 1
            ids[row, shown:end] = torch.randint(1, s.vocab - 2, (piece.text,), generator=drawn)
            mask[row, :end] = 1
            labels[row, end - piece.supervised:end] = ids[row, end - piece.supervised:end]
        tiles = sum(piece.tiles for piece in held)
        pixels = torch.randn(tiles, 3, s.tile, s.tile, generator=drawn).to(device, dtype) if tiles else None
        found.append({"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device), "pixel_values": pixels})
    return found


def measure(workload: str, work: list[Piece], shapes: Shapes, rounds: int) -> dict:
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    model = model_for(workload, shapes, device, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=cuda)
    batches = batches_of(work, shapes, MICRO[workload], device, dtype)

    def step() -> None:
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return facts(timed(step, rounds), work, shapes, workload, micro_batch=MICRO[workload])
