"""The doctor: finds what is here, and says what is missing or merely named alike."""

import json
import sys
import types

import pytest

from nvlm_train import cli, doctor


def finding(name: str) -> doctor.Finding:
    return next(found for found in doctor.examine().findings if found.name == name)


def test_this_machine_is_usable(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["usable"] is True
    status = {found["name"]: found["status"] for found in told["findings"]}
    assert {"Python", "torch", "gloo (CPU)", "Megatron-Core", "Transformer Engine", "apex", "DeepSpeed", "CPU cores", "memory",
            "wandb", "TensorBoard"} <= set(status)
    assert status["torch"] == status["Megatron-Core"] == status["gloo (CPU)"] == "ok"
    assert set(told["paths"]) == {"device", "dtype", "norm", "linear layers", "attention", "cross-attention",
                                  "rotary positions", "SwiGLU", "weight gradients", "cross-entropy", "vision encoder",
                                  "optimizer"}


def test_text_report_fits_a_terminal():
    text = doctor.as_text(doctor.examine())
    assert text.endswith("Ready to train.")
    assert max(map(len, text.splitlines())) <= 130


def test_paths_agree_with_the_code_that_takes_them():
    import torch

    from nvlm_train.parallel.device import choose_dtype
    paths = doctor.examine().paths
    gpu = torch.cuda.is_available()
    dtype = choose_dtype("auto", torch.device("cuda" if gpu else "cpu"))
    assert paths["dtype"].startswith("bf16" if dtype == torch.bfloat16 else "fp32")
    assert ("CPU" in paths["device"]) == (not gpu)


def test_the_unrelated_apex_is_recognised(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.9.10.dev0" if name == "apex" else None)
    found = doctor._apex()
    assert found.status == "note" and "unrelated web toolkit" in found.text


def test_nvidias_apex_is_taken(monkeypatch):
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = object
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    assert doctor._apex().status == "ok"
    assert "torch's" in doctor.examine().paths["optimizer"]     # found, yet model.kernels decides


def test_a_package_that_does_not_load_is_told(monkeypatch):
    def load(name):
        assert name == "transformer_engine.pytorch"
        return OSError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "_load", load)
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.20.2")
    assert doctor._transformer_engine().text == "2.20.2 does not load (OSError: libcuda.so.1: cannot open shared object file)"


@pytest.mark.parametrize(("found", "status"), [("0.16.0", "problem"), ("0.16.1", "ok"), ("0.19.2", "ok"), ("0.20.0", "problem"),
                                               ("0.17.0rc1", "ok")])
def test_supported_range_of_megatron(found, status, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: found)
    assert doctor._megatron().status == status


def test_a_missing_necessity_makes_the_report_unusable(monkeypatch, capsys):
    real = doctor._load
    monkeypatch.setattr(doctor, "_load", lambda name: ImportError("no module") if name == "megatron.core" else real(name))
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "!!  Megatron-Core" in told and "Not ready" in told


def test_without_torch_the_report_still_comes(monkeypatch):
    real = doctor._load
    monkeypatch.setattr(doctor, "_load", lambda name: ImportError("no torch") if name.startswith("torch") else real(name))
    report = doctor.examine()
    assert not report.usable and report.paths == {}
    assert finding("torch").status == "problem"
