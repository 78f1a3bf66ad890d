"""One self-contained page about a run: `report.html`, openable anywhere, fetching nothing.

Read from the run directory: config.yaml, metrics.jsonl, eval.jsonl (validation rows, and score rows {"task", "scores":
{name: number}}, shares as floats of 0 to 1), a demo's summary.json, and every predictions.jsonl below it. All text is escaped.

A row of predictions.jsonl is one answered sample:
    task        the group it is shown in
    key         of the sample
    images      pictures as given: data addresses ("data:image/png;base64,…") or file names relative to the predictions file
    tiles       what the model saw, in its order: {"tag", "png"} with png like an image, and, where known,
                "image" (number of its image, default 0), "col" and "row" (its place in that image's grid, from 0;
                absent for the thumbnail)
    prompt, answer, truth
    correct     true, false, or null where the task has no single right answer
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from nvlm_train.training.logs import finite, write_atomically
from nvlm_train.training.report.charts import line_chart, share_bar
from nvlm_train.training.report.data import tell
from nvlm_train.training.report.gallery import galleries
from nvlm_train.training.report.templates import templates

REPORT, PREDICTIONS = "report.html", "predictions.jsonl"


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory from what is there by now; returns its path. Replaces an older one in one go."""
    run_dir = Path(run_dir)
    page = templates()
    page.globals.update(line_chart=line_chart, share_bar=share_bar)
    html = page.get_template("page.html.j2").render(story=tell(run_dir), galleries=galleries(run_dir))
    write_atomically(run_dir / REPORT, html.encode("utf-8"))
    return run_dir / REPORT


def write_predictions(path: str | Path, rows: Iterable[Mapping]) -> Path:
    """Write predictions.jsonl (the format above) for the report's gallery. path: the file, or a folder to hold it.

    Raises ValueError naming the row and the key if one of task, key, prompt, answer, truth, correct is missing.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        path = path / PREDICTIONS
    lines = []
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("task", "key", "prompt", "answer", "truth", "correct") if key not in row]
        if missing:
            raise ValueError(f"prediction {number} lacks {', '.join(missing)}")
        lines.append(json.dumps(finite(dict(row)), ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines).encode("utf-8"))
    return path
