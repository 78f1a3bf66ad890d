"""Weight gradients added up in fp32 in the matrix product that makes them, in torch.

Without, a product writes its gradient in bf16 and data parallelism adds it to the fp32 sum: 12 bytes moved for each weight and row, against
8, and one rounding more. Megatron's linear layers know how (`gradient_accumulation_fusion`), and call a kernel of apex for it; here is the
same kernel without apex.
"""

import importlib
from types import SimpleNamespace

import megatron.core.tensor_parallel.layers as megatron_layers
import torch
from torch import Tensor


def add_product(total_oi: Tensor, gradient_To: Tensor, input_Ti: Tensor) -> None:
    """total += gradient^T @ input; total fp32, the others of one dtype. On the CPU they are widened first."""
    if total_oi.device.type == "cpu" or input_Ti.dtype == total_oi.dtype:
        total_oi.addmm_(gradient_To.t().to(total_oi.dtype), input_Ti.to(total_oi.dtype))
    else:
        torch.addmm(total_oi, gradient_To.t(), input_Ti, out_dtype=total_oi.dtype, out=total_oi)


def _wgrad_gemm_accum(total_input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """apex's order of arguments."""
    add_product(main_grad, grad_output, total_input)


_OURS = SimpleNamespace(wgrad_gemm_accum_fp32=_wgrad_gemm_accum, wgrad_gemm_accum_fp16=_wgrad_gemm_accum)


def take_product(which: str) -> None:
    """Let Megatron's linear layers call the kernel that the plan names (`kernels.KernelPlan.wgrad`). Before they are built."""
    if which in ("product", "apex"):
        megatron_layers.fused_weight_gradient_mlp_cuda = (
            _OURS if which == "product" else importlib.import_module("fused_weight_gradient_mlp_cuda"))
        megatron_layers._grad_accum_fusion_available = True
