"""What a run directory has to tell, gathered for the page: figures, charts and tables. Nothing here draws or writes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.config.dump import runs_from_file, to_yaml
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError
from nvlm_train.model.accounting import parameters
from nvlm_train.training.logs import EVAL, METRICS, read_rows
from nvlm_train.training.progress import duration, human
from nvlm_train.training.report.charts import Chart, Series, smooth
from nvlm_train.training.report.scores import Kept, ScoreTable, kept_text, score_charts, score_tables

STAGE_NAMES = {"pretrain": "Pretraining", "sft": "Supervised fine-tuning"}
PARTS = (("vit", "Vision encoder", 1), ("connector", "Connector", 2), ("llm", "Language model", 3),
         ("cross_attention", "Cross-attention", 4))


@dataclass(frozen=True)
class Figure:
    """A headline number with what it means, and a remark under it."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class StageView:
    """One stage of training, ready to draw. parts: (name, share of the useful operations, colour)."""

    name: str
    summary: str
    loss: Chart
    sources: Chart | None
    rate: Chart
    gradient: Chart
    speed: Chart
    use: Chart
    parts: Sequence[tuple[str, float, int]]
    scores: Sequence[Chart] = ()


@dataclass(frozen=True)
class Story:
    title: str
    subtitle: str
    written: str
    figures: Sequence[Figure]
    stages: Sequence[StageView]
    scores: Sequence[ScoreTable]
    kept: Sequence[Kept]
    profiles: Sequence[tuple[str, str]]     # (stage, address of the page that says where its time goes)
    config: str


def tell(run_dir: Path) -> Story:
    """Reads config.yaml, metrics.jsonl, eval.jsonl and summary.json; each may be missing or be cut short by a crash."""
    runs = _runs(run_dir)
    metrics, evaluations = read_rows(run_dir / METRICS), read_rows(run_dir / EVAL)
    validations = [row for row in evaluations if row.get("kind") == "validation"]
    names = list(dict.fromkeys(row["stage"] for row in metrics))
    stages = [_stage(name, _of(metrics, name), _of(validations, name), score_charts(evaluations, name)) for name in names]
    return Story(
        title=run_dir.resolve().name,
        subtitle=_subtitle(runs),
        written=time.strftime("%d %B %Y, %H:%M"),
        figures=_figures(metrics, validations, names[-1]) if metrics else [],
        stages=stages,
        scores=score_tables(evaluations, run_dir / "summary.json"),
        kept=kept_text(evaluations),
        profiles=[(title, f"profile/{name}/profile.html") for name, title in STAGE_NAMES.items()
                  if (run_dir / "profile" / name / "profile.html").is_file()],
        config=to_yaml(runs) if runs else "",
    )


def _runs(run_dir: Path) -> list[Run]:
    """The configuration, if there is one that this version can read: an old run must still be reported."""
    try:
        return runs_from_file(run_dir / "config.yaml")
    except ConfigError:
        return []


def _of(rows: Sequence[dict], stage: str) -> list[dict]:
    return [row for row in rows if row.get("stage") == stage]


