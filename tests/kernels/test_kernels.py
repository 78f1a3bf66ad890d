"""What is chosen, what is refused and what is told: pure functions of what a machine has."""

import sys
import types
from dataclasses import replace

import pytest
import torch

from nvlm_train import kernels
from nvlm_train.config.schema import Model
from nvlm_train.engine import kernel_choice
from nvlm_train.errors import ConfigError
from nvlm_train.kernels import Found, decide, look

ALL = Found("cuda", (9, 0), varlen=True, te=None, apex=None, apex_wgrad=None, product=None, compiler=None)
CPU = Found("cpu")


def plan(found=ALL, dtype="bf16", **model):
    return decide(Model(**model), dtype, found)


def test_auto_is_torch_whatever_is_installed():
    assert plan(kernels="auto") == plan(kernels="torch")
    chosen = plan(kernels="auto")
    assert (chosen.norm, chosen.linear, chosen.adam, chosen.wgrad) == ("torch", "megatron", "torch", "product")
    assert (chosen.attention, chosen.cross_attention) == ("varlen", "varlen")


@pytest.mark.parametrize(("found", "dtype", "core", "cross"), [
    (CPU, "fp32", "segments", "segments"), (CPU, "bf16", "segments", "segments"),
    (ALL, "fp32", "mask", "segments"), (replace(ALL, varlen=False), "bf16", "mask", "segments")])
def test_attention_without_flash_kernels(found, dtype, core, cross):
    chosen = plan(found, dtype)
    assert (chosen.attention, chosen.cross_attention) == (core, cross)


def test_transformer_engine_takes_the_decoder():
    chosen = plan(kernels="te")
    assert {chosen.norm, chosen.linear, chosen.attention, chosen.rope, chosen.adam, chosen.wgrad} == {"te"}
    assert chosen.cross_attention == "varlen" and chosen.fp8 == "none"


def test_element_wise_parts_are_compiled_for_a_gpu_unless_told_otherwise():
    assert (plan().elementwise, plan().rope) == ("compiled", "compiled") and plan(kernels="te").elementwise == "compiled"
    assert (plan(compile="off").elementwise, plan(compile="off").rope) == ("torch", "megatron")
    assert plan(kernels="te").rope == "te"
    assert "not compiled: model.compile=off" in dict(plan(compile="off").parts())["SwiGLU"]
    compiler = replace(CPU, compiler=None)
    assert plan(compiler, "fp32").elementwise == "torch" and plan(compiler, "fp32", compile="on").elementwise == "compiled"


def test_what_does_not_work_here_is_done_without_and_told(monkeypatch, caplog):
    found = replace(ALL, compiler="TritonMissing: no Triton", product="RuntimeError: self dtype")
    chosen = plan(found)
    assert (chosen.elementwise, chosen.rope, chosen.wgrad) == ("torch", "megatron", "torch")
    assert "torch's compiler does not work here (TritonMissing: no Triton)" in dict(chosen.parts())["rotary positions"]
    assert "cannot add a product up in fp32" in dict(chosen.parts())["weight gradients"]
    monkeypatch.setattr(kernel_choice, "plan_for", lambda model, device, dtype: chosen)
    with caplog.at_level("WARNING"):
        kernel_choice.choose_kernels(Alone(), Model(), torch.device("cuda"))
    assert len(caplog.messages) == 2 and "no Triton" in caplog.messages[0] and "self dtype" in caplog.messages[1]
    with pytest.raises(ConfigError, match="model.compile=on, but torch's compiler does not work here, TritonMissing: no Triton"):
        plan(found, compile="on")


def test_an_engine_without_fp32_buffers_gets_no_product_that_adds_to_them(monkeypatch):
    monkeypatch.setattr(kernel_choice, "plan_for", lambda model, device, dtype: decide(model, dtype, ALL))
    assert kernel_choice.choose_kernels(Alone(), Model(), torch.device("cuda"), sums_up=False).wgrad == "torch"


@pytest.mark.slow
def test_the_compiler_is_tried_and_why_it_fails_is_told(monkeypatch):
    assert look("cpu", "compiled").compiler is None
    monkeypatch.setattr(torch, "compile", lambda function: 1 / 0)
    assert look("cpu", "compiled").compiler == "ZeroDivisionError: division by zero"
    assert look("cpu", "product").product is None       # on the CPU it is fp32 that is added


