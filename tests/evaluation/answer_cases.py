"""Answers that models might give, and some that they should not: seeded, so that a difference found once is found again."""

import random
import string
from collections.abc import Iterator, Sequence

WORDS = ("a", "an", "the", "cat", "dog", "Dog", "two", "red", "blue", "none", "7", "ten", "it's", "its", "dont", "don't",
         "cant", "stop", "sign", "hong", "kong", "Paris", "u.s.", "mr.", "new", "york", "black/white", "t-shirt", "left",
         "right", "50%", "3.5", "1,000", "2007", "$5", "yes", "no", "maybe", "umbrella", "coca-cola")
NUMBERS = ("0", "1", "5", "-3", "0.5", "3.14", "12.50", "1,234", "1e3", "2e-4", "7%", "5.0%", "0%", "nan", "inf", "1_000", " 8 ", ".5", "007")
FRAMES = ("{}", " {} ", "{}.", "{}!", "({})", '"{}"', "The answer is {}.", "answer: {}", "So, {}\n", "It is\t{}", "{}, I think", "**{}**",
          "Final answer: {}", "= {}", "x = {}", "because it could be {}", "\\boxed{{{}}}", "${}$", "#### {}", "{} {}")
ODD = ("", " ", "\n", ".", "...", "???", "a", "A", "the", "I cannot tell.", "ß", "İ", "日本", "５０％", "\u00a0", "\x00", "'", '"', "()", "%", "-",
       "{", "}", "$", "\\", "\\frac", "\\sqrt", "{}", "x" * 300)


def texts(seed: int, count: int) -> Iterator[str]:
    """Short texts: words, numbers, both in sentences, oddities, noise."""
    random_ = random.Random(f"texts/{seed}")
    for _ in range(count):
        yield text(random_)


def text(random_: random.Random) -> str:
    kind = random_.random()
    if kind < 0.1:
        return random_.choice(ODD)
    if kind < 0.2:
        return "".join(random_.choice(string.printable + "’éß１") for _ in range(random_.randint(0, 12)))
    core = random_.choice(NUMBERS) if kind < 0.5 else " ".join(random_.choices(WORDS, k=random_.randint(1, 4)))
    return random_.choice(FRAMES).replace("{} {}", "{}").format(core) if kind < 0.8 else core


def near(random_: random.Random, truth: str) -> str:
    """The truth, or something like it."""
    change = random_.randrange(7)
    if change == 0:
        return truth
    if change == 1:
        return truth.upper()
    if change == 2 and truth:
        place = random_.randrange(len(truth))
        return truth[:place] + random_.choice("abc1 .") + truth[place + 1:]
    if change == 3:
        return f" {truth}. "
    if change == 4:
        return random_.choice(FRAMES).replace("{} {}", "{}").format(truth)
    if change == 5:
        return truth[:len(truth) // 2]
    return text(random_)


def number_near(random_: random.Random, truth: str) -> str:
    """A number within or beyond a few per cent of the truth, if it is one."""
    try:
        value = float(truth.rstrip("%").replace(",", ""))
    except ValueError:
        return near(random_, truth)
    changed = value * random_.choice((1, 1.049, 1.05, 1.051, 0.95, 0.949, 1.2, -1))
    return random_.choice(("{}", "{}%", " {} ", "{:.3f}", "{:.0f}")).format(changed)


def options(random_: random.Random) -> list[str]:
    """Two to six different texts."""
    pool: Sequence[str] = (*WORDS, *NUMBERS, "all of the above", "A", "option B", "x = 3", "$5.00", "C. elegans")
    return random_.sample(pool, random_.randint(2, 6))


def choice_answer(random_: random.Random, choices: Sequence[str]) -> str:
    """A letter in some dress, the text of an option, talk about several, or anything."""
    letters = string.ascii_uppercase[:len(choices) + 1]
    first, second = random_.choice(letters), random_.choice(letters)
    told = random_.choice(choices)
    forms = (first, f"{first}.", f"({first})", f"{first}:", f" {first} ", f"{first})", f"{first}, because", f"**{first}**", f"{first}. {told}",
             f"The answer is {first}.", f"The correct answer is ({first}) {told}", f"It is not {first} but {second}", f"({first}) or ({second})",
             f"{first} and {second}", told, told.upper(), f"I think that it must be {told} in the end", f"{first.lower()}",
             f"Answer: {first}\n", f"A good look at this says {second}", f"We exclude {first}. and {second}. So it is unclear to me")
    return random_.choice(forms) if random_.random() < 0.9 else text(random_)


MATH = ("5", "-3", "\\frac{1}{2}", "\\frac12", "\\frac1{72}", "\\frac{72}1", "\\dfrac{3}{4}", "\\tfrac34", "1/2", "a/b", "3/0", "-0/5", "+1/2",
        "0.5", ".5", "0.50", "\\sqrt2", "\\sqrt{2}", "3\\sqrt 5", "2\\sqrt{3}\\text{ cm}", "5\\text{ inches}", "5 \\text{ m}\\text{ s}",
        "90^\\circ", "90^{\\circ}", "\\$18", "18\\%", "18%", "x=5", "k = 7", "abc=5", "y=2x+1", "(1,2)", "\\left(1,2\\right)", "[0,\\infty)",
        "\\!1,000", "1,000", "\\frac", "\\sqrt", "\\frac1", "\\frac{1}", "", " ", "\\pi", "2\\pi r", "{.5}", "1 .5", "\\\\frac{1}{2}", "x\n=\n5",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "1_0/2", "\\text{even}", "\\text{ even}", "E", "11/2", "-11/2", "1//2")


def math_text(random_: random.Random) -> str:
    if random_.random() < 0.8:
        return random_.choice(MATH)
    return "".join(random_.choices(("\\frac", "\\sqrt", "{", "}", "1", "2", "x", "/", "=", " ", ".", "\\text{ ", "%", "^\\circ", "\\left", "tfrac"),
                                   k=random_.randint(1, 8)))