def _subtitle(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    run = runs[-1]
    sizes = parameters(run.model)
    layout = run.layout
    crossing = f", {human(sizes.cross_attention)} cross-attention" if sizes.cross_attention else ""
    names = {"nvlm_d": "NVLM-D", "nvlm_x": "NVLM-X", "nvlm_h": "NVLM-H"}
    return (
        f"{names.get(run.model.architecture, run.model.architecture)} · recipe {run.recipe} · {human(sizes.total)} parameters "
        f"({human(sizes.vision)} vision encoder, {human(sizes.connector)} connector, {human(sizes.language)} language model"
        f"{crossing}) · tensor {layout.tensor} × pipeline {layout.pipeline}"
        + (f" × context {layout.context}" if layout.context > 1 else "")
    )


def _figures(metrics: Sequence[dict], validations: Sequence[dict], last: str) -> list[Figure]:
    rows = _of(metrics, last)
    tail = rows[-max(1, len(rows) // 20):]
    losses = _known(tail, "loss")
    first = next(iter(_known(rows, "loss")), None)
    seconds = _sum(metrics, "step_s")
    refused, skipped = int(_sum(metrics, "refused")), sum(bool(row.get("skipped")) for row in metrics)
    found = []
    if losses:
        stage = STAGE_NAMES.get(last, last).lower()
        found.append(Figure("Training loss", f"{statistics.mean(losses):.3f}", f"from {first:.3f}, {stage}"))
    known = [row for row in _of(validations, last) if row.get("loss") is not None]
    if known:
        best = min(known, key=lambda row: row["loss"])
        found.append(Figure("Validation loss", f"{known[-1]['loss']:.3f}", f"lowest {best['loss']:.3f} at step {best['step']:,}"))
    found.append(Figure("Steps", f"{len(metrics):,}", f"in {duration(seconds)} of training"))
    bad = f"{skipped:,} not finite step{'s' if skipped != 1 else ''}"
    found.append(Figure("Samples", human(_sum(metrics, "samples")), f"{refused:,} refused, {bad}"))
    found.append(Figure("Tokens", human(_sum(metrics, "tokens")), f"{human(_sum(metrics, 'tiles'))} image tiles"))
    if seconds:
        tokens, samples = _sum(metrics, "tokens"), _sum(metrics, "samples")
        found.append(Figure("Speed", f"{human(tokens / seconds)}/s", f"{samples / seconds:.3g} samples a second"))
        found.append(Figure("Rows filled", f"{tokens / max(1, _sum(metrics, 'padded_tokens')):.0%}",
                            f"{_sum(metrics, 'data_wait_s') / seconds:.1%} of the time waiting for data"))
    use = _known(rows, "mfu")
    achieved = [row["tflops"]["total"] for row in rows if row.get("tflops")]
    if use:
        found.append(Figure("MFU", f"{statistics.median(use):.1%}", f"{flops(statistics.median(achieved))} a device"))
    elif achieved:
        found.append(Figure("Useful work", flops(statistics.median(achieved)), "each device, padding not counted"))
    return found


def _stage(name: str, rows: Sequence[dict], validations: Sequence[dict], scores: Sequence[Chart]) -> StageView:
    loss = _points(rows, "loss")
    lines = [Series("each step", loss, 1, "faint"), Series("smoothed", smooth(loss), 1)]
    if validations:
        lines.append(Series("validation", _points(validations, "loss"), 2, "dots"))
    sources = _source_chart(rows)
    samples, seconds = _sum(rows, "samples"), _sum(rows, "step_s")
    known = [row for row in rows if row.get("tflops")]
    work = {part: sum(row["tflops"].get(part, 0) * row["step_s"] for row in known) for part, _, _ in PARTS}
    gradient = _points(rows, "grad_norm")
    return StageView(
        name=STAGE_NAMES.get(name, name),
        summary=" · ".join((f"{len(rows):,} steps", f"{human(samples)} samples", f"{human(_sum(rows, 'tokens'))} tokens",
                            duration(seconds))),
        loss=Chart("Loss", lines, _decimals, width=560 if sources else 1156),
        sources=sources,
        rate=Chart("Learning rate", [Series("learning rate", _points(rows, "lr"), 4)], lambda v: f"{v:.1e}" if v else "0",
                   zero=True),
        gradient=Chart("Gradient norm", [Series("each step", gradient, 5, "faint"), Series("smoothed", smooth(gradient), 5)],
                       zero=True),
        speed=Chart("Tokens a second", [
            Series("with padding", smooth(_points(rows, "padded_tokens_per_s")), 6),
            Series("real", smooth(_points(rows, "tokens_per_s")), 1),
        ], human, zero=True),
        use=Chart("Rows filled, and time spent waiting for data", [
            Series("filled", smooth(_points(rows, "fill")), 3),
            Series("waiting", smooth(_points(rows, _waiting)), 2),
        ], lambda v: f"{v:.0%}", zero=True, top=1.0),
        parts=[(title, work[part], colour) for part, title, colour in PARTS if work[part]],
        scores=scores,
    )


def _waiting(row: dict) -> float | None:
    return row["data_wait_s"] / row["step_s"] if row["step_s"] else None


def _source_chart(rows: Sequence[dict]) -> Chart | None:
    """A smoothed line a source; None with a single source, which the loss chart already shows."""
    sources = sorted({source for row in rows for source in row.get("source_losses", {})})
    if len(sources) < 2:
        return None
    lines = []
    for colour, source in enumerate(sources, start=1):
        points = [(row["step"], row.get("source_losses", {}).get(source)) for row in rows]
        lines.append(Series(source, smooth([point for point in points if point[1] is not None]), colour))
    return Chart("Loss by source, smoothed", lines, _decimals)


def _points(rows: Sequence[dict], key: str | Callable[[dict], float | None]) -> list[tuple[float, float | None]]:
    return [(row["step"], key(row) if callable(key) else row.get(key)) for row in rows]


def _known(rows: Sequence[dict], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _sum(rows: Sequence[dict], key: str) -> float:
    return sum(_known(rows, key))


def _decimals(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def flops(tera: float) -> str:
    """TFLOP/s in a readable unit."""
    return f"{tera:.3g} TFLOP/s" if tera >= 0.1 else f"{1000 * tera:.3g} GFLOP/s"
