"""benchmarks/train.py: the work is fixed, and every contender does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import floor
from benchmarks.contenders import ceiling, ours, real
from benchmarks.contenders.result import useful
from benchmarks.contenders.workloads import SHAPES, WORKLOADS, in_sequence, pieces
from benchmarks.train import table, table_of_real
from nvlm_train.config.fp8_layers import FC1, FC2, fp8_linears

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train.py"
FULL, TINY = SHAPES["1.5b"], SHAPES["tiny"]


@pytest.mark.parametrize("workload, expected", [("pretraining", (256, 256, 80_754, 13_202, 506)),
                                                ("finetuning", (96, 325, 106_279, 13_811, 2_394))])
def test_the_work_is_the_same_for_all_time(workload, expected):
    work = in_sequence(pieces(workload, FULL), FULL)
    assert (len(work), sum(one.tiles for one in work), sum(one.tokens for one in work), sum(one.supervised for one in work),
            max(one.tokens for one in work)) == expected


@pytest.mark.parametrize("workload", WORKLOADS)
def test_useful_operations_are_those_of_six_times_the_parameters_and_the_rest(workload):
    """By hand: two operations a weight and token forward; backward once more for gradients of inputs, in finetuning also of weights."""
    work, s = pieces(workload, FULL), FULL
    weights = s.layers * (s.width * (s.heads + 2 * s.kv_heads) * s.head_dim + s.heads * s.head_dim * s.width + 3 * s.width * s.ffn)
    tokens = [one.tokens for one in in_sequence(work, s)]
    language = 2 * weights * sum(tokens) + sum(2 * s.layers * s.heads * s.head_dim * t * t for t in tokens)
    language += 2 * s.width * s.vocab * sum(piece.supervised for piece in work)
    patches = (s.tile // s.patch) ** 2 + 1
    tile = s.vit_layers * (2 * patches * (4 * s.vit_width**2 + 2 * s.vit_width * s.vit_ffn) + 4 * patches**2 * s.vit_width)
    expected = language * (2 if workload == "pretraining" else 3) + tile * sum(piece.tiles for piece in work)
    assert useful(work, s, workload) == pytest.approx(expected, rel=0.01)      # the connector and the patch embedding are the rest


@pytest.mark.parametrize("architecture, shown, kept", [("d", 325, 0), ("x", 0, 325), ("h", 73, 252)])
def test_our_rows_hold_the_work(architecture, shown, kept):
    """Of 96 samples 73 have tiles. Nothing is lost in packing, and every supervised token keeps its weight."""
    work = pieces("finetuning", FULL)
    run = ours.run_of("finetuning", architecture, FULL, ["run.device=cpu"])
    small = [ours.encoded(number, piece, architecture, TINY, FULL.vocab) for number, piece in enumerate(work)]
    assert sum(int((one.tile_starts >= 0).sum()) for one in small) == shown
    assert sum(int((one.tile_starts < 0).sum()) for one in small) == kept
    rows = ours.rows_of(run, pieces("finetuning", TINY), architecture, TINY, cached=False, dtype=torch.float32)
    assert sum(float(row.loss_weights_T.sum()) for row in rows) == sum(piece.supervised for piece in pieces("finetuning", TINY))
    assert (run.model.language.layers, run.model.language.hidden, run.model.language.tie_embeddings) == (28, 1536, False)


@pytest.mark.parametrize("architecture, rows", [("d", 14), ("x", 3), ("h", 6)])
def test_rows_end_for_their_tokens_and_not_for_their_tiles(architecture, rows):
    """The fewest rows that could hold them: finetuning's tokens at full size are 13.0, 2.8 and 5.1 rows of 8,192. And what a plan of these
    rows says lies between the rate of a large product and half of it."""
    (found, cached) = floor.needs("finetuning", architecture, "1.5b")
    assert found["rows"] == rows and found["samples"] == 96
    assert cached["planned_s"] < found["planned_s"] and found["matmul_s"] < found["planned_s"] < 2 * found["matmul_s"]


def test_the_ceilings_attention_stays_within_samples():
    """A token's result does not change with another sample's tokens, nor with later ones of its own."""
    torch.manual_seed(0)
    model = ceiling.Everything(TINY)
    [row] = ceiling.rows_of(pieces("finetuning", TINY)[:3], TINY, torch.device("cpu"), torch.float32)[:1]

    def hidden() -> torch.Tensor:
        x = model.embedding(row.tokens)
        for layer in model.decoder:
            x = layer(x, row)
        return x

    before, at = hidden(), row.edges[1] + 3
    row.tokens[at] = (row.tokens[at] + 1) % TINY.vocab
    changed = (hidden() != before).any(-1).nonzero()[:, 0].tolist()
    assert changed == list(range(at, row.edges[2]))


def test_ratios_are_samples_a_second_of_the_same_run():
    base = {"model": "d", "cached": False, "tflops": 200.0, "matmul_tflops": 800.0, "peak_gib": 40.0, "slowest": 1.1, "seconds": 1.0}
    shown = table([{**base, "contender": name, "samples_s": rate} for name, rate in (("ours", 36.0), ("ceiling", 40.0), ("peer", 16.0))])
    assert "| ours (NVLM-D) | 36.0 | 0.90× | 2.25× | 200 | 25.0% | 40.0 | 1.10 |" in shown
    ours_, ceiling_ = ({**base, "contender": name, "samples_s": 36.0, "peak_gib": peak} for name, peak in (("ours", 50.0), ("ceiling", 36.0)))
    assert "| 50.0 (within 54.3) |" in table([{**ours_, "trained": int(1.67 * 2**30)}, ceiling_])     # 1.1 x (36 + 8 x 1.67)
    assert "| 50.0 (above 39.6) |" in table([{**ours_, "trained": 1}, ceiling_])
    assert "| – | – |" in table([{**base, "contender": "ours", "samples_s": 36.0}])


def test_fp8_is_compared_with_our_own_step_on_layers_where_it_pays():
    """8 of Qwen2-7B's 28 layers, and of all else as much: by weights 7/24, 8/28 and 43,520/152,064 are 2/7 to 2%."""
    shapes = SHAPES["7b"]
    run = ours.run_of("finetuning", "d", shapes, ["model.fp8=current"])
    assert (run.model.fp8, fp8_linears(run.model, 1)) == ("current", (FC1, FC2))
    assert (run.model.language.hidden, run.model.language.ffn, run.model.vision.hidden) == (3584, 18_944, 1024)
    for part, whole in ((shapes.layers, 28), (shapes.vit_layers, 24), (shapes.vocab, 152_064)):
        assert part / whole == pytest.approx(2 / 7, rel=0.025)
    assert in_sequence(pieces("finetuning", shapes), shapes) == in_sequence(pieces("finetuning", FULL), FULL)
    base = {"model": "d", "cached": False, "tflops": 400.0, "matmul_tflops": 800.0, "peak_gib": 60.0, "slowest": 1.1, "seconds": 1.0}
    shown = table([{**base, "contender": name, "samples_s": rate} for name, rate in (("ours", 20.0), ("fp8", 25.0))])
    assert "| fp8 (NVLM-D) | 25.0 |" in shown and shown.endswith("fp8: 1.25× ours")


