"""Text-only conversations: ShareGPT, Alpaca, questions and answers, OpenAI messages."""

import pytest
from convert_toys import convert, lay_out, said


def test_sharegpt(tmp_path):
    root = lay_out(tmp_path / "chat", {"sg.json": [{"id": "QWJhYvA_0", "conversations": [
        {"from": "human", "value": "Summarize."}, {"from": "gpt", "value": "Short."}, {"from": "human", "value": "More."},
        {"from": "chatgpt", "value": "Longer."}]}]})
    sample = convert(root, "chat", format="sharegpt", records="sg.json").only
    assert sample.key == "toy-sg-0" and sample.images == () and sample.meta == {"task": "chat", "dataset": "toy"}
    assert said(sample) == [("user", "Summarize."), ("assistant", "Short."), ("user", "More."), ("assistant", "Longer.")]


def test_alpaca(tmp_path):
    root = lay_out(tmp_path / "chat", {"alpaca.json": [
        {"instruction": "Give three tips.", "input": "", "output": "1. Eat."},
        {"instruction": "Sort.", "input": "b, a", "output": "a, b"}, {"instruction": "Nothing.", "input": "", "output": ""}]})
    found = convert(root, "chat", format="alpaca", records="alpaca.json")
    assert [said(sample) for sample in found.samples.values()] == [
        [("user", "Give three tips."), ("assistant", "1. Eat.")], [("user", "Sort.\n\nb, a"), ("assistant", "a, b")]]
    assert found.rejected == {"toy-alpaca-2": "empty_text"}


def test_questions_and_answers_with_their_own_names_and_a_system_field(tmp_path):
    root = lay_out(tmp_path / "chat", {"mi.jsonl": [{"query": "2 + 2?", "response": 4.0, "system": "You count."}]})
    sample = convert(root, "chat", format="qa", records="mi.jsonl", question="query", answer="response").only
    assert said(sample) == [("system", "You count."), ("user", "2 + 2?"), ("assistant", "4")]


def test_an_empty_system_turn_is_dropped(tmp_path):
    root = lay_out(tmp_path / "chat", {"s.json": [{"conversations": [
        {"from": "system", "value": ""}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1.0}]}]})
    assert said(convert(root, "chat", format="sharegpt", records="s.json").only) == [("user", "a"), ("assistant", "b")]


def test_messages(tmp_path):
    root = lay_out(tmp_path / "chat", {"m.jsonl": [{"messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hello?"}]},
        {"role": "assistant", "content": "Hi."}]}, {"messages": [{"role": "user", "content": "Alone."}]}]})
    found = convert(root, "chat", format="messages", records="m.jsonl")
    assert said(found.only) == [("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hi.")]
    assert found.rejected == {"toy-m-1": "last_not_assistant"} and "user" in found.details["toy-m-1"]


@pytest.mark.parametrize("line, reason", [(b'{"question": "a", "answer"\n', "bad_json"), (b'{"question": "\xff"}\n', "not_utf8"),
                                          (b"[1]\n", "bad_record"), (b'{"question": "a"}\n', "missing_field")])
def test_a_bad_line_costs_one_sample(tmp_path, line, reason):
    root = lay_out(tmp_path / "chat", {"q.jsonl": b'{"question": "a", "answer": "b"}\n\n' + line + b'{"question": "c", "answer": "d"}\n'})
    found = convert(root, "chat", format="qa", records="q.jsonl")
    assert found.rejected == {"toy-q-1": reason} and list(found.samples) == ["toy-q-0", "toy-q-2"]


def test_lines_are_recognised_in_a_json_file(tmp_path):
    root = lay_out(tmp_path / "chat", {"q.json": '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n'})
    assert len(convert(root, "chat", format="qa", records="q.json").samples) == 2
