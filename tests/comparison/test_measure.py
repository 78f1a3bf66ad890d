import pytest
from comparison_fakes import comparison, jobs, leave_run, metrics_row

from nvlm_train.comparison.measure import StageFigures, measure, stage_figures


def test_figures_of_a_stage_by_hand():
    """Twenty steps: the first two are left out of the speed, the last one is the final loss."""
    rows = [metrics_row("sft", step, samples_per_s=100.0 if step <= 2 else float(step), samples=2 - (step == 5), refused=step == 5)
            for step in range(1, 21)]
    assert stage_figures(rows, 0.9) == StageFigures(
        training_loss=4.0 / 20, validation_loss=0.9, samples_per_s=11.5, tokens_per_sample=pytest.approx(20 * 30 / 39),
        memory_tokens_per_sample=pytest.approx(20 * 8 / 39), gflop_per_sample=pytest.approx(20 * 0.003 * 0.5 * 2 * 1000 / 39),
        refused=1)


def test_figures_that_the_logs_do_not_tell_are_none():
    old = {key: value for key, value in metrics_row("sft", 1).items() if key not in ("devices", "memory_tokens", "peak_memory_gib")}
    found = stage_figures([old, {**old, "step": 2, "loss": None}], None)
    assert (found.gflop_per_sample, found.memory_tokens_per_sample, found.validation_loss) == (None, None, None)
    assert found.training_loss is None and found.tokens_per_sample == 15


def test_a_run_directory_is_read_stage_by_stage(tmp_path):
    [job, _] = jobs(comparison(tmp_path))
    leave_run(job)
    found = measure(job.folder)
    assert list(found.stages) == ["pretrain", "sft"] and found.peak_memory_gib == 1.5
    assert found.stages["sft"].validation_loss == 1.5 and found.stages["pretrain"].training_loss == 1.0
    assert measure(tmp_path / "nothing").stages == {}
