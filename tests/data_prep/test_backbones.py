"""The demo's shipped backbones: they fit the demo's recipe, and what is exported can be loaded again."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_prep import backbones
from nvlm_train.config.compose import compose
from nvlm_train.model.weights import component_tensors
from nvlm_train.training.stages import build_engine


def tensors(component, **overrides):
    """A component of a fresh engine of the demo's recipe."""
    [run] = compose(["recipe=nvlm_d_demo", "stage=sft", "layout.pipeline=1", "run.device=cpu",
                     *(f"{key.replace('__', '.')}={value}" for key, value in overrides.items())])
    engine = build_engine(run)
    found = component_tensors(engine.stages(), component)
    engine.close()
    return found


@pytest.mark.parametrize("component, shipped", [("language", backbones.LANGUAGE), ("vision", backbones.VISION)])
def test_shipped_weights_are_small_and_load_into_the_recipe(component, shipped):
    assert shipped.stat().st_size < 2_000_000
    loaded = tensors(component, model__vision__weights=backbones.VISION, model__language__weights=backbones.LANGUAGE)
    with safe_open(shipped, "pt") as file:
        assert set(file.keys()) == set(loaded)
        for name, tensor in loaded.items():
            assert torch.equal(tensor, file.get_tensor(name).float()), name
            assert tensor.isfinite().all()


@pytest.mark.parametrize("component", ["language", "vision", "connector"])
def test_every_exported_tensor_is_read_back(component, tmp_path):
    fresh = {"model__vision__weights": "null", "model__language__weights": "null"}
    made = tensors(component, train__seed=1, **fresh)
    assert len(made) > 3 and sum(bool(tensor.any()) for tensor in made.values()) > len(made) // 2
    if component == "connector":
        return
    save_file(made, tmp_path / "part.safetensors")
    again = tensors(component, train__seed=2, **{**fresh, f"model__{component}__weights": tmp_path / "part.safetensors"})
    assert set(again) == set(made)
    assert all(torch.equal(again[name], made[name]) for name in made)
