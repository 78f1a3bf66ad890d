"""Scorers on answers whose marks are known by hand, and on whatever a model may write. test_against_references.py has the public ones."""

import math
import random

import pytest
from answer_cases import ODD, choice_answer, options, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_train.evaluation.benchmark.results import share
from nvlm_train.evaluation.scorers.anls import anls, edit_distance
from nvlm_train.evaluation.scorers.boxed import last_boxed
from nvlm_train.evaluation.scorers.cider import cider
from nvlm_train.evaluation.scorers.gsm8k import gsm8k
from nvlm_train.evaluation.scorers.humaneval import code_of
from nvlm_train.evaluation.scorers.letters import letter, letter_of, letter_or_exact
from nvlm_train.evaluation.scorers.math_answers import answer_in, equivalent, math_equal, normalised
from nvlm_train.evaluation.scorers.mathvista import extracted, mathvista
from nvlm_train.evaluation.scorers.mmmu import chosen, mmmu
from nvlm_train.evaluation.scorers.ocrbench import ocrbench
from nvlm_train.evaluation.scorers.ptb_words import words_of
from nvlm_train.evaluation.scorers.relaxed import relaxed
from nvlm_train.evaluation.scorers.vqa import answer_cleaned, textvqa, vqa_v2

QUICK = settings(max_examples=25, deadline=None)
ANSWERS = st.text(max_size=60)
FOUR = ("yellow", "red", "blue", "None of these")


@pytest.mark.parametrize(("said", "truths", "score"), [
    ("Paris", ["paris"], 1.0), ("pari", ["paris"], 0.8), ("par", ["paris"], 0.6), ("pa", ["paris"], 0.0), ("ab", ["abcd"], 0.5),
    ("", ["x"], 0.0), ("", [""], 1.0), ("12 march", ["12  March", "x"], 1 - 0 / 9), ("b", ["a", "b"], 1.0)])
def test_anls(said, truths, score):
    assert anls(said, truths).score == pytest.approx(score)


def test_anls_threshold_is_an_option():
    assert anls("pa", ["paris"], threshold=0.3).score == pytest.approx(0.4)


@given(st.text("ab", max_size=8), st.text("ab", max_size=8), st.text("ab", max_size=8))
@QUICK
def test_edit_distance_is_a_distance(one, two, three):
    assert edit_distance(one, two) == edit_distance(two, one) >= abs(len(one) - len(two))
    assert (edit_distance(one, two) == 0) == (one == two)
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)


@pytest.mark.parametrize(("said", "truth", "right"), [
    ("105", "100", True), ("95", "100", True), ("105.1", "100", False), ("-100", "100", False), ("12%", "0.12", True), ("12", "12%", False),
    ("12.5%", "12%", True), ("Yes", "yes", True), ("yes.", "yes", False), ("0", "0", True), ("0.0", "0", False), ("nan", "5", False),
    (" 5 ", "5", True), ("[1, 2]", "[1, 2]", True), ("2015", "2014", True)])     # years are numbers to it: the public rule
def test_relaxed(said, truth, right):
    assert relaxed(said, [truth]).score == float(right)
    assert relaxed(said, ["something else", truth]).score == float(right)


def test_vqa_accuracy_counts_people():
    """Leaving each person out in turn: with k of ten who agree, k times min(1, (k - 1) / 3) and 10 - k times min(1, k / 3)."""
    for agreeing in range(11):
        truths = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
        expected = (agreeing * min(1, (agreeing - 1) / 3) + (10 - agreeing) * min(1, agreeing / 3)) / 10 if agreeing else 0.0
        assert textvqa("A cat.", truths).score == vqa_v2("a cat", truths).score == pytest.approx(expected)
    assert textvqa("cat", ["cat"] * 4 + ["dog"] * 6).score == 1.0


@pytest.mark.parametrize(("text", "cleaned"), [
    ("The Cat!", "cat"), ("two dogs", "2 dogs"), ("dont", "don't"), ("3.5", "3.5"), ("1,000", "1000"), ("black/white", "black white"),
    ("St. Louis", "st louis"), ("none", "0"), ("it's", "it 's"), ("a, b", "b"), ("", "")])
def test_vqa_cleaning(text, cleaned):
    assert answer_cleaned(text) == cleaned


@pytest.mark.parametrize(("said", "found"), [
    ("B", "B"), ("(B)", "B"), ("B. red", "B"), ("The answer is B.", "B"), ("**C**", "C"), ("red", "B"), ("It looks red to me", "B"), ("b", None),
    ("A or B", None), ("", None), ("E", None), ("none of these", "D"), ("red or blue", None), ("Z", None)])
def test_letters(said, found):
    assert letter_of(said, FOUR) == found
    assert letter(said, ["B"], FOUR).score == float(found == "B")


def test_realworldqa_without_options_wants_the_same_text():
    assert letter_or_exact("Two.", ["two"], ()).score == 1.0 and letter_or_exact("about two", ["two"], ()).score == 0.0
    assert letter_or_exact("B", ["B"], FOUR).score == 1.0


