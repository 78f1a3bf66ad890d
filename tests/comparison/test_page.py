"""compare.html: whole, self-contained, and saying what compare.json says."""

import json
import re
from html.parser import HTMLParser

import pytest
from comparison_fakes import SHORT, TASK, comparison, jobs, leave_run

from nvlm_train.comparison.designs import designs_of
from nvlm_train.comparison.figures import interval_note, score_rows
from nvlm_train.comparison.measure import measure
from nvlm_train.comparison.page import write_page
from nvlm_train.comparison.results import Outcome, results


class Outline(HTMLParser):
    """What the page loads, links to, and says."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.links, self.texts, self.charts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if "src" in named or tag == "link":
            self.loaded.append(named)
        if "data-chart" in named:
            self.charts.append(json.loads(named["data-chart"]))
        if tag == "a":
            self.links.append(named["href"])

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def page(tmp_path):
    """(the page's outline, its source, the results) of two designs under two seeds."""
    asked = comparison(tmp_path, seeds=(1, 2))
    outcomes = []
    for job in jobs(asked):
        leave_run(job)
        outcomes.append(Outcome(job, measure(job.folder), {"shapes": TASK, "text": {**TASK, "blanked": None}}))
    found = results(designs_of(asked, SHORT), outcomes, 1)
    source = write_page(tmp_path, found, outcomes).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(source)
    return outline, source, found


def test_it_loads_nothing_and_links_each_runs_report(page):
    outline, source, _ = page
    assert outline.loaded == [] and set(re.findall(r"https?://[^/]+", source)) == {"http://www.w3.org"}
    assert outline.links == [f"{design}/seed-{seed}/report.html" for design in ("nvlm_d_tiny", "nvlm_x_tiny") for seed in (1, 2)]


def test_scores_figures_and_differing_settings_are_there(page):
    outline, source, _ = page
    words = set(outline.texts)
    assert {"shapes", "75.0% (30.1–95.4)", "Wilson interval over the questions of a task", "pictures blanked"} <= words
    assert {"samples a second", "memory tokens a sample", "useful GFLOP a sample", "peak GiB of a process"} <= words
    assert {"model.architecture", "train.weight_decay", "data.max_tiles"} - words == {"data.max_tiles"}     # differs in H alone
    assert 'style="left:30.06%;width:65.38%"' in source     # the interval's whisker
    assert source.count('class="mark"></i>') == 1 and source.count('class="mark" style="left:50.00%"') == 2
    assert "Failed" not in words


def test_the_curves_of_all_designs_are_in_one_chart_a_stage(page):
    charts = page[0].charts
    assert [[line["name"] for line in chart] for chart in charts] == [["nvlm_d_tiny", "nvlm_x_tiny"]] * 2
    assert [point[0] for point in charts[0][0]["points"]] == [1, 2, 3, 4]


def test_names_and_failures_are_escaped(tmp_path):
    asked = comparison(tmp_path)
    outcomes = [Outcome(job, None, None, "<script>alert(1)</script>") for job in jobs(asked)]
    found = results(designs_of(asked, SHORT), outcomes, 1)
    source = write_page(tmp_path, found, outcomes).read_text(encoding="utf-8")
    assert "<script>alert" not in source and "&lt;script&gt;alert(1)" in source
    assert "Nothing to draw yet" in source and found["designs"]["nvlm_d_tiny"]["stages"]["sft"]["training_loss"] is None


def test_rows_of_scores_and_how_their_intervals_came_about(page):
    found = page[2]
    told = {row.label: row.values for row in score_rows(found)}
    assert told["shapes, pictures blanked"] == ["50.0%", "50.0%"] and told["shapes, commonest answer"] == ["25.0%"] * 2
    assert "text, pictures blanked" not in told and told["text"] == ["75.0% (30.1–95.4)"] * 2
    assert interval_note(found) == "Wilson interval over the questions of a task"
    assert interval_note({**found, "designs": {}}) == ""
