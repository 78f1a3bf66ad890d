"""Settings of what is asked while training, and of the guard: what cannot work is said before anything starts."""

from nvlm_train.config.rules import problems
from nvlm_train.config.schema import Evaluate, Guard, Run


def test_settings_that_cannot_work_are_refused():
    def told(evaluate, guard=None):
        found = problems(Run("test", "sft", evaluate=Evaluate(**evaluate), guard=Guard(**(guard or {}))))
        return [text for text in found if text.startswith(("evaluate", "guard"))]

    assert told({"benchmarks": ("demo_sums", "gsm8k_examples")}) == []      # built in, and in a package
    [text] = told({"benchmarks": ("gsm9k",), "data": {"gsm9k": "x"}})
    assert text.startswith("evaluate.benchmarks: gsm9k: there is no such benchmark; did you mean gsm8k?")
    [text] = told({"benchmarks": ("gsm8k",)})
    assert text.startswith("evaluate.data.gsm8k is needed: the folder of the public files")
    assert told({"benchmarks": ("demo_sums", "demo_sums")}) == ["evaluate.benchmarks=['demo_sums', 'demo_sums'] names one twice: once is enough"]
    [text] = told({"benchmarks": ("demo_sums",), "data": {"demo_sum": "x"}})
    assert text.startswith("evaluate.data.demo_sum: demo_sum is not among evaluate.benchmarks=['demo_sums']")
    [text] = told({"benchmarks": ("demo",)}, {"benchmarks": ("demo",)})
    assert "demo asks about pictures, which the backbone has never seen" in text
    [text] = told({"benchmarks": ("demo",)}, {"stop": True})
    assert text.startswith("guard.stop=true, but there is nothing to watch")
    [text] = told({"benchmarks": ("demo_sums",)}, {"benchmarks": ("gsm8k",)})
    assert text.startswith("guard.benchmarks: gsm8k is not among evaluate.benchmarks")
    [text] = told({"benchmarks": ("demo_sums",)}, {"margin": 101.0})
    assert text == "guard.margin=101 is counted in points of 100"
    assert any("evaluate.every=-1 must be at least 0" in text for text in told({"every": -1}))