@pytest.mark.parametrize(("said", "found"), [
    ("B", "B"), ("(A) or (C)", "C"), ("A and B ", "B"), ("Answer: D.", "D"), ("I would say that it is clearly red here", "B"), ("red", None),
    ("", None), ("(B) then A", "B")])
def test_mmmu_choices(said, found):
    assert chosen(said, FOUR) == found
    assert mmmu(said, ["B"], FOUR).score == float(found == "B")


@pytest.mark.parametrize(("said", "truth", "right"), [
    ("The answer is 3.14159", "3.14", True), ("So x = 1,234", "1234", True), ("a cat sat", "cat", True), ("2e3 metres", "2000", True),
    ("about 5", "6", False), ("ab", "b", False), ("it is b then", "b", True), ("", "0", False)])
def test_mmmu_open_answers(said, truth, right):
    assert mmmu(said, [truth], ()).score == float(right)


@pytest.mark.parametrize(("said", "kind", "choices", "truth"), [
    ("14", "integer", (), "14"), ("The number missing in the sequence is 14.", "integer", (), "14"), ("3 + 4 = 7", "integer", (), "7"),
    ("It costs $1.45 to buy both.", "float", (), "1.45"), ("\\boxed{0.6}", "float", (), "0.6"), ("1,234 people", "integer", (), "1234"),
    ("between 2007 and 2008: [2007, 2008].", "list", (), "[2007, 2008]"), ("(B) 8/11", "text", ("3/11", "8/11"), "8/11"),
    ("The correct answer is (B) 8/11.", "text", ("3/11", "8/11"), "8/11"), ("B", "text", FOUR, "red"), ("yelow", "text", FOUR, None),
    ("red", "text", FOUR, "red"), ("A is wrong, so the answer is C", "text", FOUR, "blue"), ("I cannot tell", "integer", (), None),
    ("", "text", FOUR, None), ("nan", "integer", (), None), ("inf", "integer", (), None)])
def test_mathvista(said, kind, choices, truth):
    precision = 2 if truth == "1.45" else 1
    mark = mathvista(said, [truth or "x"], choices, kind, precision)
    assert mark.score == float(truth is not None), (mark, extracted(said, choices, kind))


@pytest.mark.parametrize(("said", "truths", "dataset", "right"), [
    ("It says CENTRE.", ["centre"], "IIIT5K", True), ("center", ["centre"], "IIIT5K", False), ("a\nb", ["A B"], "x", True),
    ("\\frac{1}{2}", ["\\frac { 1 } { 2 }"], "HME100k", True), ("X", ["x"], "HME100k", False), ("", ["x"], "x", False)])
def test_ocrbench(said, truths, dataset, right):
    assert ocrbench(said, truths, dataset).score == float(right)


@pytest.mark.parametrize(("said", "truth", "right"), [
    ("So 3 + 4 = 7.", "7", True), ("$70,000", "70000", True), ("#### 18", "18", True), ("18 eggs, or 9 pairs", "18", False),
    ("18.00", "18", False), ("seven", "7", False), ("-3", "-3", True), ("", "0", False)])
def test_gsm8k(said, truth, right):
    assert gsm8k(said, [truth]).score == float(right)


@pytest.mark.parametrize(("said", "found"), [
    ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"), ("\\boxed{1} and \\boxed{2}", "2"), ("\\boxed 5$ and", "5"), ("\\fbox{3}", "3"),
    ("\\boxed{1", None), ("nothing", None), ("\\boxed", None), ("\\boxed{}", "")])
def test_boxes(said, found):
    assert last_boxed(said) == found


@pytest.mark.parametrize(("one", "other"), [
    ("\\frac12", "\\frac{1}{2}"), ("1/2", "\\dfrac{1}{2}"), ("0.5", "1/2"), ("\\sqrt2", "\\sqrt{2}"), ("x = 5", "5"), ("18\\%", "18"),
    ("90^\\circ", "90"), ("\\$5", "5"), ("5\\text{ cm}", "5"), ("\\left(1,2\\right)", "(1, 2)"), (".5", "0.5"), ("\\frac1{72}", "\\frac{1}{72}")])
def test_math_notations_of_the_same(one, other):
    assert equivalent(one, other) and equivalent(other, one)


def test_math_never_computes():
    assert not equivalent("2/4", "1/2") and not equivalent("\\sqrt{4}", "2") and not equivalent("0.25", "\\frac{1}{4}")
    assert answer_in("first $3$, then $4$") == "3$, then $4" and answer_in("7") == "7"
    assert math_equal("we get $\\frac12$", ["1/2"]).score == 1.0
    assert equivalent("\\frac", "\\frac") and not equivalent("\\frac", "\\sqrt")


@given(st.text("0123456789\\{}/=. $%xfracsqt^", max_size=20))
@QUICK
def test_math_is_the_same_as_itself(text):
    assert equivalent(text, text)
    try:
        normalised(text)
    except ValueError as error:
        assert str(error)


def test_cider_by_hand():
    """Two pictures, one word each, seen in one of two: rarity log 2. The same word: cosine 1 of four sizes, one of which has anything."""
    same, other = cider(["cat", "dog"], [["cat"], ["bird"]])
    assert same.score == pytest.approx(10 / 4) and other.score == 0.0
    [alone] = cider(["a cat"], [["a cat"]])      # with a single picture nothing is rare
    assert alone.score == 0.0


