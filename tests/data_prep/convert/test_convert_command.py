"""`python -m data_prep convert`, from the command line to shards that training reads."""

import pytest
from convert_toys import lay_out, picture

from data_prep.__main__ import main as data_prep
from data_prep.convert_command import main
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError

ROWS = [{"question": f"{number}?", "answer": str(number), "image": "a.png"} for number in range(7)]


@pytest.fixture
def root(tmp_path):
    return lay_out(tmp_path / "set", {"a.json": ROWS, "a.png": picture()})


def keys(folder) -> list[str]:
    shards = ShardFolder(folder, "x")
    return [shards.key(number) for number in range(len(shards))]


def test_a_family_with_options(root, tmp_path, capsys):
    out = tmp_path / "my.set"
    flags = ["--option", "records=a.json", "--workers", "1", "--samples-per-shard", "3"]
    assert data_prep(["convert", "qa_records", str(root), str(out), *flags]) == 0
    assert [entry.samples for entry in ShardFolder(out, "x").entries] == [3, 3, 1] and keys(out)[0] == "my_set-a-0"
    assert "7 of 7 samples kept, 7 images, 3 shards" in capsys.readouterr().out


def test_a_catalog_name_brings_family_and_options_that_the_command_line_may_change(root, tmp_path):
    def catalog(name: str) -> dict:
        assert name == "toy_set"
        return {"family": "qa_records", "records": "gone.json", "style": "open"}

    main(["toy_set", str(root), str(tmp_path / "out"), "--option", "records=a.json", "--workers", "1"], catalog)
    sample = ShardFolder(tmp_path / "out", "x").read(0)
    assert sample.key == "toy_set-a-0" and sample.turns[0].text == "<image>\n0?" and sample.meta["dataset"] == "toy_set"


def test_limit_takes_the_first_and_is_part_of_the_settings(root, tmp_path):
    arguments = ["qa_records", str(root), str(tmp_path / "out"), "--option", "records=a.json", "--workers", "1", "--name", "toy"]
    main([*arguments, "--limit", "2"])
    assert keys(tmp_path / "out") == ["toy-a-0", "toy-a-1"]
    with pytest.raises(DataError, match="begun differently .*limit: 2 there, None asked"):
        main(arguments)


@pytest.mark.parametrize("options, says", [(["records"], "--option is KEY=VALUE, found 'records'"),
                                           (["records=a", "records=b"], "--option records is given twice, 'a' and 'b'")])
def test_wrong_options(root, tmp_path, capsys, options, says):
    flags = [part for option in options for part in ("--option", option)]
    assert data_prep(["convert", "qa_records", str(root), str(tmp_path / "out"), *flags]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_unknown_name_is_told(root, tmp_path):
    with pytest.raises(DataError, match="qa_record"):
        main(["qa_record", str(root), str(tmp_path / "out")])


def test_help_lists_every_family_with_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "coco_captions: annotations=…," in shown and "chat: " in shown and "NAME_OR_FAMILY ROOT OUT" in " ".join(shown.split())
