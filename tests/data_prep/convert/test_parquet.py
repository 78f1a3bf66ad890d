"""Hugging Face datasets on disk: parquet with {bytes, path} pictures, arrow streams, question/answer, texts and messages."""

import json

import pyarrow as pa
import pytest
from convert_toys import convert, lay_out, picture, said
from pyarrow import parquet

from data_prep.convert import arrow_tables
from nvlm_train.errors import DataError

RED, BLUE = picture(), picture(color="blue")
CAULDRON = [
    {"images": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "b.png"}],
     "texts": [{"user": "Which differs?", "assistant": "The second.", "source": "spot"},
               {"user": "How?", "assistant": "Blue.", "source": "spot"}]},
    {"images": [], "texts": [{"user": "Hello?", "assistant": "Hi.", "source": "text"}]},
    {"images": [{"bytes": RED, "path": None}], "texts": [{"user": "Empty?", "assistant": "", "source": "spot"}]},
]


def write_parquet(root, name: str, rows: list, per_group: int = 1000):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / name, row_group_size=per_group)
    return root


def test_golden_sample_of_texts(tmp_path):
    root = write_parquet(tmp_path / "hf", "spot/train-00000-of-00001.parquet", CAULDRON)
    found = convert(root, "parquet", files="spot/train-*.parquet", images="images", turns="texts")
    first, text = found.samples.values()
    assert first.key == "toy-spot-train-00000-of-00001-0" and first.images == (RED, BLUE)
    assert said(first) == [("user", "<image>\n<image>\nWhich differs?"), ("assistant", "The second."),
                           ("user", "How?"), ("assistant", "Blue.")]
    assert first.meta == {"task": "vqa", "dataset": "toy"}
    assert text.images == () and said(text) == [("user", "Hello?"), ("assistant", "Hi.")]
    assert found.rejected == {"toy-spot-train-00000-of-00001-2": "empty_text"}


def test_messages_with_parts(tmp_path):
    root = write_parquet(tmp_path / "hf", "m.parquet", [{"image": {"bytes": RED, "path": None}, "messages": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]}])
    assert said(convert(root, "parquet", files="m.parquet", image="image", turns="messages").only) == [
        ("user", "<image>\nWhat?"), ("assistant", "Red.")]


def test_question_and_answer_columns(tmp_path):
    rows = [{"image": RED, "query": "Value?", "label": ["14", "15", "15"]}, {"image": None, "query": "Value?", "label": ["14"]}]
    root = write_parquet(tmp_path / "hf", "c.parquet", rows)
    found = convert(root, "parquet", files="c.parquet", image="image", question="query", answer="label", style="chart")
    assert found.only.images == (RED,) and found.only.turns[0].text == "<image>\nValue?\nRead the answer off the figure."
    assert found.only.turns[1].text == "15" and found.only.meta["answers"] == ["14", "15", "15"]
    assert found.rejected == {"toy-c-1": "missing_image"}


def test_a_style_without_a_question(tmp_path):
    root = write_parquet(tmp_path / "hf", "h.parquet", [{"image": {"bytes": RED, "path": "h.png"}, "latex": "x^{2}"}])
    sample = convert(root, "parquet", files="h.parquet", image="image", answer="latex", style="latex", task="latex").only
    assert said(sample)[1] == ("assistant", "x^{2}") and sample.meta["task"] == "latex" and "LaTeX" in sample.turns[0].text


def test_paths_beside_the_file(tmp_path):
    root = write_parquet(tmp_path / "hf", "p.parquet", [
        {"image": {"bytes": None, "path": path}, "question": "?", "answer": "!"} for path in ("a.png", "../out.png")])
    lay_out(root, {"a.png": RED})
    lay_out(tmp_path, {"out.png": RED})
    found = convert(root, "parquet", files="p.parquet", image="image")
    assert found.only.images == (RED,) and found.rejected == {"toy-p-1": "unsafe_path"}


@pytest.mark.distributed
def test_row_groups_are_joined_into_units_and_any_number_of_processes_gives_the_same(tmp_path):
    rows = [{"image": {"bytes": RED, "path": None}, "question": f"{number}?", "answer": str(number), "unused": "x" * 1000}
            for number in range(2500)]
    root = write_parquet(tmp_path / "hf", "big.parquet", rows, per_group=400)
    table = arrow_tables.Parquet(root / "big.parquet")
    assert table.cuts() == [(0, 800), (800, 1600), (1600, 2500)]
    assert [number for number, _ in table.rows(800, 1600)] == list(range(800, 1600))
    assert list(next(table.rows(1600, 2500, ["answer"]))[1]) == ["answer"]
    found = [convert(root, "parquet", workers, files="big.parquet", image="image") for workers in (1, 2)]
    assert found[0] == found[1] and found[0].manifest["units"] == 3
    assert [sample.turns[1].text for sample in found[0].samples.values()] == [str(number) for number in range(2500)]


def save_to_disk(root, rows: list, per_batch: int):
    """What `Dataset.save_to_disk` writes: an arrow stream, dataset_info.json and state.json."""
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=per_batch)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None}))


def test_save_to_disk(tmp_path):
    root = tmp_path / "hf"
    root.mkdir()
    save_to_disk(root, [{"image": {"bytes": RED, "path": None}, "question": f"{number}?", "answer": str(number)}
                        for number in range(1300)], 300)
    assert arrow_tables.Arrow(root / "data-00000-of-00001.arrow").cuts() == [(0, 900), (900, 1300)]
    found = convert(root, "parquet", files="*.arrow", image="image", id="answer")
    assert list(found.samples)[:2] == ["toy-data-00000-of-00001-0", "toy-data-00000-of-00001-1"]
    assert [sample.turns[1].text for sample in found.samples.values()] == [str(number) for number in range(1300)]


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_truncated_file_is_an_error(tmp_path, name):
    root = tmp_path / "hf"
    root.mkdir()
    rows = [{"image": {"bytes": RED, "path": None}, "question": "?", "answer": str(number)} for number in range(500)]
    write_parquet(root, "t.parquet", rows)
    save_to_disk(root, rows, 100)
    (root / "data-00000-of-00001.arrow").rename(root / "t.arrow")
    (root / name).write_bytes((root / name).read_bytes()[:-2000])
    with pytest.raises(DataError, match=f"{name} is not a whole"):
        convert(root, "parquet", files=name, image="image")


def test_pyarrow_may_be_missing(tmp_path, monkeypatch):
    root = write_parquet(tmp_path / "hf", "a.parquet", CAULDRON)
    monkeypatch.setattr(arrow_tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install -e ..data."):
        convert(root, "parquet", files="a.parquet", images="images", turns="texts")


def test_records_of_other_families_may_be_parquet_too(tmp_path):
    root = write_parquet(tmp_path / "hf", "sg.parquet",
                         [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
    assert said(convert(root, "chat", format="sharegpt", records="sg.parquet").only) == [("user", "a"), ("assistant", "b")]
