from data_toys import conversation, encoded, picture

from data_prep.__main__ import main as data_prep
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
