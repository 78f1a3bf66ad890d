"""Seconds follow the run's kernel plan: compiled parts, weight gradients in the product, fp8; and bytes are those that the code moves."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.config.schema import Language, Model, Vision
from nvlm_train.errors import ConfigError
from nvlm_train.kernels import COMPILED, PRODUCT, KernelPlan
from nvlm_train.model import elementwise, loss
from nvlm_train.planning.cost import Place, Products
from nvlm_train.planning.decoder_time import CROSS_ENTROPY, ROTARY, SWIGLU, Gradients, Row, answer, decoder_layer
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.encoder_time import encode
from nvlm_train.planning.plan import Plan, bench_of
from nvlm_train.planning.rates import machine
from nvlm_train.planning.samples import assumed_samples

H100 = machine(GPUS["h100"])
PLAIN = Place(H100)
FUSED = Place(H100, kernels=KernelPlan("cuda", elementwise=COMPILED, rope=COMPILED))
QWEN = Model(language=Language(layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960, vocab=151_936))
ROW = Row(8192, (8192,), 4, 1000)


def less_moved(plain, fused) -> tuple[float, float]:
    """bf16 numbers that the second does not move and the first does, forward and backward."""
    return tuple((getattr(plain, way).elementwise - getattr(fused, way).elementwise) * H100.bytes_s / 2 for way in ("forward", "backward"))


def test_a_compiled_layer_moves_so_much_less():
    """docs/kernels.md: SwiGLU 7f and 13f to 3f and 5f, rotary positions 12 and 14 to 2 and 2 of queries and keys."""
    plain, fused = (decoder_layer(QWEN, place, ROW, Gradients(True, False, True), reads=False) for place in (PLAIN, FUSED))
    turned = (12 + 2) * 128
    assert less_moved(plain, fused) == pytest.approx((8192 * (4 * 8960 + 10 * turned), 8192 * (8 * 8960 + 12 * turned)))
    assert (plain.forward.matmul, plain.forward.attention, plain.forward.flops) == (fused.forward.matmul, fused.forward.attention,
                                                                                  fused.forward.flops)


def test_a_compiled_frozen_encoder_moves_so_much_less_and_a_trained_one_not():
    """InternViT-300M: 40C of a layer become 18C; a trained encoder is not compiled."""
    vision = Vision(layers=24, hidden=1024, heads=16, ffn=4096, norm="layer", qkv_bias=True, qk_norm=False, layer_scale=True)
    plain, fused = (encode(vision, place, 4, trains=False) for place in (PLAIN, FUSED))
    assert less_moved(plain, fused) == pytest.approx((24 * 4 * 1025 * 22 * 1024, 0))
    assert encode(vision, PLAIN, 4, trains=True) == encode(vision, FUSED, 4, trains=True)


def test_a_compiled_loss_moves_so_much_less():
    plain, fused = (answer(QWEN, place, ROW, True, True) for place in (PLAIN, FUSED))
    assert less_moved(plain, fused) == pytest.approx((1000 * 151_936 * 8, 1000 * 151_936 * 25))


class Moved(TorchDispatchMode):
    """Bytes that operations read and write; views and what is only made move none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        read, written = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)] for tree in ((args, kwargs), out))
        if function.overloadpacket is torch.ops.aten.copy_:
            read = read[1:]     # the first is written only
        if not function.is_view:
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in (*read, *written))
        return out


def moved(work, *arguments) -> float:
    """bf16 numbers."""
    with Moved() as counted:
        work(*arguments)
    return counted.bytes / 2


def test_cross_entropy_in_pieces_moves_what_is_counted():
    """1 % is allowed for what a token (1 in 2,000 logits) and a column (1 in 400) has once."""
    tokens, width = 400, 2000
    logits = torch.randn(tokens, width, dtype=torch.bfloat16)
    most, ones = logits.amax(-1).float(), torch.ones(tokens)
    largest = moved(lambda: logits.amax(-1))
    forward = largest + moved(loss.exponentials_summed, logits, most)
    backward = moved(loss.overwrite_with_gradient, logits, torch.zeros(tokens, dtype=torch.long), most, ones, ones)
    assert (forward, backward) == pytest.approx([each * tokens * width for each in CROSS_ENTROPY[False]], rel=0.01)
    assert CROSS_ENTROPY[True] == (2, 2)    # read for the largest, read for the sum; read and written over


