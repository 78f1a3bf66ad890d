"""Out and in again, in and out again: not a bit is lost either way."""

import pytest
import torch
from export_toys import CLIP, QWEN, saved, tiny_run
from safetensors.torch import load_file

from nvlm_train.engine.stored import StoredWeights
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.errors import CheckpointError, ConfigError
from nvlm_train.huggingface.export import Export, export
from nvlm_train.huggingface.import_plan import plan_import
from nvlm_train.huggingface.import_source import open_source
from nvlm_train.huggingface.importing import write_import

CASES = {
    "D whole, 6B style": ("whole", ("nvlm_d_tiny_6b",)),
    "D whole, tied, stripped": ("whole", ("nvlm_d_tiny", *QWEN, "model.language.tie_embeddings=true"), {"heads": "stripped"}),
    "X whole": ("whole", ("nvlm_x_tiny", "model.cross_attention.qk_norm=true", "model.cross_attention.ffn=64")),
    "H whole": ("whole", ("nvlm_h_tiny", *QWEN)),
    "language": ("language", ("nvlm_d_tiny", *QWEN)),
    "InternViT": ("vision", ("nvlm_d_tiny_6b",)),
    "CLIP": ("vision", ("nvlm_d_tiny", *CLIP)),
}


def imported(folder, to):
    # CLIP's own last layer is left out as a rule; this one has as many as it needs.
    layers = 4 if to.parent.name == "vision" else None
    write_import(plan_import(open_source(str(folder)), layers), to)
    return to


@pytest.mark.parametrize(("part", "words", "asked"), [(*case, {})[:3] for case in CASES.values()], ids=CASES)
def test_import_of_an_export_gives_the_checkpoint_back(tmp_path, part, words, asked):
    run = saved(tiny_run(*words), tmp_path / "run")
    first = export(Export(str(run), str(tmp_path / part / "first"), part=part, **asked))
    weights = imported(first, tmp_path / part / "weights")
    stored, held = StoredWeights(run), {}
    for file in weights.glob("*.safetensors"):
        held |= load_file(file)
    wanted = {"whole": ("vision", "connector", "language"), "language": ("language",), "vision": ("vision",)}[part]
    assert held.keys() == {name for name in stored.dtypes if name.partition(".")[0] in wanted}
    assert all(torch.equal(held[name], stored.tensor(name)) for name in held) and len(held) > 20

    again = export(Export(str(weights), str(tmp_path / part / "again"), part=part))
    before, after = load_file(first / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    changed = {path.name for path in first.iterdir() if path.read_bytes() != (again / path.name).read_bytes()}
    assert changed <= {"README.md"}


def test_a_part_of_imported_weights_is_asked_for_by_name(tmp_path):
    run = saved(tiny_run("nvlm_d_tiny"), tmp_path / "run")
    weights = imported(export(Export(str(run), str(tmp_path / "language"), part="language")), tmp_path / "weights")
    again = export(Export(str(weights), str(tmp_path / "language again")))      # the only part there is
    assert (again / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="part=whole needs connector and vision.* say part=language"):
        export(Export(str(weights), str(tmp_path / "whole"), part="whole"))


def test_damaged_weights_and_unimported_folders_are_refused(tmp_path):
    run = saved(tiny_run("nvlm_d_tiny"), tmp_path / "run")
    folder = export(Export(str(run), str(tmp_path / "language"), part="language"))
    with pytest.raises(CheckpointError, match="nvlm import from="):
        export(Export(str(folder), str(tmp_path / "x")))
    weights = imported(folder, tmp_path / "weights")
    [file] = weights.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="was damaged or replaced"):
        export(Export(str(weights), str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()


def test_the_licence_of_imported_weights_is_in_the_card(tmp_path):
    run = saved(tiny_run("nvlm_d_tiny"), tmp_path / "run")
    folder = export(Export(str(run), str(tmp_path / "first")))
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: unknown", "license: cc-by-nc-4.0"))
    weights = imported(folder, tmp_path / "weights")
    assert WeightsFolder.read(weights).source["licence"] == "cc-by-nc-4.0"
    card = (export(Export(str(weights), str(tmp_path / "again"))) / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "forbids commercial use" in card and "Not trained here" in card
    later = saved(tiny_run("nvlm_d_tiny", f"model.language.weights={weights}"), tmp_path / "later")
    card = (export(Export(str(later), str(tmp_path / "trained"))) / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "| language model | unknown | cc-by-nc-4.0 |" in card
