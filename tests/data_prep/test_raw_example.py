"""docs/preparing_data.md as a whole, on less of the same material: raw files, every verb in order, a page at the end."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from data_prep.raw_example import leaks, write

pytestmark = [pytest.mark.slow, *(
    pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install -e .[demo,data]")
    for package in ("easy_vqa", "reasoning_gym", "matplotlib", "datasketch", "imagehash", "ftfy"))]


def manifest(folder: str) -> dict:
    return json.loads(Path(folder, "manifest.json").read_text())


def test_from_raw_files_to_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("raw"), pictures=20, documents=60, texts=60)
    shapes = "--option records=questions.json --option images=images --option items=qas --option turns=joined"
    for line in (f"convert qa_records raw/shapes converted/shapes {shapes}",
                 "convert transcription raw/pages converted/pages --option files=metadata.jsonl --option image=file_name",
                 "convert chat raw/sums converted/sums --option format=alpaca --option records=sums.json",
                 "check converted/shapes checked/shapes", "check converted/pages checked/pages", "check converted/sums checked/sums",
                 "dedup checked/pages unique/pages", "dedup checked/sums unique/sums",
                 "decontaminate unique/pages clean/pages --against raw/benchmark",
                 "shard checked/shapes clean/pages unique/sums shards --seed 1 --samples-per-shard 40"):
        assert data_prep([*line.split(), "--workers", "1"]) == 0, line
    for line in ("verify shards clean/pages unique/sums", "stats shards --tokenizer tiny", "preview shards --html preview.html --count 6"):
        assert data_prep(line.split()) == 0, line
    kept = {folder: manifest(folder)["kept"] for folder in ("converted/shapes", "converted/pages", "converted/sums")}
    assert kept == {"converted/shapes": 20, "converted/pages": 60, "converted/sums": 60}
    for folder in ("checked/pages", "unique/pages", "unique/sums", "clean/pages", "shards"):
        found = manifest(folder)
        assert found["in"] == found["kept"] + sum(found["rejected"].values())
    leaked = manifest("clean/pages")["rejected"]
    assert set(leaked) == {"benchmark_image"} and leaked["benchmark_image"] >= 4      # 5 of 60 were put there; one may be a duplicate
    told = re.fullmatch(r"(\d) of 5 planted pages were there, (\d) were found, (\d+) others were rejected",
                        leaks(Path("raw"), Path("unique/pages"), Path("clean/pages")))
    there, found, others = map(int, told.groups())
    assert 4 <= found <= there and found + others == leaked["benchmark_image"]
    assert manifest("shards")["kept"] == 20 + manifest("clean/pages")["kept"] + manifest("unique/sums")["kept"]
    assert "Left out" not in Path("preview.html").read_text() and capsys.readouterr().err == ""