def test_single_kernels_move_their_arguments_and_results():
    x, gradient, width = torch.randn(64, 512, dtype=torch.bfloat16), torch.randn(64, 256, dtype=torch.bfloat16), 64 * 256
    once = (x.numel() + elementwise.swiglu(x).numel(), gradient.numel() + x.numel() + elementwise.swiglu_gradient(gradient, x).numel())
    assert once == tuple(each * width for each in SWIGLU[True])
    heads, angles = torch.randn(64, 4, 64, dtype=torch.bfloat16), torch.randn(64, 32)
    assert heads.numel() + elementwise.turned(heads, angles, angles).numel() == ROTARY[True][0] * heads.numel()


def test_weight_gradients_in_the_product_move_eight_bytes_instead_of_ten_and_are_no_call():
    plain, summed = (PLAIN.linear(8192, 1536, 8960, True, True, Products(summed=summed)) for summed in (False, True))
    assert less_moved(plain, summed)[1] * 2 == pytest.approx(2 * 1536 * 8960) and plain.backward.calls - summed.backward.calls == 1
    product = replace(PLAIN, kernels=KernelPlan("cuda", wgrad=PRODUCT))
    tied = replace(QWEN, language=replace(QWEN.language, tie_embeddings=True))      # the embedding's gradient is added by data parallelism
    assert less_moved(answer(tied, PLAIN, ROW, True, True), answer(tied, product, ROW, True, True))[1] == 0
    assert less_moved(answer(QWEN, PLAIN, ROW, True, True), answer(QWEN, product, ROW, True, True))[1] == pytest.approx(1536 * 151_936)


def planned(*words, gpu="h100"):
    run = compose([*words])[0]
    return Plan(run, bench_of(run, Cluster(GPUS[gpu], 16, 8), assumed_samples(run, Assume(), 300)))


D72 = ("recipe=nvlm_d_72b", "stage=sft")


def test_a_run_is_planned_as_it_will_compute():
    auto, off = planned(*D72), planned(*D72, "model.compile=off")
    assert auto.time.seconds < off.time.seconds and auto.time.kinds.matmul == off.time.kinds.matmul
    assert planned(*D72, "model.compile=on").time.seconds == auto.time.seconds


def test_fp8_gains_on_the_layers_that_it_takes_and_casts_trained_weights_once_a_step():
    """72B at TP 8: up and down; in fp8 their products are fewer seconds, casts are more bytes. Transformer Engine's layers were not
    measured: their seconds stay."""
    bf16, fp8 = planned(*D72), planned(*D72, "model.fp8=current")
    assert fp8.time.kinds.matmul < bf16.time.kinds.matmul and fp8.time.kinds.elementwise > bf16.time.kinds.elementwise
    assert fp8.time.seconds < bf16.time.seconds
    assert fp8.time.update_s > bf16.time.update_s
    te, te8 = (planned(*D72, "model.kernels=te", f"model.fp8={recipe}") for recipe in ("none", "delayed"))
    assert te8.time.seconds == te.time.seconds
    frozen = [planned("recipe=nvlm_d_72b", "stage=pretrain", f"model.fp8={recipe}").time.update_s for recipe in ("none", "current")]
    assert frozen[0] == frozen[1]


@pytest.mark.parametrize(("gpu", "words", "says"), [
    ("a100", (*D72, "model.fp8=current"), "8.9 or higher"),
    ("h100", ("recipe=nvlm_d_34b", "stage=sft", "model.kernels=te", "model.fp8=mxfp8"), "10.0 or higher")])
def test_what_the_gpu_cannot_compute_is_refused(gpu, words, says):
    with pytest.raises(ConfigError, match=says):
        planned(*words, gpu=gpu).time     # noqa: B018
