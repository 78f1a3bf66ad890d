"""The verb that scores answers without a model."""

from pathlib import Path

from nvlm_train.config.request import Request, take_request
from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import Verb, benchmark_named, log_to_stderr


def _score(words: list[str], flags: set[str]) -> None:
    request, rest = take_request(words)
    files = [word.partition("=")[2] for word in rest if word.startswith("predictions=")]
    problems = [f"{word}: nvlm score knows eval=, eval.data=, eval.limit= and predictions=" for word in rest
                if not word.startswith("predictions=")]
    if request != Request(benchmark=request.benchmark, eval=request.eval) or request.eval.out or request.eval.max_new_tokens:
        problems.append("checkpoint=, image=, prompt=, eval.out= and eval.max_new_tokens= are for asking a model; nvlm score asks none")
    if request.benchmark is None:
        problems.append("no benchmark given: add eval=NAME")
    if len(files) != 1:
        problems.append(f"{len(files)} files of answers given: add predictions=FILE, once")
    if problems:
        raise ConfigError(problems)
    benchmark = benchmark_named(request.benchmark)
    log_to_stderr()
    from nvlm_train.evaluation.benchmark.command import score_command
    score_command(benchmark, Path(files[0]).expanduser(), request.eval.data, request.eval.limit, "--json" in flags)


VERBS = {
    "score": Verb(_score, "score a file of answers to a benchmark",
                  "eval=NAME eval.data=FOLDER predictions=FILE\n\nFILE has a JSON object a line, {\"id\": …, \"answer\": \"…\"}, for every "
                  "question of the\nbenchmark, such as nvlm eval eval=NAME writes; ids without an answer are refused. eval.limit=N if the\n"
                  "model was asked with it. No model is loaded. HumanEval's programs are run, locked down (docs/benchmarks.md).",
                  ("--json",)),
}
