"""matches.html: pairs of pictures side by side, for a person to judge the matches that a hash found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.curate.benchmarks import picture_of
from data_prep.passes import samples_of
from data_prep.thumbnails import thumbnail
from nvlm_train.errors import NvlmError
from nvlm_train.training.report.templates import templates

PAIRS = 300     # on the page; matches.jsonl holds all
SIDE = 192      # pixels of a thumbnail's longer side

_ASSETS = Path(__file__).parent.parent / "assets"


def write_page(path: Path, matches: Sequence[Mapping], source: Path, benchmarks: Mapping[str, str]) -> None:
    """One file without links to others. Pairs that differ most come first: they are the doubtful ones."""
    pictured = sorted((match for match in matches if "bits" in match), key=lambda match: (-match["bits"], match["key"]))
    shown = pictured[:PAIRS]
    samples = _pictures_of(source, shown)
    rows = [{**match, "mine": samples.get((match["key"], match["image"]), ""),
             "theirs": _thumbnail_or_nothing(Path(benchmarks[match["benchmark"]]), match["item_image"])} for match in shown]
    texts = [match for match in matches if "share" in match]
    html = templates(_ASSETS).get_template("matches.html.j2").render(rows=rows, pictured=len(pictured), texts=texts[:PAIRS], text_count=len(texts))
    path.write_text(html, encoding="utf-8")


def _pictures_of(source: Path, matches: Sequence[Mapping]) -> dict[tuple[str, int], str]:
    """(key, place) -> thumbnail, of the training side."""
    wanted: dict[str, set[tuple[str, int]]] = {}
    for match in matches:
        wanted.setdefault(match["shard"], set()).add((match["key"], match["image"]))
    found = {}
    for unit, pairs in wanted.items():
        keys = {key for key, _ in pairs}
        for key, read in samples_of(source, unit):
            if key in keys:
                images = read().images
                found |= {(key, place): thumbnail(images[place], SIDE) for of_key, place in pairs if of_key == key}
    return found


def _thumbnail_or_nothing(folder: Path, place: str) -> str:
    try:
        return thumbnail(picture_of(folder, place), SIDE)
    except NvlmError:   # the benchmark changed since it was read
        return ""


