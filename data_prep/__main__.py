"""`python -m data_prep VERB ...`: hands the rest of the line to the verb's `main(arguments) -> exit code`."""

import importlib
import sys

from nvlm_train.errors import NvlmError

# verb -> (module with `main`, one line of help), in the order of use; modules are imported only when asked for
VERBS = {
    "catalog": ("data_prep.catalog_command", "the datasets of the paper: what they are, and how they are read"),
    "convert": ("data_prep.convert_command", "a public dataset in its own format becomes indexed shards"),
    "check": ("data_prep.curate.check", "decode every picture, repair text, and leave out what could hurt training"),
    "dedup": ("data_prep.curate.dedup", "of samples that say the same, keep one"),
    "decontaminate": ("data_prep.curate.decontaminate", "leave out what stands in a benchmark"),
    "shard": ("data_prep.curate.shard", "merge folders, shuffle them, and cut them into shards of even size"),
    "index": ("data_prep.shards", "index a folder of webdataset tars, so that training can read it"),
    "stats": ("data_prep.curate.stats", "what is in a folder: sizes, tiles, lengths, answers, tasks"),
    "preview": ("data_prep.preview", "show samples of an indexed folder as the model will see them"),
    "verify": ("data_prep.curate.verify", "compare shards and samples with their hashes, and counts along a chain of passes"),
}


def main(arguments: list[str]) -> int:
    """Exit code: that of the verb, or 2 for a wrong command or an error that a person can act on."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print("usage: python -m data_prep VERB ...\n")
        print("\n".join(f"  {name:13} {help_text}" for name, (_, help_text) in VERBS.items()))
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
