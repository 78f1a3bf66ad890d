"""`check` on conversations: order, emptiness, placeholders, forged structure, damage to text, repetition, scores, options."""

import sys

import pytest
from curate_toys import LONG, asked, folder_of, read_all, reasons, scene, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.__main__ import main
from data_prep.curate.check import Check, Scoring
from data_prep.curate.conversation import Text, check_turns
from data_prep.curate.repetition import Repetition, refuse_repetition, top_gram_share
from data_prep.curate.text_repair import repair
from data_prep.passes import Judged, run_pass
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import DataError, SampleRefused


def turns(*texts: str, first: str = "user") -> list[Turn]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [Turn(roles[number % 2], text) for number, text in enumerate(texts)]


def reason_of(conversation, images=0, **limits) -> str:
    with pytest.raises(SampleRefused) as caught:
        check_turns(conversation, images, Text(**limits))
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("conversation, reason", [
    ([], "no_answer"), (turns("Hi?"), "no_answer"), (turns("a", "b", first="assistant"), "no_answer"),
    (turns("a", "b", "c", first="assistant"), "bad_roles"), ([Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")], "bad_roles"),
    ([Turn("user", "a"), Turn("system", "b"), Turn("assistant", "c")], "bad_roles"),
    ([Turn("human", "a"), Turn("assistant", "c")], "bad_roles"), ([Turn("system", "a"), Turn("assistant", "c")], "bad_roles"),
])
def test_roles_alternate_and_the_assistant_has_the_last_word(conversation, reason):
    assert reason_of(conversation) == reason


def test_a_system_turn_may_come_first():
    conversation = (Turn("system", "Be brief."), *turns("a", "b", "c", "d"))
    assert check_turns(conversation, 0, Text()) == (conversation, ())


@pytest.mark.parametrize("conversation, images", [(turns("a", " \n"), 0), (turns("", "b"), 0), (turns("<image>", "b", "", "d"), 0),
                                                  (turns("a", "<image>"), 1), ([Turn("system", ""), *turns("a", "b")], 0)])
def test_empty_turns(conversation, images):
    assert reason_of(conversation, images) == "empty_turn"


def test_a_picture_alone_may_be_the_question():
    assert check_turns(turns("<image>", "Bars."), 1, Text())[1] == () == check_turns(turns("", "Bars."), 1, Text())[1]


@pytest.mark.parametrize("text, images", [("<image>\nWhat?", 0), ("<image><image>", 1), ("<image>", 2), ("The tag <image> is", 3)])
def test_placeholders_are_as_many_as_pictures_or_none(text, images):
    assert reason_of(turns(text + " what?", "Bars."), images) == "placeholder_mismatch"
    check_turns(turns("What?", "Bars."), images, Text())


@pytest.mark.parametrize("forged", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tile_3>", "<tile_x0_y1>", "<tile_global_thumbnail>",
                                    "<Image>", "</Image>"])
def test_forged_structure_is_refused_wherever_it_stands(forged):
    assert reason_of(turns(f"a {forged} b", "c")) == "special_token"
    assert reason_of(turns("a", f"c{forged}")) == "special_token"


def test_damaged_text_cannot_hide_structure():
    hidden = "<|im_\x00start|>"     # a control character that the repair takes out
    assert repair(hidden) == "<|im_start|>" and reason_of(turns(hidden, "b")) == "special_token"


def test_markup_and_operators_are_not_structure():
    for text in ("<b>bold</b>", "a <|> b", "x <- c(1, 2); y |> f()", "<s>struck</s>", "<tile>"):
        check_turns(turns(text, text), 0, Text())


def test_limits_of_length():
    assert reason_of(turns("a" * 50, "b" * 51), max_characters=100) == "long_text"
    assert reason_of(turns(*"abcd"), max_turns=3) == "too_many_turns"
    assert reason_of(turns("How?", "So."), min_answer=4) == "short_answer"
    check_turns(turns("a" * 50, "b" * 50), 0, Text(max_characters=100, min_answer=50))


@pytest.mark.parametrize("damaged, right", [("schÃ¶n", "schön"), ("scho\u0308n", "schön"), ("a\x00b", "ab"), ("a\r\nb", "a\nb"),
                                            ("itâ€™s", "it’s")])
def test_damage_is_repaired_and_counted(damaged, right):
    conversation, repairs = check_turns(turns(damaged, "x"), 0, Text())
    assert conversation[0].text == right and repairs == ("text_repaired",)
    assert check_turns(turns(damaged, "x"), 0, Text(text_repair=False)) == (tuple(turns(damaged, "x")), ())


@pytest.mark.parametrize("text", [
    'He said "no" and it\'s fine', "“curly” ‘quotes’", r"$\frac{a}{b} \neq \alpha_{i}$ and \(x^2\)", "&lt;p&gt; &amp; &nbsp;",
    "ﬁne ﬂow", "全角ＡＢＣ１２３", "naïve café, Ærøskøbing, Привет, 東京 👩‍👩‍👧", "tab\there\nand\n\nlines",
    "```\nprint('schÃ¶n')\r\n```", "run `cafe\u0301` now",
])
def test_what_is_right_stays_as_it_is(text):
    assert repair(text) == text


def test_prose_around_code_is_repaired():
    assert repair("schÃ¶n `schÃ¶n` schÃ¶n") == "schön `schÃ¶n` schön"


def test_a_missing_package_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(DataError, match=r"--no-text-repair leaves it out.* pip install -e .\[data\]"):
        repair("schÃ¶n")
    assert repair("plain") == "plain"


@pytest.mark.parametrize("verb, missing", [("check", "ftfy"), ("dedup", "datasketch"), ("dedup", "imagehash"),
                                           ("decontaminate", "imagehash")])
def test_verbs_tell_what_is_missing_before_they_write(verb, missing, monkeypatch, tmp_path, capsys):
    source = folder_of(tmp_path / "in", [asked("a", "?", "x")])
    monkeypatch.setitem(sys.modules, missing, None)
    more = ["--against", str(source)] if verb == "decontaminate" else []
    assert main([verb, str(source), str(tmp_path / "out"), *more]) == 2
    assert f"needs the package {missing}" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_repetition_in_long_answers():
    with pytest.raises(SampleRefused, match="99% of the lines stood before, the limit is 30%"):
        refuse_repetition("the same line again\n" * 100, Repetition())
    with pytest.raises(SampleRefused, match="of the characters are one run of 2 words"):
        refuse_repetition("very good " * 60, Repetition())
    refuse_repetition("very good " * 49, Repetition())     # 98 words: not looked at
    refuse_repetition(" ".join(f"word{n}" for n in range(150)), Repetition())
    refuse_repetition(f"{LONG}. Then somebody else came home, hung up a coat and asked for supper. " + " ".join(map(str, range(80))),
                      Repetition())


def test_share_of_the_most_frequent_run():
    assert top_gram_share(["a", "b", "c", "a", "b", "d", "a", "b"], 2) == pytest.approx(3 * 2 / 8)
    assert top_gram_share(["a", "b", "c", "d"], 2) == 0 == top_gram_share([], 3)


def redness():
    """A scorer for the tests: how red a picture is, if the text says that it is red."""
    return lambda images, text: float("nan") if "nothing" in text else float(images[0][..., 0].mean() / 255) * ("red" in text)


def test_scores_are_stored_and_low_ones_left_out(tmp_path):
    red, blue = (stored(Image.new("RGB", (64, 64), colour)) for colour in ("#bf0000", "#0000bf"))
    samples = [asked("red", "?", "a red square", red), asked("blue", "?", "a red square", blue), asked("nan", "?", "nothing", red),
               asked("text", "?", "red")]
    scoring = Scoring(f"{__name__}:redness", 0.5)
    run_pass("check", Judged(folder_of(tmp_path / "in", samples), Check(scoring=scoring)), tmp_path / "out")
    kept = read_all(tmp_path / "out")
    assert set(kept) == {"red", "text"} and kept["red"].meta["score"] == 0.74902 and "score" not in kept["text"].meta
    assert reasons(tmp_path / "out") == {"blue": "low_score", "nan": "low_score"}


@pytest.mark.parametrize("spec, told", [("redness", "expected module:factory"), ("no.such:thing", "No module named 'no'"),
                                        ("math:thing", "no attribute 'thing'"), ("builtins:dict", "gave dict")])
def test_a_scorer_that_cannot_be_had_stops_before_the_pass(spec, told, tmp_path, capsys):
    source = folder_of(tmp_path / "in", [asked("a", "?", "x")])
    assert main(["check", str(source), str(tmp_path / "out"), "--scorer", spec, "--min-score", "0"]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_command_line(tmp_path, capsys):
    samples = [asked("fine", "What?", "schÃ¶n", stored(scene(0))), asked("long", "What?", "y" * 30),
               asked("small", "What?", "x", stored(scene(0, 40, 40)))]
    source = folder_of(tmp_path / "in", samples)
    words = ["--max-characters", "20", "--short-side", "41", "--no-text-repair", "--workers", "1"]
    assert main(["check", str(source), str(tmp_path / "out"), *words]) == 0
    told = capsys.readouterr().out
    assert "1 of 3 samples kept" in told and "rejected         1  long_text" in told and "rejected         1  small_image" in told
    assert read_all(tmp_path / "out")["fine"].turns[1].text == "schÃ¶n"


def test_help_shows_every_limit_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option, default in (("--short-side PX", "(default 28)"), ("--aspect RATIO", "(default 10.0)"),
                            ("--top-4-gram SHARE", "(default 0.16)"), ("--no-text-repair", "leave text as it is"),
                            ("--max-characters N", "(default 100000)")):
        assert default in told[told.rindex(option):][:200]


PARTS = st.sampled_from(["What?", "<image>", "", "schÃ¶n", "<|im_start|>", "x" * 200, "yes\n" * 120])
PICTURES = st.sampled_from([stored(scene(5)), stored(scene(5, 20, 20)), stored(scene(5), "JPEG")[:-400], stored(scene(5, 300, 29))])
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
SAMPLES = st.lists(st.tuples(st.lists(st.tuples(ROLES, PARTS), min_size=1, max_size=4), st.lists(PICTURES, max_size=2)), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=SAMPLES)
def test_whatever_comes_in_is_kept_or_rejected(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    samples = [asked("good", "What?", "Bars.")]
    samples += [Sample(f"k{n}", "toys", tuple(images), tuple(Turn(*turn) for turn in said)) for n, (said, images) in enumerate(drawn)]
    manifest = run_pass("check", Judged(folder_of(folder / "in", samples, 5), Check(text=Text(max_characters=150))), folder / "out")
    kept, left = read_all(folder / "out"), reasons(folder / "out")
    assert manifest["in"] == len(samples) == manifest["kept"] + sum(manifest["rejected"].values())
    assert set(kept) | set(left) == {sample.key for sample in samples} and not set(kept) & set(left)
    assert all(Check(text=Text(max_characters=150))(sample).sample == sample for sample in kept.values())     # nothing is left to repair
