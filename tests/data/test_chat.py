import pytest
from data_toys import conversation

from nvlm_train.contracts import Turn
from nvlm_train.data.chat import Picture, Special, Text, render, render_prompt
from nvlm_train.errors import SampleRefused

START, END, ANSWER_END = Special("<|im_start|>"), Special("<|im_end|>"), Special("<|im_end|>", learned=True)


def test_chatml_with_one_picture():
    assert render(conversation("What?", "A cat."), 1, "chat", "Be brief.") == [
        START, Text("system\nBe brief."), END, Text("\n"),
        START, Text("user\n<Image>"), Picture(0), Text("</Image>\nWhat?"), END, Text("\n"),
        START, Text("assistant\n"), Text("A cat.", True), ANSWER_END, Text("\n", True)]


def test_no_system_turn_unless_asked_for_or_given():
    assert render(conversation("Hi", "Yo"), 0, "chat", None)[1] == Text("user\nHi")
    own = (Turn("system", "Mine."), *conversation("Hi", "Yo"))
    assert render(own, 0, "chat", "Default.")[1] == Text("system\nMine.")
    assert sum(segment == START for segment in render(own, 0, "chat", "Default.")) == 3


def test_every_assistant_turn_is_learned():
    turns = conversation("1?", "one") + conversation("2?", "two")
    learned = [segment for segment in render(turns, 0, "chat") if getattr(segment, "learned", False)]
    assert learned == [Text("one", True), ANSWER_END, Text("\n", True), Text("two", True), ANSWER_END, Text("\n", True)]


def test_pretraining_has_no_roles():
    turns = (Turn("system", "ignored"), *conversation("Describe.", "A dog."))
    assert render(turns, 1, "pretrain", "ignored too") == [
        Text("<Image>"), Picture(0), Text("</Image>\nDescribe.\n"), Text("A dog.", True), ANSWER_END]
    assert render([Turn("assistant", "A dog.")], 1, "pretrain") == [
        Text("<Image>"), Picture(0), Text("</Image>\n"), Text("A dog.", True), ANSWER_END]


def test_placeholders_say_where_pictures_stand():
    turns = conversation("Compare <image> with <image>.", "Same.")
    segments = render(turns, 2, "chat")
    assert segments[1:6] == [Text("user\nCompare <Image>"), Picture(0), Text("</Image> with <Image>"), Picture(1), Text("</Image>.")]


def test_pictures_in_an_answer_have_an_unlearned_wrapper():
    segments = render(conversation("Draw.", "Here: <image> Done."), 1, "chat")
    assert segments[5:11] == [Text("assistant\n"), Text("Here: ", True), Text("<Image>"), Picture(0), Text("</Image>"), Text(" Done.", True)]


@pytest.mark.parametrize("question, images", [("<image> and <image>", 1), ("<image>", 2), ("<image>", 0)])
def test_a_mismatch_names_both_numbers(question, images):
    with pytest.raises(SampleRefused) as caught:
        render(conversation(question, "?"), images, "chat")
    assert caught.value.reason == "placeholder_mismatch"
    assert str(question.count("<image>")) in caught.value.detail and f"{images} images" in caught.value.detail


def test_pictures_need_a_turn_to_stand_in():
    with pytest.raises(SampleRefused, match="no_user_turn"):
        render([Turn("assistant", "Hm.")], 1, "chat")
    with pytest.raises(SampleRefused, match="bad_role.*human"):
        render([Turn("human", "Hm.")], 0, "chat")


def test_a_prompt_ends_where_the_model_begins():
    turns = conversation("1?", "one") + conversation("2?", "secret")
    prompt = render_prompt(turns, 1, "chat", "S")
    assert prompt[-2:] == [START, Text("assistant\n")]
    whole = render(turns, 1, "chat", "S")
    assert prompt == whole[:len(prompt)]
    assert not any("secret" in segment.text for segment in prompt if isinstance(segment, Text))
    assert render_prompt(turns[:1], 0, "chat")[-1] == Text("assistant\n")
    assert render_prompt(conversation("Describe.", "secret"), 0, "pretrain") == [Text("Describe.\n")]