def test_cider_of_a_longer_caption_costs():
    """Ten pairs of words too many: exp(-100 / 72) of what the runs share."""
    reference = "one two three four five"
    plain, longer = (cider([said, "x"], [[reference], ["y"]])[0].score for said in (reference, f"{reference} " + "cat " * 10))
    assert plain == pytest.approx(10) and longer < 10 * math.exp(-100 / 72)


@pytest.mark.parametrize(("caption", "words"), [
    ("A man's dog can't run.", ["a", "man", "'s", "dog", "ca", "n't", "run"]), ('two (2) "red-haired" girls, maybe...', [
        "two", "-lrb-", "2", "-rrb-", "red-haired", "girls", "maybe"]), ("the U.S. flag at 10:30 a.m.", ["the", "u.s.", "flag", "at", "10:30", "a.m."]),
    ("$5 & 20% off - wow!", ["$", "5", "&", "20", "%", "off", "wow"]), ("cannot", ["can", "not"]), ("", []), ("...", [])])
def test_words_of_captions(caption, words):
    assert words_of(caption) == words


PROMPT = 'import math\n\n\ndef f(x):\n    """ Doc. """\n'


@pytest.mark.parametrize(("said", "program"), [
    ("    return x\n", f"{PROMPT}    return x\n"), ("return x", f"{PROMPT}    return x"), ("", PROMPT),
    ("    return x\n\ndef g():\n    pass\n", f"{PROMPT}    return x\n"), ("    y = x\nprint(f(1))", f"{PROMPT}    y = x"),
    ("Here:\n```python\ndef f(x):\n    return 1\n```\nDone", f"{PROMPT}\ndef f(x):\n    return 1\n"),
    ("```\n    return 1\n```", f"{PROMPT}    return 1"), ("```python\nx = 1\n```\n```py\ndef f(x):\n    return 2\n```",
                                                          f"{PROMPT}\ndef f(x):\n    return 2\n"),
    ("def f(x):\n    return 3", f"{PROMPT}\ndef f(x):\n    return 3"), ("```python\ndef f(x):\n    return 4", f"{PROMPT}\ndef f(x):\n    return 4")])
def test_the_program_that_an_answer_means(said, program):
    assert code_of(said, PROMPT, "f") == program


# Whatever a model may write

def marks_of(said, choices=FOUR):
    yield anls(said, ["12 march", "x"])
    yield relaxed(said, ["12%", "5", "cat"])
    yield vqa_v2(said, ["cat"] * 6 + ["2"] * 4)
    yield textvqa(said, ["cat"] * 6 + ["it's"] * 4)
    yield letter(said, ["B"], choices)
    yield letter_or_exact(said, ["two"], ())
    yield mmmu(said, ["B"], choices)
    yield mmmu(said, ["24/7", "3.43"], ())
    yield from (mathvista(said, ["5"], (), kind, 1) for kind in ("integer", "float", "list"))
    yield mathvista(said, ["red"], choices, "text", 0)
    yield ocrbench(said, ["centre"], "HME100k")
    yield gsm8k(said, ["7"])
    yield math_equal(said, ["\\frac{1}{2}"])
    yield from cider([said], [["a cat on a mat", "cat"]])


@given(ANSWERS)
@QUICK
def test_any_answer_gets_a_mark(said):
    assert all(0.0 <= mark.score <= 1.0 and isinstance(mark.extracted, str | None) for mark in marks_of(said))


def test_odd_answers_get_a_mark():
    random_ = random.Random("odd")
    for said in (*ODD, *texts(2, 60), *(choice_answer(random_, options(random_)) for _ in range(40)), "9" * 2000, "{" * 1000, "a " * 1000):
        assert all(0.0 <= mark.score <= 1.0 for mark in marks_of(said)), said[:80]


# Intervals

def test_intervals_of_right_and_wrong_are_wilsons():
    """By hand: 8 of 10 right gives 0.490 to 0.943 (E. B. Wilson, 1927); none and all stay within 0 to 1 and have a width."""
    some, none, every = share([1.0] * 8 + [0.0] * 2), share([0.0] * 10), share([1.0] * 10)
    assert (some.score, round(some.low, 3), round(some.high, 3), some.count) == (0.8, 0.490, 0.943, 10)
    assert none.low == 0.0 and 0.2 < none.high < 0.35 and every.high == pytest.approx(1.0) and 0.65 < every.low < 0.8


def test_intervals_of_other_marks_are_from_their_spread():
    """0.2 and 0.6 in turn, 100 of them: standard deviation 0.201, error 0.0201, times 1.96."""
    some = share([0.2, 0.6] * 50)
    assert some.score == pytest.approx(0.4) and some.high - some.score == pytest.approx(1.96 * 0.2010 / 10, rel=1e-3)
    assert share([3.5]).low == 3.5 and share([0.0, 0.1]).low == 0.0
    with pytest.raises(ValueError, match="no answer"):
        share([])
