"""Tokens to text in pieces: nothing is lost, nothing is halved, and stop strings cut where they should."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.generation.text_stream import Detokenizer, StopStrings, TextStream

TOKENIZER = load_tokenizer("tiny")

words = st.text(st.sampled_from("ab \nä€𝄞\ufffd"), max_size=12) | st.text(max_size=12)
tokens = st.binary(max_size=60).map(lambda drawn: [(a << 8 | b) % TOKENIZER.vocab_size for a, b in zip(drawn[::2], drawn[1::2])])


def pieces_of(ids):
    stream = Detokenizer(TOKENIZER.decode)
    return [*(stream.push(id) for id in ids), stream.finish()]


@settings(max_examples=200, deadline=None)
@given(tokens)
def test_pieces_put_together_are_the_text(ids):
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids)


@settings(max_examples=200, deadline=None)
@given(words)
def test_no_piece_ends_within_a_character(text):
    """Where the text itself has no replacement character, none is ever shown."""
    text = text.replace("\ufffd", "")
    assert "\ufffd" not in "".join(pieces_of(TOKENIZER.encode(text)))


def test_a_character_of_several_tokens_comes_whole():
    ids = TOKENIZER.encode("𝄞")
    assert len(ids) == 4
    assert pieces_of([*TOKENIZER.encode("a"), *ids]) == ["a", "", "", "", "𝄞", ""]


def test_bytes_that_become_no_character_are_told_at_the_end():
    ids = TOKENIZER.encode("𝄞")[:2]
    assert pieces_of(ids) == ["", "", TOKENIZER.decode(ids)]


def first_stop(text, stops):
    """By the definition: the stop string that is whole first, of two the longer."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[:min(starts)]
    return None




@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from("abc"), max_size=4), max_size=12),
       st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=5), max_size=4))
def test_stop_strings_cut_alike_whatever_the_pieces(pieces, stops):
    stream = StopStrings(stops)
    given_ = "".join(stream.push(piece) for piece in pieces)
    expected = first_stop("".join(pieces), stops)
    assert stream.stopped == (expected is not None)
    assert given_ + stream.finish() == ("".join(pieces) if expected is None else expected)


@settings(max_examples=200, deadline=None)
@given(words, st.lists(words.filter(bool), max_size=3))
def test_both_together_over_real_tokens(text, stops):
    stream = TextStream(TOKENIZER.decode, stops)
    ids = TOKENIZER.encode(text)
    out = "".join(stream.push(id) for id in ids) + stream.finish()
    whole = TOKENIZER.decode(ids)
    expected = first_stop(whole, stops)
    assert out == (whole if expected is None else expected)


def test_only_what_may_become_a_stop_string_is_kept_back():
    stream = StopStrings(["###"])
    assert [stream.push(piece) for piece in ("a#", "b##", "c", "#", "##d")] == ["a", "#b", "##c", "", ""]
    assert stream.stopped
