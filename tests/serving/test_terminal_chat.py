"""The chat in the terminal, its lines from a pipe and its model a script."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from serving_toys import ENCODER, TOKENIZER, png

from nvlm_train.config.serving import Chat
from nvlm_train.generation.request import LENGTH, STOP
from nvlm_train.serving.chat import Conversation, talk
from nvlm_train.serving.messages import Message
from nvlm_train.serving.problems import Refusal

USUAL = Chat()


class Asker:
    """Answers with what `script` says of the prompt's text; `interrupt_after` tokens Ctrl-C is pressed."""

    def __init__(self, script, blind=None, interrupt_after=None):
        self.model = SimpleNamespace(run=SimpleNamespace(recipe="toy"), checkpoint="here", encoder=ENCODER, blind=blind)
        self.script, self.interrupt_after, self.prompts, self.stopped = script, interrupt_after, [], 0

    def answer(self, prompt, asked):
        self.prompts.append(prompt)
        finish = None
        try:
            for count, token in enumerate(TOKENIZER.encode(self.script(prompt))):
                if count == self.interrupt_after:
                    raise KeyboardInterrupt
                if count + 1 == prompt.max_new_tokens:
                    finish = LENGTH
                    yield token, finish
                    return
                yield token, None
            finish = STOP
            yield None, finish
        finally:
            self.stopped += finish is None

    def read(self, number):
        return TOKENIZER.decode(self.prompts[number].encoded.tokens, skip_special=False)


@pytest.fixture
def say(monkeypatch, capsys):
    """(standard output, notices) of a chat with these lines."""
    def chatted(asker, *lines, chat=USUAL):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        notices = io.StringIO()
        talk(asker, chat, Console(file=notices, width=200))
        return capsys.readouterr().out, notices.getvalue()
    return chatted


def test_a_conversation_is_remembered(say):
    asker = Asker(lambda prompt: "blue €.")
    out, _ = say(asker, "Which colour?", "", "  And now?  ", "/quit", "never asked")
    assert out == "blue €.\nblue €.\n"
    assert "Which colour?<|im_end|>\n<|im_start|>assistant\nblue €.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>" in asker.read(1)
    assert len(asker.prompts) == 2


def test_pictures_go_with_the_next_question(say, tmp_path):
    (tmp_path / "wide.png").write_bytes(png(96, 64))
    asker = Asker(lambda prompt: "seen")
    _, notices = say(asker, f"/image {tmp_path / 'wide.png'}", "What?", "And?", "/clear", "Now?")
    assert [len(prompt.encoded.tiles) for prompt in asker.prompts] == [7, 7, 0]
    assert "96x64 pixels, with the next question" in notices
    assert "What?" not in asker.read(2)


def test_what_cannot_be_shown_is_said_and_the_chat_goes_on(say, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asker = Asker(lambda prompt: "yes")
    out, notices = say(asker, f"/image {tmp_path / 'broken.png'}", "/image nowhere.png", "/image", "/imagine", "/help", "Still there?")
    assert out == "yes\n"
    assert "broken_image" in notices and "No such file" in notices and "/image: needs a file" in notices
    assert "/imagine: no such command" in notices and "/clear" in notices
    _, notices = say(Asker(lambda prompt: "yes", blind="it has no eyes"), f"/image {tmp_path / 'broken.png'}")
    assert "it has no eyes" in notices


def test_the_system_message_can_be_set(say):
    asker = Asker(lambda prompt: "ok")
    say(asker, "a", "/system Be brief.", "b", "/system", "c", chat=Chat(system="Be kind."))
    heads = [asker.read(number).partition("<|im_end|>")[0] for number in range(3)]
    assert heads[:2] == ["<|im_start|>system\nBe kind.", "<|im_start|>system\nBe brief."]
    assert "Be" not in heads[2].removeprefix("<|im_start|>system\n")


def test_ctrl_c_stops_the_answer_and_not_the_chat(say):
    asker = Asker(lambda prompt: "one two three four", interrupt_after=3)
    out, notices = say(asker, "Count", "Again")
    shown = TOKENIZER.decode(TOKENIZER.encode("one two three four")[:3])
    assert out == f"{shown}\n{shown}\n" and asker.stopped == 2
    assert "(stopped)" in notices
    assert f"assistant\n{shown}<|im_end|>" in asker.read(1), "what was written so far is remembered"


def test_the_oldest_turns_are_forgotten_and_that_is_said(say):
    asker = Asker(lambda prompt: "fine")
    _, notices = say(asker, *(f"number {n} " + "word " * 120 for n in range(5)))
    assert "the 2 oldest turns are forgotten: the model reads 480 tokens" in notices
    assert "number 0" in asker.read(1) and "number 0" not in asker.read(2) and "number 1" in asker.read(2)
    assert max(prompt.encoded.length + prompt.max_new_tokens for prompt in asker.prompts) <= 480


def test_a_question_too_long_by_itself_is_refused(say):
    asker = Asker(lambda prompt: "fine")
    out, notices = say(asker, "short", "word " * 500, "short again")
    assert out == "fine\nfine\n" and "the prompt is too long" in notices
    assert "short<|im_end|>" in asker.read(1), "nothing was forgotten for it"


def test_a_cut_answer_is_said_to_be_cut(say):
    _, notices = say(Asker(lambda prompt: "one two three four five"), "Count", chat=Chat(max_new_tokens=2))
    assert "(cut off after 2 tokens)" in notices


def test_control_characters_never_reach_the_terminal(say):
    out, _ = say(Asker(lambda prompt: "a\x1b[2Jb\x07\tc\x9b"), "Go")
    assert out == "a\ufffd[2Jb\ufffd\tc\ufffd\n"


def test_only_a_prompt_that_is_too_long_makes_it_forget():
    conversation = Conversation(said=[Message("user", ("a",)), Message("assistant", ("b",))])

    def refuse(messages):
        raise Refusal("broken_image", code="broken_image")

    with pytest.raises(Refusal, match="broken_image"):
        conversation.prompt("c", refuse)
