"""LLaVA's form of conversations, in JSON and JSON lines; placeholders; text-only rows."""

import pytest
from convert_toys import convert, lay_out, picture, said

from data_prep.convert.turns import place_images
from nvlm_train.contracts import Turn
from nvlm_train.errors import SampleRefused

ROWS = [
    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."}]},
    {"id": "wgByO4Y_0", "conversations": [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]},
    {"id": "000000033471", "image": ["a.png", "b.png"], "conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Compare <image-2> with <image-1>."},
        {"from": "gpt", "value": "One is red."}]},
    {"id": "end", "image": "b.png", "conversations": [{"from": "human", "value": "What colour?\n<image>"},
                                                      {"from": "gpt", "value": "Red."}]},
    {"id": "none", "image": "a.png", "conversations": [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "Blue."}]},
]
PICTURES = {"coco/train2017/000000033471.jpg": picture(color="white"), "a.png": picture(color="blue"), "b.png": picture()}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_golden_samples(tmp_path, name):
    root = lay_out(tmp_path / "llava", {name: ROWS, **PICTURES})
    found = convert(root, "conversations", records=name)
    first, text, two, end, none = found.samples.values()
    assert first.key == "toy-rows-0" and first.meta == {"task": "conversation", "dataset": "toy", "id": "000000033471"}
    assert said(first) == [("user", "<image>\nWhat are the colors of the bus in the image?"),
                           ("assistant", "The bus in the image is white and red."),
                           ("user", "What feature can be seen on the back of the bus?"),
                           ("assistant", "The back of the bus features an advertisement.")]
    assert first.images == (picture(color="white"),)
    assert text.images == () and said(text) == [("user", "Say hello."), ("assistant", "Hello.")]
    assert said(two) == [("system", "Be brief."), ("user", "Compare <image> with <image>."), ("assistant", "One is red.")]
    assert two.images == (picture(), picture(color="blue"))      # in the order in which the text names them
    assert end.turns[0].text == "What colour?\n<image>" and none.turns[0].text == "<image>\nWhat colour?"


def test_ids_that_repeat_lose_nothing(tmp_path):
    root = lay_out(tmp_path / "llava", {"rows.json": ROWS, **PICTURES})
    assert list(convert(root, "conversations", records="rows.json", id="id").samples) == [
        "toy-rows-000000033471", "toy-rows-wgByO4Y_0", "toy-rows-000000033471-again-2", "toy-rows-end", "toy-rows-none"]


def row(*values: str, image: object = None) -> dict:
    return {"image": image, "conversations": [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]}


@pytest.mark.parametrize("bad, reason", [
    (row("<image><image>", "two", image="a.png"), "placeholder_mismatch"),
    (row("<image>", "no picture"), "placeholder_mismatch"),
    (row("<image-3>", "no third", image="a.png"), "placeholder_mismatch"),
    (row("Draw.", "<image>", image="a.png"), "placeholder_in_answer"),
    (row("What?", "  ", image="a.png"), "empty_text"),
    (row("What?", image="a.png"), "last_not_assistant"),
    (row(image="a.png"), "bad_field"),
    (row("a", "b", image="../secret.png"), "unsafe_path"),
    (row("a", "b", image="/etc/secret.png"), "unsafe_path"),
    (row("a", "b", image="link.png"), "unsafe_path"),
    (row("a", "b", image="gone.png"), "missing_image"),
    (row("a", "b", image="http://example.org/a.png"), "missing_image"),
    (row("a", "b", image="zero.png"), "broken_image"),
    (row("a", "b", image={"no": "file"}), "missing_image"),
    ({"conversations": [{"from": "gpt", "value": "Hi."}, {"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]},
     "roles_out_of_order"),
    ({"conversations": [{"from": "tool", "value": "Hi."}]}, "bad_role"),
    ({"conversations": [{"from": "human", "value": 7.5}, {"from": "gpt", "value": {"text": "!"}}]}, "bad_field"),
    ({"conversations": [{"from": "human", "value": "\ud800"}, {"from": "gpt", "value": "!"}]}, "not_unicode"),
    ({"turns": []}, "missing_field"),
    ([1, 2], "bad_record"),
])
def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path, bad, reason):
    root = lay_out(tmp_path / "llava", {"rows.json": [bad, ROWS[1]], "a.png": picture(), "zero.png": b""})
    lay_out(tmp_path, {"secret.png": picture()})
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    found = convert(root, "conversations", records="rows.json")
    assert found.rejected == {"toy-rows-0": reason} and list(found.samples) == ["toy-rows-1"]


def test_links_within_the_folder_are_followed_and_those_behind_them_too(tmp_path):
    root = lay_out(tmp_path / "llava", {"real/a.png": picture(), "rows.json": [
        row("a", "b", image="short/a.png"), row("a", "b", image="short/out.png"), row("a", "b", image="chain.png")]})
    lay_out(tmp_path, {"secret.png": picture()})
    (root / "short").symlink_to("real", target_is_directory=True)
    (root / "real" / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "chain.png").symlink_to("short/out.png")
    found = convert(root, "conversations", records="rows.json")
    assert list(found.samples) == ["toy-rows-0"] and found.rejected == {"toy-rows-1": "unsafe_path", "toy-rows-2": "unsafe_path"}


@pytest.mark.parametrize("form", ["<image-{}>", "<image_{}>", "<image {}>", "<Image{}>"])
def test_numbered_placeholders(form):
    turns, order = place_images([Turn("user", form.format(2) + form.format(1)), Turn("assistant", "so")], 2)
    assert (turns[0].text, order) == ("<image><image>", (1, 0))


def test_numbered_placeholders_are_plain_text_without_pictures():
    turns = (Turn("user", "What does <image-1> mean in HTML?"), Turn("assistant", "Nothing."))
    assert place_images(turns, 0) == (turns, ())


def test_pictures_need_a_user_turn():
    with pytest.raises(SampleRefused, match="no_user_turn: 1 images"):
        place_images([Turn("assistant", "so")], 1)
