import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from training_fakes import MODEL, FakeEngine, make_batches, make_run, with_run

from nvlm_train.config.dump import to_yaml
from nvlm_train.config.schema import CrossAttention
from nvlm_train.training.hooks import Validation
from nvlm_train.training.logs import METRICS, Logs, read_rows
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder
from nvlm_train.training.report import write_predictions, write_report
from nvlm_train.training.report.charts import Chart, Series, line_chart, smooth, thin, ticks
from nvlm_train.training.report.gallery import PER_TASK, embedded

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def picture(colour="red", size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def data_address(**kind):
    return "data:image/png;base64," + base64.b64encode(picture(**kind)).decode()


def prediction(**changes):
    return {"task": "vqa", "key": "k1", "prompt": "What?", "answer": "red", "truth": "red", "correct": True, **changes}


class Page(HTMLParser):
    """Tags, their attributes and the visible text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def badges(page):
    return [attributes["class"] for attributes in page.named("span") if "badge" in attributes.get("class", "")]


@pytest.fixture
def trained(tmp_path):
    """The run directory of two stages of four steps, one of them not finite, with validation."""
    runs = [make_run(tmp_path, stage=stage, steps=4) for stage in ("pretrain", "sft")]
    (tmp_path / "config.yaml").write_text(to_yaml(runs))
    for run in runs:
        engine = FakeEngine(losses=[4.0, float("nan"), 2.0, 1.0])
        logs = Logs(tmp_path)
        recorder = Recorder(run, engine, [logs], [], lambda step: True, ["here"], None)
        train(run, engine, make_batches(run), [recorder, Validation(with_run(run, eval_every=2), engine, [], [logs])])
    return tmp_path


def read(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


def test_it_holds_figures_curves_of_both_stages_and_the_configuration(trained):
    page = Page(read(trained))
    text = " ".join(" ".join(page.text).split())
    for expected in ("Pretraining", "Supervised fine-tuning", "Training loss 1.000 from 4.000, supervised fine-tuning",
                     "Validation loss 1.000", "Steps 8", "2 not finite steps", "Rows filled 62%", "NVLM-D · recipe test"):
        assert expected in text, expected
    charts = {chart["aria-label"]: json.loads(chart["data-chart"]) for chart in page.named("svg")}
    assert set(charts) == {"Loss", "Learning rate", "Gradient norm", "Tokens a second",
                           "Rows filled, and time spent waiting for data"}
    validation = next(series for series in charts["Loss"] if series["name"] == "validation")
    assert [(x, shown) for x, _, _, shown in validation["points"]] == [(2, "1.00"), (4, "1.00")]
    assert "global_batch: 2" in "".join(page.text)


def test_cross_attention_is_told_where_there_is_some(tmp_path, trained):
    assert "Cross-attention" not in read(trained)
    run = make_run(tmp_path, steps=1, model=replace(MODEL, architecture="nvlm_x", cross_attention=CrossAttention(every=2)))
    (tmp_path / "config.yaml").write_text(to_yaml([run]))
    work = {"vit": 3.0, "connector": 0.0, "llm": 6.0, "cross_attention": 1.0, "total": 10.0}
    (tmp_path / METRICS).write_text(json.dumps(read_rows(tmp_path / METRICS)[-1] | {"tflops": work}) + "\n")
    text = " ".join(" ".join(Page(read(tmp_path)).text).split())
    assert "NVLM-X" in text and "785 cross-attention" in text, "one layer: 16 x (16 + 8 + 8 + 16), a norm of 16 and a gate"
    assert "Cross-attention 10.0%" in text and "Language model 60.0%" in text


def test_it_fetches_nothing_and_runs_nothing_foreign(trained):
    html = read(trained)
    page = Page(html)
    assert not page.named("link") and not page.named("iframe")
    assert all(image["src"].startswith("data:image/") for image in page.named("img"))
    assert all("src" not in script for script in page.named("script"))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)


def test_text_from_data_cannot_become_markup(trained):
    write_predictions(trained / "eval", [prediction(
        task=f"t{ATTACK}", key=ATTACK, prompt=ATTACK, answer=ATTACK, truth=f"it's {ATTACK}", correct=False,
        images=[f"data:image/png;base64,{ATTACK}"], tiles=[{"tag": ATTACK, "png": data_address()}])])
    (trained / "eval.jsonl").write_text(json.dumps({"task": ATTACK, "scores": {ATTACK: 0.5}}) + "\n")
    html = read(trained)
    page = Page(html)
    assert "<script>alert" not in html and len(page.named("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "".join(page.text).count(ATTACK) >= 6, "the reader still sees what was written"


def test_sources_get_a_chart_once_there_are_several(trained):
    with open(trained / "metrics.jsonl", "a") as log:
        row = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
        log.write(json.dumps({**row, "step": 5, "source_losses": {"a": 1.0, "web & co": 2.0}}) + "\n")
    charts = [chart for chart in Page(read(trained)).named("svg") if chart["aria-label"] == "Loss by source, smoothed"]
    assert [series["name"] for series in json.loads(charts[0]["data-chart"])] == ["a", "web & co"]


def test_scores_are_tabled_from_evaluations_and_a_summary(trained):
    with open(trained / "eval.jsonl", "a") as log:
        log.write(json.dumps({"task": "chart_qa", "scores": {"exact": 0.25}}) + "\n")
        log.write(json.dumps({"task": "chart_qa", "scores": {"exact": 0.5, "questions": 1}}) + "\n")
    (trained / "summary.json").write_text(json.dumps(
        {"seconds": 3.5, "easy_vqa": {"with_images": 0.934, "blanked": 0.5}, "text_only": {"before": 0.7, "note": "none"}}))
    text = " ".join(" ".join(Page(read(trained)).text).split())
    assert "Task exact questions chart_qa 50.0 % 1 " in text and "25.0 %" not in text, "the last score of a task counts"
    assert "Task with images blanked easy_vqa 93.4 % 50.0 %" in text
    assert "Task before text_only 70.0 %" in text


def test_the_gallery_shows_pictures_tiles_in_their_grid_and_verdicts(trained):
    (trained / "eval").mkdir()
    (trained / "eval" / "p.png").write_bytes(picture("blue"))
    tiles = [{"tag": "<tile_1>", "png": data_address(), "col": 0, "row": 0},
             {"tag": "<tile_2>", "png": data_address(), "col": 1, "row": 0},
             {"tag": "<tile_global_thumbnail>", "png": data_address()}]
    write_predictions(trained / "eval", [
        prediction(images=["p.png"], tiles=tiles), prediction(key="k2", answer="blue", correct=False),
        prediction(key="k3", correct=None)])
    html = read(trained)
    page = Page(html)
    assert len(page.named("img")) == 4
    assert "grid-column:2;grid-row:1" in html
    text = " ".join(" ".join(page.text).split())
    assert "vqa 3 examples, wrong and right ones in turn whatever their share" in text
    assert badges(page) == ["badge right", "badge wrong"]
    assert "<tile_global_thumbnail>" in page.text


def test_a_long_gallery_is_cut_and_mixes_wrong_with_right(trained):
    rows = [prediction(key=f"right{i}") for i in range(40)] + [prediction(key=f"wrong{i}", correct=False) for i in range(3)]
    write_predictions(trained, rows)
    page = Page(read(trained))
    assert badges(page) == ["badge right", "badge wrong"] * 3 + ["badge right"] * (PER_TASK - 6)
    assert f"{PER_TASK} examples, wrong and right ones in turn whatever their share" in page.text


def test_pictures_outside_the_run_directory_are_not_pulled_in(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (tmp_path / "private.png").write_bytes(picture())
    (run_dir / "link.png").symlink_to(tmp_path / "private.png")
    (run_dir / "own.png").write_bytes(picture())
    (run_dir / "notes.png").write_text("not a picture")
    assert embedded("own.png", run_dir, run_dir) == data_address()
    for name in ("../private.png", str(tmp_path / "private.png"), "link.png", "notes.png", "missing.png", "",
                 "data:text/html;base64,AAAA", "https://example.org/x.png", None):
        assert embedded(name, run_dir, run_dir) is None, name


def test_an_empty_or_foreign_directory_still_gives_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("stage: sft\nmodle: of another time\n")
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft", "st')
    assert "No training step is finished yet." in read(tmp_path)


def test_predictions_lacking_something_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prediction 2 lacks truth"):
        write_predictions(tmp_path, [prediction(), {key: value for key, value in prediction().items() if key != "truth"}])


def test_smoothing_keeps_a_constant_passes_over_gaps_and_does_not_lag():
    assert smooth([(x, 2.0) for x in range(200)]) == [(x, pytest.approx(2.0)) for x in range(200)]
    assert smooth([(0, 1.0), (1, None), (2, 3.0)]) == [(0, 1.0), (1, None), (2, 3.0)]
    falling = smooth([(x, 1000.0 - x) for x in range(1000)])
    assert falling[500][1] == pytest.approx(500.0)


def test_thinning_keeps_spikes_and_both_ends():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[4321] = (4321.0, 99.0)
    kept = thin(points)
    assert len(kept) <= 420 and max(kept, key=lambda p: p[1]) == (4321.0, 99.0)
    assert kept[0][0] == 0.0 and kept[-1][0] == 9999.0


@pytest.mark.parametrize("low, high, expected", [
    (0, 1, [0, 0.25, 0.5, 0.75, 1.0]), (0.3, 4.4, [0, 2.0, 4.0, 6.0]), (0, 1e-3, [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3]),
])
def test_ticks_are_round_and_cover(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_of_nothing_and_of_one_point_is_drawn_too():
    assert "Nothing to draw yet" in line_chart(Chart("Loss", [Series("a", [(1, None)])]))
    assert "<circle" in line_chart(Chart("Loss", [Series("a", [(1, 5.0)])]))
