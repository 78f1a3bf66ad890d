"""Run under torchrun by test_checkpoint_resharding.py, on two ranks: trains a toy Megatron GPT under one layout, saves half-way,
and goes on from there under other layouts. Writes layout -> losses to FOLDER.json.

    checkpoint_gpt.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from checkpoint_toys import FINGERPRINT, Collectives, facts

from nvlm_train.config.schema import Layout, Train
from nvlm_train.engine.checkpoint import CheckpointStore, load
from nvlm_train.engine.optimizer import build_optimizer
from nvlm_train.parallel import groups as parallel
from nvlm_train.parallel.cpu import enable

enable()
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

LENGTH, VOCAB, ROWS, MICRO = 16, 64, 2, 4
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


class GptEngine(Collectives):
    """A GPT of two layers under a layout, with Megatron's distributed optimizer."""

    def __init__(self, layout: Layout, seed: int):
        self.groups = parallel.lay_out(layout, seed)
        torch.manual_seed(seed + dist.get_rank())
        config = TransformerConfig(
            num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
            tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline, pipeline_dtype=torch.float32,
            use_cpu_initialization=True, gated_linear_unit=True, activation_func=F.silu, normalization="RMSNorm",
            add_bias_linear=False, add_qkv_bias=True, hidden_dropout=0.0, attention_dropout=0.0, masked_softmax_fusion=False,
            gradient_accumulation_fusion=False, bias_activation_fusion=False)
        config.finalize_model_grads_func = finalize_model_grads
        first, last = parallel.stage_flags(layout, None)
        model = GPTModel(config, get_gpt_layer_local_spec(normalization="RMSNorm"), VOCAB, LENGTH, position_embedding_type="rope",
                         pre_process=first, post_process=last)
        self.last = last
        self.model = DistributedDataParallel(config, DistributedDataParallelConfig(use_distributed_optimizer=True), model)
        self.optimizer = build_optimizer([self.model], Train(lr=1e-2, trainable=("",)), bf16=False, adam="torch")

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        model = self.model.module.sharded_state_dict()
        if not optimizer:
            return {"model": model}
        optimizer_state = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=dict(SHARDING))
        return {"model": model, "optimizer": optimizer_state}

    def load_state(self, state: dict) -> None:
        self.model.module.load_state_dict(state["model"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.optimizer.reload_model_params()

    def train(self, first: int, steps: int) -> list[float]:
        """Losses of `steps` steps from `first` on. A step is MICRO micro-batches, shared out over the data-parallel ranks."""
        losses = []
        for step in range(first, first + steps):
            data = torch.randint(0, VOCAB, (MICRO, ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
            mine = iter(data[self.groups.data_rank::self.groups.data_size])
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            reports = get_forward_backward_func()(
                forward_step_func=_forward, data_iterator=mine, model=[self.model], forward_only=False,
                num_microbatches=MICRO // self.groups.data_size, seq_length=LENGTH, micro_batch_size=ROWS)
            self.optimizer.step()
            total = sum(float(report["loss"]) for report in reports) / MICRO if self.last else 0.0
            per_rank = self.gather_objects((self.groups.data_rank, self.last, total))
            losses.append(sum({rank: value for rank, last, value in per_rank if last}.values()))
        return losses


def _forward(rows, model):
    tokens = next(rows)
    positions, hidden = torch.arange(LENGTH).expand(ROWS, LENGTH), torch.ones(1, 1, LENGTH, LENGTH).tril().eq(0)
    output = model(tokens[:, :-1], positions, hidden, labels=tokens[:, 1:])
    return output, lambda out: (out.float().mean(), {"loss": out.detach().float().mean()})


def main(folder: Path) -> None:
    parallel.start(torch.device("cpu"), timeout_s=60)
    store = CheckpointStore(folder, keep_last=2)
    engine = GptEngine(Layout(tensor=2), seed=1)
    losses = {"before": engine.train(0, 3)}
    store.save(engine, facts(cursor=3), 3, asynchronous=True)
    losses["tensor 2, undisturbed"] = engine.train(3, 3)    # changes the weights while the save is still being written
    store.finish()
    for name, layout in (("tensor 2", Layout(tensor=2)), ("pipeline 2", Layout(pipeline=2)), ("data 2", Layout())):
        parallel.clear()
        engine = GptEngine(layout, seed=2)
        load(store.latest(), engine, FINGERPRINT)
        losses[name] = engine.train(3, 3)
    parallel.clear()
    engine = GptEngine(Layout(pipeline=2), seed=3)
    load(store.latest(), engine, FINGERPRINT, model_only=True)
    losses["weights only"] = engine.train(3, 3)
    if engine.is_main:
        folder.with_suffix(".json").write_text(json.dumps(losses))
    dist.barrier()
    parallel.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
