"""`benchmarks/picture_hash.py` runs, and what it claims of all photographs holds for a few."""

import pytest

pytest.importorskip("skimage", reason="photographs come with scikit-image")
pytest.importorskip("imagehash", reason="the data extra is not installed")

from benchmarks import picture_hash


def test_cuts_are_found_and_different_pictures_are_not(capsys):
    assert picture_hash.main(("camera", "coffee", "rocket", "text")) == 0
    told = capsys.readouterr().out
    assert told.startswith("40 of 40 cut pictures are found") and "0 of 6 pairs of different ones match" in told
