"""Questions of the demo's kind that no setting was ever chosen on, for experiments to report: `builtin:exam/NAME`.

    easy_vqa        about pictures of the package's test split that `builtin:demo/easy_vqa_test` does not show
    rendered_text   about other pictures of text than `builtin:demo/rendered_text_test`, over the same held-out photographs
"""

import random
from collections.abc import Callable, Iterator

from data_prep import demo_data
from nvlm_train.contracts import Sample

SEED = 11
COUNT = 1000    # questions of each


def shapes() -> Iterator[Sample]:
    """`COUNT` questions, one to a sample, drawn evenly over those about unseen pictures."""
    asked = demo_data.shape_test_questions()
    shown = {asked[index][0].number for index in demo_data.shape_test_chosen(len(asked))}
    unseen = [index for index, (picture, _) in enumerate(asked) if picture.number not in shown]
    for index in sorted(random.Random(f"shape exam/{SEED}").sample(unseen, COUNT)):
        picture, question = asked[index]
        yield demo_data.question_sample("easy_vqa", f"exam-{index}", picture.path.read_bytes(), [question])


SETS: dict[str, Callable[[], Iterator[Sample]]] = {
    "easy_vqa": shapes,
    "rendered_text": lambda: demo_data.reading_questions("test", COUNT, SEED),
}
