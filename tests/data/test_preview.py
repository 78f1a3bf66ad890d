import pytest
from data_toys import conversation, encoded, make_samples, picture

from data_prep.__main__ import main as data_prep
from data_prep.preview_page import tokens_of
from data_prep.shards import write_shards
from nvlm_train.contracts import Sample


def test_preview_shows_what_is_learned_and_what_is_left_out(tmp_path, capsys):
    write_shards(tmp_path / "shown", [
        Sample("wide", "s", (encoded(picture(900, 450)),), conversation("What is it?", "A gradient.")),
        Sample("wrong", "s", (), conversation("<image>?", "No."))])
    assert data_prep(["preview", str(tmp_path / "shown"), "--count", "9"]) == 0
    shown = capsys.readouterr().out
    assert "learned  'A gradient.<|im_end|>\\n'" in shown and "900x450 pixels, 2x1 tiles" in shown and "[256 image tokens]" in shown
    assert "wrong (shown): left out, placeholder_mismatch: 1 <image> in the text, 0 images" in shown


def test_preview_names_the_command_for_a_missing_index(tmp_path, capsys):
    assert data_prep(["preview", str(tmp_path)]) == 2
    assert f"python -m data_prep index {tmp_path}" in capsys.readouterr().err


def test_preview_shows_what_another_models_tokens_read(tmp_path, capsys):
    write_shards(tmp_path / "shown", [Sample("wide", "s", (encoded(picture(900, 450)),), conversation("What is it?", "A gradient."))])
    for architecture, text in (("nvlm_x", "'<tile_2>'  (bound to tile 2)"), ("nvlm_h", "memory   tile 2, after its tag '<tile_2>'")):
        assert data_prep(["preview", str(tmp_path / "shown"), "--architecture", architecture]) == 0
        assert text in capsys.readouterr().out


@pytest.fixture
def page(tmp_path):
    """page(samples, *options) -> the text of preview.html."""
    def write(samples, *options):
        write_shards(tmp_path / "shown", samples)
        assert data_prep(["preview", str(tmp_path / "shown"), "--html", str(tmp_path / "page.html"), *options]) == 0
        return (tmp_path / "page.html").read_text(encoding="utf-8")
    return write


def test_page_shows_grid_tags_and_tokens(page):
    html = page([Sample("wide", "s", (encoded(picture(900, 450)),), conversation("What <b>is</b> it?", "A gradient."))])
    assert "grid-template:repeat(1,1fr)/repeat(2,1fr)" in html
    assert all(f"<b>&lt;{tag}&gt;</b>" in html for tag in ("tile_1", "tile_2"))
    assert "900 x 450 px, 2 x 1 tiles, and the whole as &lt;tile_global_thumbnail&gt;" in html
    assert all(f'<span class="t visual">tile {number} · 256</span>' in html for number in (1, 2, 3))
    assert '<span class="t learned">&lt;|im_end|&gt;</span>' in html
    assert "<b>is</b>" not in html and "http" not in html.replace("http-equiv", "")     # texts are escaped, nothing is fetched
    assert 'src="data:image/jpeg;base64,' in html


def test_page_says_why_a_sample_is_left_out_and_counts_it(page):
    html = page([Sample("good", "s", (), conversation("2 + 2?", "4")), Sample("wrong", "s", (), conversation("<image>?", "No."))])
    assert "Left out: placeholder_mismatch: 1 &lt;image&gt; in the text, 0 images" in html
    assert "<span>placeholder_mismatch</span>" in html and "<span>used</span>" in html


def test_page_sees_as_a_recipe_does(page):
    html = page([Sample("wide", "s", (encoded(picture(128, 64)),), conversation("What is it?", "A gradient."))], "--recipe", "nvlm_x_demo")
    assert "NVLM-X sees them" in html and "tiles of 64 px" in html
    assert "3 of them in memory" in html and '<span class="t visual">' not in html.partition("<article")[2]


def test_boxes_of_a_sequence_sum_to_its_length(make_encoder):
    encoder = make_encoder()
    for sample in make_samples(6):
        found = encoder.encode(sample)
        tokens = tokens_of(encoder, found)
        assert sum(token.count for token in tokens) == found.length
        assert sum(token.kind == "learned" for token in tokens) == (found.loss_weights > 0).sum()
        assert sum(token.kind == "visual" for token in tokens) == len(found.tiles)
