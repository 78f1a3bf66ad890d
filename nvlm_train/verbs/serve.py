"""The verb that serves a model over HTTP."""

from nvlm_train import optional
from nvlm_train.config.serving import take_serve
from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import CHECKPOINT, Verb, leave_job, log_to_stderr, runs_of


def _serve(words: list[str], flags: set[str]) -> None:
    spoken, rest = take_serve(words)
    runs = runs_of(spoken.checkpoint, rest)
    found = optional.load("aiohttp")
    if isinstance(found, Exception):
        raise ConfigError(f"nvlm serve needs aiohttp: pip install 'nvlm-train[serve]' ({optional.reason(found)})")
    log_to_stderr()
    from nvlm_train.serving.command import serve_command
    serve_command(runs, spoken.checkpoint, spoken.serve)
    leave_job()


VERBS = {
    "serve": Verb(_serve, "serve a checkpoint to OpenAI's clients, and as a web page",
                  f"{CHECKPOINT}\n\nserve.port=8000 serve.host=127.0.0.1 serve.name=NAME serve.api_key_file=FILE, and limits on requests:\n"
                  "docs/serving.md lists them. Under torchrun all processes hold one model (layout.tensor, layout.pipeline).\n"
                  "SIGTERM and Ctrl-C: running requests are finished, new ones sent away."),
}
