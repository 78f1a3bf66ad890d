"""Words of a caption as CIDEr counts them: those of the Penn Treebank, in lower case, without punctuation.

The public scorer runs Stanford's tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) in Java and drops the marks of a list
(tylin/coco-caption, `tokenizer/ptbtokenizer.py`). These are its rules as far as captions need them; docs/benchmarks.md says how far
the two agree, and on what they do not.
"""

import re

DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_SAME = {"‘": "'", "’": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... ", "\u00a0": " "}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TWO_WORDS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"), "gimme": ("gim", "me"),
              "lemme": ("lem", "me"), "y'all": ("y'", "all"), "'tis": ("'t", "is"), "'twas": ("'t", "was")}
_ABBREVIATED = "mr|mrs|ms|dr|prof|st|ave|blvd|rd|jr|sr|vs|etc|inc|co|corp|ltd|gen|sgt|capt|lt|mt|jan|feb|apr|aug|sept|oct|nov|dec|ft"
_TOKEN = re.compile(rf"""
    \.{{3,}} | --+ | [?!]+
  | (?:cannot|gonna|gotta|wanna|gimme|lemme|y'all|'tis|'twas)(?![\w'])
  | o'clock(?!\w)
  | (?:[^\W\d_]\.){{2,}} | (?<!\w)[^\W\d_]\.(?!\w)       # u.s. a.m. j.
  | (?:{_ABBREVIATED})\.(?!\w)
  | no\.(?=[ ]?\d)                                      # no. 5
  | [^\W_]+?(?=n't(?!\w)) | n't(?!\w)
  | '(?:s|m|d|re|ve|ll)(?!\w)
  | \d+(?:[.,:/]\d+)*(?:[^\W_]+)?(?:-[^\W_]+)*          # 3.5 10:30 1,000 2nd 1980
  | \.\d+
  | [#@][^\W\d_]\w*
  | [^\W_]+(?:[-/.&_][^\W_]+)*                          # red-haired black/white
  | \S
""", re.VERBOSE)


def words_of(caption: str) -> list[str]:
    """The words of a caption, in order."""
    for mark, plain in _SAME.items():
        caption = caption.replace(mark, plain)
    found = []
    for token in _TOKEN.findall(caption.lower()):
        if token in _TWO_WORDS:
            found += _TWO_WORDS[token]
        elif token not in DROPPED and token != '"':
            found.append(_BRACKETS.get(token, token))
    return found
