"""The web page in a real browser: drop a picture, ask, see tiles with their tags, the answer as it comes, and where the time went.

NVLM_SCREENSHOT=FILE.png NVLM_SERVED=URL NVLM_PICTURE=FILE NVLM_QUESTION=TEXT keeps a picture of the page with a server that runs.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import chromium, tab
from serving_toys import LIMITS, Scripted, png, served, wait_until

from nvlm_train.serving.page import read_page

needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
MARKUP = "<img src=x onerror='document.title=1'> & <b>"


def test_the_page_loads_nothing_and_its_policy_knows_its_parts():
    page = read_page()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.html) and "@import" not in page.html
    assert page.html.count("<script>") == page.html.count("<style>") == 1
    assert "'unsafe" not in page.policy and page.policy.startswith("default-src 'none'")
    assert "innerHTML" not in page.html and "insertAdjacentHTML" not in page.html


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(a server, its page in a browser). The answer is markup, which must be shown as it is."""
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    generator = Scripted(lambda request: f"{len(request.prompt.tiles)} tiles. {MARKUP}", pause_s=0.005)
    with served(generator, LIMITS) as up, tab(tmp_path_factory.mktemp("browser")) as page:
        page.look(900, 900)
        page.open(f"{up.url}/")
        page.wait("document.getElementById('name').textContent === 'toy'")
        yield up, page


def ask(page, text):
    page.type("#question", text)
    page.press_enter()


def answers(page):
    return page.value("[...document.querySelectorAll('.answer .text')].map((each) => each.textContent)")


@needs_browser
def test_a_dropped_picture_is_asked_about(opened, tmp_path):
    up, page = opened
    (tmp_path / "wide.png").write_bytes(png(96, 64))
    up.generator.gate.clear()
    page.drop(tmp_path / "wide.png")
    page.wait("document.querySelectorAll('#attached img').length === 1")
    ask(page, "What <is> it?")
    page.wait("document.querySelectorAll('.seen figure').length === 7")
    assert not page.value("document.getElementById('stop').hidden"), "the answer has not begun, and can be stopped"
    up.generator.gate.set()
    page.wait("document.querySelector('.answer .text').textContent.length > 3")
    page.wait("document.querySelector('.answer .times .bar')")
    assert page.value("[...document.querySelectorAll('.seen figcaption')].map((each) => each.textContent)") == [
        *(f"<tile_{number}>" for number in range(1, 7)), "<tile_global_thumbnail>"]
    assert page.value("[...document.querySelectorAll('.seen img')].every((each) => each.naturalWidth === 32)")
    assert page.value("[...document.querySelectorAll('.grid figure')].map((each) => each.style.gridArea)")[4] == "2 / 2"
    page.wait("!document.querySelector('.running')")
    assert answers(page) == [f"7 tiles. {MARKUP}"]
    assert page.value("document.querySelector('.asked p').textContent") == "What <is> it?"
    legend = page.value("document.querySelector('.legend').textContent")
    assert all(words in legend for words in ("preparing pictures", "waiting", "reading the prompt", "writing"))
    assert page.value("document.querySelectorAll('.bar i').length") == 4
    assert "tokens/s" in page.value("document.querySelector('.sums').textContent")
    assert page.value("document.title") == "toy"


@needs_browser
def test_the_conversation_goes_on_and_can_be_begun_anew(opened):
    up, page = opened
    ask(page, "And now?")
    page.wait("document.querySelectorAll('.answer .times .bar').length === 2")
    assert len(up.generator.seen[-1].prompt.tiles) == 7, "the picture is shown again with the conversation so far"
    page.click("#fresh")
    assert answers(page) == []
    ask(page, "Something else")
    page.wait("document.querySelectorAll('.answer .times .bar').length === 1")
    assert len(up.generator.seen[-1].prompt.tiles) == 0
    assert answers(page) == [f"0 tiles. {MARKUP}"]


@needs_browser
def test_settings_reach_the_model_and_stop_ends_an_answer(opened):
    up, page = opened
    page.click("#settings-button")
    page.value("""(() => { for (const [id, value] of [["temperature", "0.7"], ["seed", "5"], ["longest", "40"]]) {
        const field = document.getElementById(id); field.value = value; field.dispatchEvent(new Event("input")); } })()""")
    up.generator.pause_s = 0.05
    ask(page, "Slowly")
    page.wait("[...document.querySelectorAll('.answer .text')].at(-1).textContent.length > 3")
    sampling = up.generator.seen[-1].sampling
    assert (sampling.temperature, sampling.seed, sampling.max_new_tokens) == (0.7, 5, 40)
    page.click("#stop")
    page.wait("document.querySelector('.cut')")
    wait_until(lambda: up.generator.seen[-1].id in up.generator.cancelled)
    up.generator.pause_s = 0.005
    assert 3 < len(answers(page)[-1]) < len(f"0 tiles. {MARKUP}")
    page.click("#settings-button")


@needs_browser
def test_what_is_refused_is_said_and_the_question_comes_back(opened):
    _, page = opened
    page.click("#fresh")
    ask(page, "word " * 500)
    page.wait("document.querySelector('.wrong')")
    assert "too long" in page.value("document.querySelector('.wrong').textContent")
    assert page.value("document.getElementById('question').value").startswith("word word")
    page.value("document.getElementById('question').value = ''")


@needs_browser
def test_it_fits_a_phone_and_has_a_dark_dress(opened):
    _, page = opened
    light = page.value("getComputedStyle(document.body).backgroundColor")
    page.look(360, 700, dark=True)
    assert page.value("document.documentElement.scrollWidth") <= 360
    assert page.value("getComputedStyle(document.body).backgroundColor") != light
    page.look(900, 900)


@needs_browser
def test_nothing_was_blocked_thrown_or_fetched_elsewhere(opened):
    """After all of the above. The refused question is an error in the log, by its status."""
    up, page = opened
    assert [error for error in page.errors if "400" not in error] == []
    assert sum(address.endswith("/v1/chat/completions") for address in page.asked) == 5
    assert all(address.startswith((up.url, "data:", "blob:", "about:")) for address in page.asked)


@needs_browser
def test_a_key_is_asked_for(tmp_path):
    with served(Scripted(lambda request: "yes"), replace(LIMITS, timeout_s=5), key="sesame-open") as up, tab(tmp_path) as page:
        page.open(f"{up.url}/")
        page.wait("!document.getElementById('key-label').hidden")
        page.type("#key", "sesame-open")
        page.value("document.getElementById('key').dispatchEvent(new Event('change'))")
        page.wait("document.getElementById('name').textContent === 'toy'")
        ask(page, "Hello?")
        page.wait("document.querySelector('.answer .times .bar')")
        assert answers(page) == ["yes"]


@needs_browser
@pytest.mark.skipif("NVLM_SCREENSHOT" not in os.environ, reason="NVLM_SCREENSHOT names no file to keep the page's picture in")
def test_screenshot(tmp_path):
    with tab(tmp_path) as page:
        page.look(900, 700)
        page.open(f"{os.environ['NVLM_SERVED']}/")
        page.wait("document.getElementById('name').textContent !== '…'")
        page.drop(Path(os.environ["NVLM_PICTURE"]).resolve())
        page.wait("document.querySelectorAll('#attached img').length === 1")
        ask(page, os.environ["NVLM_QUESTION"])
        page.wait("document.querySelector('.answer .times .bar') && !document.querySelector('.running')")
        page.value("new Promise((done) => setTimeout(done, 200))")
        Path(os.environ["NVLM_SCREENSHOT"]).write_bytes(page.screenshot())
