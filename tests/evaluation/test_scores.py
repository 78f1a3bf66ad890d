import pytest

from nvlm_train.evaluation.scores import is_correct, normalise, score


@pytest.mark.parametrize("text, plain", [("  A  Red\nCircle. ", "red circle"), ("Yes.", "yes"), ("the", "the"), ("-4", "-4"),
                                         ("3.5", "3.5"), ("An apple", "apple"), ("another", "another"), ("", "")])
def test_normalise(text, plain):
    assert normalise(text) == plain


def test_any_accepted_answer_is_right():
    assert is_correct("The grey.", ["gray", "grey"])
    assert not is_correct("greyish", ["gray", "grey"])


def test_score_gives_accuracy_and_what_guessing_would_give():
    result = score([(True, ["yes"]), (False, ["Yes."]), (False, ["no"]), (True, ["blue"])])
    assert (result.accuracy, result.count, result.majority, result.majority_accuracy) == (0.5, 4, "yes", 0.5)


def test_majority_counts_every_accepted_answer():
    assert score([(False, ["a b", "c"]), (False, ["c"]), (False, ["c"])]).majority_accuracy == 1.0


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no question"):
        score([])