def test_apex_takes_norm_adam_and_weight_gradients():
    chosen = plan(kernels="apex")
    assert {chosen.norm, chosen.adam, chosen.wgrad} == {"apex"} and chosen.linear == "megatron" and chosen.attention == "varlen"
    without = plan(replace(ALL, apex_wgrad="not installed"), kernels="apex")
    assert without.wgrad == "torch"
    assert "apex's own kernel is missing (not installed)" in dict(without.parts())["weight gradients"]


NO_TE, NO_APEX = replace(ALL, te="not installed"), replace(ALL, apex="0.9.10.dev0 has no apex.optimizers.FusedAdam")


@pytest.mark.parametrize(("found", "dtype", "model", "told"), [
    (CPU, "fp32", {"kernels": "te"}, "model.kernels=te needs an NVIDIA GPU and this run is on the CPU: use model.kernels=torch"),
    (CPU, "bf16", {"kernels": "te", "fp8": "current"}, "this run is on the CPU: use model.kernels=torch model.fp8=none"),
    (CPU, "fp32", {"kernels": "apex"}, "model.kernels=apex needs an NVIDIA GPU"),
    (NO_TE, "bf16", {"kernels": "te"}, "not installed; pip install --no-build-isolation 'transformer-engine[pytorch]'"),
    (NO_TE, "bf16", {"kernels": "te"}, "or use model.kernels=torch"),
    (NO_APEX, "bf16", {"kernels": "apex"}, "0.9.10.dev0 has no apex.optimizers.FusedAdam; build NVIDIA's from its repository"),
    (ALL, "fp32", {"kernels": "te"}, "half precision only; use model.dtype=bf16, or model.kernels=torch"),
    (ALL, "bf16", {"kernels": "torch", "fp8": "delayed"}, "needs model.kernels=te and model.dtype=bf16, here they come to torch and bf16"),
    (ALL, "bf16", {"kernels": "apex", "fp8": "current"}, "needs model.kernels=torch or te and model.dtype=bf16"),
    (ALL, "fp32", {"fp8": "current"}, "model.dtype=bf16, here they come to torch and fp32: set them, or use model.fp8=none"),
    (CPU, "bf16", {"fp8": "current"}, "only GPUs compute in fp8 and this run is on the CPU; use model.fp8=none"),
    (replace(ALL, capability=(8, 0)), "bf16", {"fp8": "current"}, "8.9 or higher, this GPU has 8.0: use model.fp8=none"),
    (replace(ALL, capability=(8, 6)), "bf16", {"kernels": "te", "fp8": "current"},
     "model.fp8=current needs compute capability 8.9 or higher, this GPU has 8.6: use model.fp8=none"),
    (ALL, "bf16", {"kernels": "te", "fp8": "mxfp8"},
     "10.0 or higher, below 12.0, this GPU has 9.0: use model.fp8=none or current"),
    (replace(ALL, capability=(12, 0)), "bf16", {"kernels": "te", "fp8": "mxfp8"}, "this GPU has 12.0"),
])
def test_what_a_machine_cannot_do_is_refused_in_one_line(found, dtype, model, told):
    with pytest.raises(ConfigError) as caught:
        plan(found, dtype, **model)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("capability", "recipe"), [((8, 9), "current"), ((9, 0), "delayed"), ((10, 0), "mxfp8"),
                                                     ((12, 0), "current")])
def test_fp8_where_the_gpu_has_it(capability, recipe):
    chosen = plan(replace(ALL, capability=capability), kernels="te", fp8=recipe)
    assert chosen.fp8 == recipe and f"fp8 ({recipe} scaling)" in dict(chosen.parts())["linear layers"]
    assert chosen.line().endswith(f"fp8 {recipe}")


def test_fp8_by_torch_leaves_the_other_parts_as_they_are():
    chosen = plan(fp8="current")
    assert chosen == replace(plan(), linear="fp8", fp8="current", notes=chosen.notes, lacking=chosen.lacking)
    told = dict(chosen.parts())["linear layers"]
    assert told == "Megatron-Core's, products by torch, fp8 (current scaling); model.kernels=te takes Transformer Engine's"


def test_fp8_without_a_compiler_is_told():
    told = [plan(replace(ALL, compiler=None), fp8="current"), plan(replace(ALL, compiler=None), fp8="current", compile="off")]
    assert [any("fp8's casts are not compiled" in text for text in one.lacking) for one in told] == [False, True]


