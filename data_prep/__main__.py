"""`python -m data_prep VERB ...`: hands the rest of the line to the verb's `main(arguments) -> exit code`."""

import importlib
import sys

from nvlm_train.errors import NvlmError

# verb -> (module with `main`, one line of help); modules are imported only when asked for
VERBS = {
    "index": ("data_prep.shards", "index a folder of webdataset tars, so that training can read it"),
    "convert": ("data_prep.convert_command", "a public dataset in its own format becomes indexed shards"),
    "preview": ("data_prep.preview", "show samples of an indexed folder as the model will see them"),
}


def main(arguments: list[str]) -> int:
    """Exit code: that of the verb, or 2 for a wrong command or an error that a person can act on."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print("usage: python -m data_prep VERB ...\n")
        print("\n".join(f"  {name:10} {help_text}" for name, (_, help_text) in VERBS.items()))
        return 0
    if verb not in VERBS:
        print(f"data_prep has no verb {verb!r}; it has: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(VERBS[verb][0]).main(rest)
    except NvlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
