"""A stand-in for NVIDIA's apex on the CPU, as `fake_te` is for Transformer Engine. Signatures: its repository's at 25.09."""

import torch
import torch.nn.functional as F

from tests.kernels import faking

CALLS: list[str] = []


def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    CALLS.append("norm")
    return F.rms_norm(input, normalized_shape, weight, eps)


class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0,
                 amsgrad=False, set_grad_none=True, capturable=False, master_weights=False):
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group["params"]:     # its groups without parameters keep no step
                faking.adam_update(self, group)


def wgrad_gemm_accum_fp32(total_input, grad_output, main_grad) -> None:
    CALLS.append("weight gradient")
    main_grad.add_(grad_output.t().float() @ total_input.float())


MODULES = {
    "apex": {},
    "apex.normalization": {"FusedRMSNorm": None},
    "apex.normalization.fused_layer_norm": {"fused_rms_norm_affine": fused_rms_norm_affine},
    "apex.optimizers": {"FusedAdam": FusedAdam, "FusedSGD": FusedAdam},
    "amp_C": {},
    "fused_layer_norm_cuda": {},
    "fused_weight_gradient_mlp_cuda": {"wgrad_gemm_accum_fp32": wgrad_gemm_accum_fp32},
}


def install() -> None:
    """Put it in the place of the packages, before Megatron-Core is imported."""
    faking.install("apex", MODULES)
