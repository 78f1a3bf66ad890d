"""The words of `nvlm compare`."""

import pytest

from nvlm_train.config.request import Comparison, Eval, take_comparison
from nvlm_train.errors import ConfigError

TWO = "designs=nvlm_d_tiny,nvlm_x_tiny"


def test_words_are_shared_or_a_designs_own():
    asked, shared = take_comparison([
        TWO, 'designs.no_tags=recipe=nvlm_d_tiny stages.sft.model.tags.kind=none "model.tokenizer=my file.json"', "seeds=1,2,3",
        "processes=4", "eval.tasks.ocr=shards/ocr", "eval.limit=50", "run.dir=runs/tags", "train.steps=9", "~data.blend.text"])
    assert asked == Comparison(
        designs={"nvlm_d_tiny": ("recipe=nvlm_d_tiny",), "nvlm_x_tiny": ("recipe=nvlm_x_tiny",),
                 "no_tags": ("recipe=nvlm_d_tiny", "stages.sft.model.tags.kind=none", "model.tokenizer=my file.json")},
        seeds=(1, 2, 3), processes=4, tasks={"ocr": "shards/ocr"}, dir="runs/tags", eval=Eval(limit=50))
    assert shared == ["train.steps=9", "~data.blend.text"]


def test_lists_may_stand_in_brackets():
    asked, _ = take_comparison(["designs=[nvlm_d_tiny, nvlm_x_tiny]", "seeds=[5]"])
    assert list(asked.designs) == ["nvlm_d_tiny", "nvlm_x_tiny"] and asked.seeds == (5,)


@pytest.mark.parametrize(("words", "sentence"), [
    ([], "0 designs given, and it takes two to compare"),
    (["designs=nvlm_d_tiny"], "1 designs given"),
    ([TWO, "designs.a/b=recipe=x"], "'a/b' cannot name a design"),
    ([TWO, "designs.a="], "designs.a: no settings given"),
    ([TWO, 'designs.a=recipe="x'], "designs.a: No closing quotation"),
    ([TWO, "designs.a=recipe=nvlm_d_tiny train.seed=3"], "designs.a: train.seed=3 is the comparison's to say"),
    ([TWO, "designs.a=recipe=nvlm_d_tiny run.dir=x"], "designs.a: run.dir=x is the comparison's to say"),
    ([TWO, "seeds=1,two"], "seeds: expected a whole number, got 'two'"),
    ([TWO, "seeds=1,1"], "seeds=1,1 must differ"),
    ([TWO, "processes=0"], "processes=0"),
    ([TWO, "eval.data=x"], "name questions by eval.tasks.NAME=FOLDER"),
    ([TWO, "checkpoint=x"], "belong to eval and generate"),
    ([TWO, "eval.limt=3"], "eval.limt: unknown key; did you mean eval.limit?"),
])
def test_wrong_words(words, sentence):
    with pytest.raises(ConfigError) as error:
        take_comparison(words)
    assert sentence in str(error.value)