def test_fp8_is_pointed_out_where_the_gpu_has_it():
    told = [dict(plan(replace(ALL, capability=capability)).parts())["linear layers"] for capability in ((9, 0), (8, 6))]
    assert ["model.fp8=current computes large ones in fp8" in text for text in told] == [True, False]


def test_every_part_is_told_with_the_reason_why_not_the_faster():
    parts = [dict(plan(kernels=name).parts()) for name in ("torch", "te", "apex")]
    assert len({frozenset(told) for told in parts}) == 1 and len(parts[0]) == 10
    assert parts[0]["norm"] == "torch's RMSNorm; model.kernels=te takes Transformer Engine's"
    assert parts[1]["optimizer"].endswith("Transformer Engine's FusedAdam")
    assert all("LayerScale" in told["vision encoder"] for told in parts)
    assert not any(";" in text for text in dict(plan(CPU, "fp32").parts()).values())


def _module(name, **names):
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


def test_look_names_what_is_missing(monkeypatch):
    """The package called apex on PyPI imports, and has nothing of NVIDIA's; a Python-only build lacks the kernels."""
    for name in ("apex", "apex.optimizers", "apex.normalization", "amp_C", "fused_layer_norm_cuda",
                 "fused_weight_gradient_mlp_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(kernels, "installed", lambda name: "0.9.10.dev0")
    assert look("cpu", "apex").apex.startswith("0.9.10.dev0 does not load apex.optimizers (ModuleNotFoundError")
    monkeypatch.setitem(sys.modules, "apex", _module("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", _module("apex.optimizers", FusedAdam=object))
    monkeypatch.setitem(sys.modules, "apex.normalization", _module("apex.normalization", FusedRMSNorm=object))
    assert "does not load amp_C" in look("cpu", "apex").apex
    monkeypatch.setitem(sys.modules, "amp_C", _module("amp_C"))
    monkeypatch.setitem(sys.modules, "fused_layer_norm_cuda", _module("fused_layer_norm_cuda"))
    found = look("cpu", "apex")
    assert found.apex is None and "fused_weight_gradient_mlp_cuda" in found.apex_wgrad


class Alone:
    """One rank of a job of one. What `choose_kernels` needs of an engine."""

    is_main, dtype, rank = True, torch.bfloat16, 0

    def gather_objects(self, mine):
        return [mine]


class Pair:
    """Two ranks of a job, the second with an outcome of its own. What `choose_kernels` needs of an engine."""

    is_main, dtype = True, torch.bfloat16

    def __init__(self, other: Found):
        self.other = other

    def gather_objects(self, mine):
        try:
            return [mine, replace(mine, value=decide(Model(kernels="te"), "bf16", self.other), main=False)]
        except ConfigError as error:
            return [mine, replace(mine, value=None, problem=str(error), asked=True, main=False)]


@pytest.mark.parametrize(("other", "told"), [
    (NO_TE, "choosing kernels failed on rank 1: model.kernels=te: Transformer Engine is not usable here, not installed"),
    (replace(ALL, varlen=False), "would not compute alike. Rank 0: norm te, linear te, attention te, cross-attention varlen")])
def test_all_machines_of_a_job_compute_alike(monkeypatch, other, told):
    monkeypatch.setattr(kernel_choice, "plan_for", lambda model, device, dtype: decide(model, dtype, ALL))
    with pytest.raises(ConfigError) as caught:
        kernel_choice.choose_kernels(Pair(other), Model(kernels="te"), torch.device("cuda"))
    assert told in str(caught.value)


def test_the_plan_is_told_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(kernel_choice, "plan_for", lambda model, device, dtype: decide(model, dtype, ALL))
    with caplog.at_level("INFO"):
        assert kernel_choice.choose_kernels(Pair(ALL), Model(kernels="te"), torch.device("cuda")).linear == "te"
    (line,) = caplog.messages
    assert line.startswith("kernels: norm te, linear te, attention te")


def test_nothing_is_imported_that_was_not_asked_for(monkeypatch):
    asked = []
    real = kernels.load
    monkeypatch.setattr(kernels, "load", lambda name: asked.append(name) or real(name))
    assert look("cpu").te == "not looked for"
    assert not any("apex" in name or "transformer" in name for name in asked)
