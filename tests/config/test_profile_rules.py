import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.profile_rules import profiled_steps
from nvlm_train.errors import ConfigError

WORDS = ("recipe=nvlm_d_tiny", "train.steps=10")


@pytest.mark.parametrize("text, steps", [("5", [5]), ("1-10", [*range(1, 11)]), ("5-7", [5, 6, 7]), ("1-1", [1])])
def test_steps_are_one_or_a_range(text, steps):
    assert list(profiled_steps(text)) == steps


@pytest.mark.parametrize("text", ["", "0", "-3", "5-", "7-5", "1,2", "5..7", "five", "1-11", "٣"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        profiled_steps(text)


def test_the_word_is_short_for_the_setting():
    assert [run.run.profile for run in compose([*WORDS, "profile=5-7"])] == ["5-7", "5-7"]
    assert compose([*WORDS, "run.profile=5"])[0].run.profile == "5"
    assert compose(WORDS)[0].run.profile is None


def test_steps_that_a_stage_does_not_have_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"run\.profile=9-11: the stage has train\.steps=10"):
        compose([*WORDS, "profile=9-11"])
    with pytest.raises(ConfigError, match=r"run\.profile=7-5: the last step, 5, is before the first, 7"):
        compose([*WORDS, "profile=7-5"])
