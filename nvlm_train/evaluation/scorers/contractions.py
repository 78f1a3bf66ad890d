"""Contractions that VQA's scripts give their apostrophe back. The list is theirs (GT-Vision-Lab/VQA), its slips included.

Most follow a rule: a contraction is known by its letters alone, and one with two apostrophes also without either of them.
"""

# Known without their one apostrophe.
_SINGLE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've wasn't we've
weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've
wouldn't y'all you'd you'll you're you've"""
# Known without the first and without the second of their two apostrophes.
_DOUBLE = """couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"""
_OTHERS = {
    "let's": "let's", "she's": "she's", "somebody'd": "somebodyd", "twas": "'twas", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}


def _without(text: str, number: int) -> str:
    """`text` without its apostrophe of that number, from 0."""
    parts = text.split("'")
    return "'".join([*parts[:number], parts[number] + parts[number + 1], *parts[number + 2:]])


CONTRACTIONS = {_without(word, 0): word for word in _SINGLE.split()} | {
    _without(word, number): word for word in _DOUBLE.split() for number in (0, 1)} | _OTHERS
