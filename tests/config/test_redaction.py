"""No secret gets past `redact`, wherever it stands; and nothing else is taken for one."""

import io
import logging
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvlm_train.redaction import (
    REDACTED,
    RedactingFormatter,
    is_secret,
    of_environment,
    redact,
    redact_text,
    redact_tracebacks,
)

NAMES = ["token", "hub_token", "HF_TOKEN", "api_key", "apiKey", "WANDB_API_KEY", "password", "passwd", "my-secret", "credentials",
         "AWS_SECRET_ACCESS_KEY", "aws_access_key_id", "account_key", "run.private_key", "Authorization", "X-Amz-Signature"]
# What passwords are made of, less what ends a word on a command line or in an address.
SECRETS = st.text("abcdefghXYZ0123456789_-+.!~^%$", min_size=6, max_size=30).map(lambda text: f"q{text}z")
PROSE = st.text("abc def:,\n", max_size=20)


def leaks(secret: str, told: object) -> bool:
    return secret in str(told)


@given(st.sampled_from(NAMES), SECRETS, PROSE, PROSE)
def test_no_assignment_leaks_its_value(name, secret, before, after):
    for text in (f"{name}={secret}", f"--{name}={secret}", f'{name}="{secret} {secret}"', f"{name}='{secret}'",
                 f'{{"{name}": "{secret}"}}', f"{{'{name}': '{secret}'}}"):
        told = redact_text(f"{before} {text} {after}")
        assert not leaks(secret, told) and REDACTED in told
    assert not leaks(secret, redact_text(f"a: 1\n  {name}: {secret}\nb: 2"))     # a line of YAML


@given(st.sampled_from(["https", "s3", "gs", "postgresql", "git+ssh"]), st.text("abcZ09", max_size=8),
       st.text("abcZ09@+:!~", min_size=3, max_size=20).map(lambda text: f"q{text}z"), PROSE)
def test_no_address_leaks_its_login(protocol, user, secret, around):
    told = redact_text(f"{around} {protocol}://{user}:{secret}@host.example:8080/a/b {around}")
    assert not leaks(secret, told)
    assert f"{protocol}://{REDACTED}@host.example:8080/a/b" in told


@given(SECRETS)
def test_nor_does_its_query_or_a_password_with_slashes(secret):
    assert redact_text(f"https://host/x?a=1&X-Amz-Signature={secret}&b=2") == f"https://host/x?a=1&X-Amz-Signature={REDACTED}&b=2"
    assert redact_text(f"s3://user:{secret}/{secret}@host/x") == f"s3://{REDACTED}@host/x"


@given(st.recursive(st.none() | st.booleans() | st.integers() | SECRETS.map(lambda text: f"s3://u:{text}@h/x"),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES + ["data", "path"]), inner,
                                                                                max_size=3), max_leaves=12), SECRETS)
def test_no_tree_leaks_and_redacting_twice_changes_nothing(tree, secret):
    tree = {"settings": tree, "hub_token": secret, "words": [f"data.x.password={secret}"], f"env:TOKEN={secret}": 1,
            "deep": ({"api_key": [secret]},)}
    told = redact(tree)
    assert not leaks(secret, told) and "s3://u:" not in str(told)
    assert redact(told) == told


@pytest.mark.parametrize("text", [
    "loss 1.5 at step 3, 2,048 tokens=512 tokens_per_s=3.4", "model.class_token=true", "key=sample/00017", "tokenizer=tiny",
    "http://127.0.0.1:29500/path/@version", "mail me@example.org", "KeyError: 'token'", "the token: 5 of them", "hub_token=null",
    "data.blend.web.path=s3://bucket/shards", "monkey=banana", "compass: north", "data.hub_token: unknown key; did you mean data.path?", "sha256=0123456789abcdef",
])
def test_ordinary_text_stays_as_it_is(text):
    assert redact_text(text) == text


@pytest.mark.parametrize("text", ["hf_abcdefghijklmnopqrstuv", "ghp_0123456789abcdefghijABCDEF", "AKIAIOSFODNN7EXAMPLE",
                                  "Authorization: Bearer abcdefgh12345", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"])
def test_well_known_shapes_are_secrets_by_themselves(text):
    assert text.split()[-1] not in redact_text(f"refused: {text} at 3") and REDACTED in redact_text(text)


def test_secrets_of_the_environment_are_known_by_the_names_of_their_variables():
    known = of_environment({"WANDB_API_KEY": "correct horse", "HOME": "/home/ada", "HF_TOKEN": "short", "OPENAI_API_KEY": "correct horse 2",
                            "GIT_TOKEN_FILE": "/run/secrets/git", "XDG_SESSION_TYPE": "tty-is-long"})
    assert known == {"correct horse", "correct horse 2"}
    assert redact_text("the server said: bad login 'correct horse 2'", known) == f"the server said: bad login '{REDACTED}'"


def test_time_grows_with_the_length_of_a_text_and_no_faster():
    """Data addresses are a megabyte without a space. Ten times the text may take forty times as long; with a
    pattern that looks on from every place it would be a hundred."""
    for unit in ("A", "A+/", "a.", "x:", "://", "a://", "a://b:c"):
        took = []
        for length in (5_000, 50_000):
            text = unit * (length // len(unit))
            began = time.process_time()     # of this process alone, whatever else runs
            assert redact_text(text) == text
            took.append(time.process_time() - began)
        assert took[1] < 40 * took[0] + 0.2, unit


def test_log_lines_are_told_without_secrets_tracebacks_too():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s", {"correct horse"}))
    log = logging.getLogger("test.redaction")
    log.addHandler(handler)
    try:
        raise OSError("cannot open s3://me:hunter2@host/x")
    except OSError:
        log.warning("at %s with %s", "https://me:hunter2@host/y", "correct horse", exc_info=True)
    told = out.getvalue()
    assert "hunter2" not in told and "correct horse" not in told
    assert told.startswith(f"WARNING at https://{REDACTED}@host/y with {REDACTED}\nTraceback") and "OSError: cannot open" in told


def test_what_ends_a_process_or_a_thread_is_told_without_secrets(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    told = []
    redact_tracebacks({"correct horse"}, told.append)

    def fail():
        raise ValueError("password=hunter2 correct horse")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError:
        sys.excepthook(*sys.exc_info())
    assert len(told) == 2
    assert all(f"ValueError: password={REDACTED} {REDACTED}" in text and "in fail" in text for text in told)


def test_tokens_that_are_counted_are_no_secret():
    assert not any(map(is_secret, ("max_tokens", "tokens", "tokenizer", "key", "keys")))