def test_waits_and_spread_are_told_over_all_steps():
    """Nineteen steps of 2 s for 10 operations each, and one of 4 s of which 3 were waited."""
    plain = {"samples": 8, "flops": 10.0, "seconds": 2.0, "wait_s": 0.0}
    found = real.facts([*[plain] * 19, {**plain, "seconds": 4.0, "wait_s": 3.0}], [plain] * 20)
    assert found["samples_s"] == pytest.approx(160 / 42) and found["of_memory"] == pytest.approx(40 / 42)
    assert found["wait_ms"] == pytest.approx(150) and found["wait_share"] == pytest.approx(3 / 42) and found["tflops"] == pytest.approx(200 / 42e12)
    assert found["spread"] == pytest.approx(1 + 0.05)       # between the 19th of 20 values, 0.2 s, and the 20th, 0.4, a twentieth of the way
    assert found["spread_in_memory"] == 1
    assert real.p95([1.0] * 10 + [2.0] * 10) == 2.0


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.parametrize("words, contenders", [
    (("--workload", "finetuning", "--model", "d"), ("ours", "ceiling", "peer")), (("--workload", "pretraining", "--model", "x"), ("ours",)),
    (("--workload", "finetuning", "--model", "h", "model.recompute=full"), ("ours",)),
    (("--workload", "pretraining", "--model", "h", "layout.virtual=1"), ("ours",)),
    (("--workload", "finetuning", "--model", "x", "model.recompute=selective"), ("ours", "ceiling")),
    (("--workload", "pretraining", "--model", "d", "--cached", "--profile", "step"), ("ours", "ceiling"))])
def test_every_contender_runs(words, contenders, tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, str(SCRIPT), *words, "--size", "tiny", "--device", "cpu", "--rounds", "2", "--contenders", ",".join(contenders),
               "--json", "lines.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "lines.json").read_text())
    assert [one["contender"] for one in found] == list(contenders) and all(one["samples_s"] > 0 for one in found)
    if words[3] == "d" and "--cached" not in words:
        assert found[0]["last_loss"] < found[0]["first_loss"]
    if "--profile" in words:
        told = json.loads((tmp_path / "step" / "summary.json").read_text())
        assert told["components"]["mlp"]["flops_per_s"] > 0 and (tmp_path / "step" / "profile.html").is_file()


@pytest.mark.full
@pytest.mark.parametrize("words", [("--model", "d"), ("--model", "x"), ("--model", "h"), ("--model", "d", "--workload", "pretraining")])
def test_real_data_runs(words, tmp_path):
    """Every slot is a sample of the shards; both ways did the same work; the loader's waits are inside of the steps."""
    pytest.importorskip("skimage")
    command = [sys.executable, str(SCRIPT), *words, "--data", "real", "--threads", "2", "--steps", "4", "--rounds", "1", "--size", "tiny",
               "--device", "cpu", "--json", "lines.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "NVLM_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr[-3000:]
    [one] = json.loads((tmp_path / "lines.json").read_text())
    assert one["data"] == "real" and one["steps"] == 4 and one["refused"] == 0
    assert one["samples_s"] > 0 and one["samples_s_in_memory"] > 0 and 0 <= one["wait_share"] < 1 and one["spread"] >= 1
    assert table_of_real(one) in done.stdout


def test_real_data_is_for_ours_alone():
    done = subprocess.run([sys.executable, str(SCRIPT), "--data", "real", "--contenders", "peer"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--data real runs ours alone" in done.stderr
