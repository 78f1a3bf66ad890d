"""Verb `check`: every sample on its own. Pictures are decoded, text is repaired, and what could hurt training is left out."""

from dataclasses import dataclass, field, replace

from data_prep.command import existing_folder, parser_of, show_pass
from data_prep.curate.conversation import Text, check_turns
from data_prep.curate.extra import package
from data_prep.curate.options import add_options, from_options, limit
from data_prep.curate.pictures import Pictures, check_picture
from data_prep.curate.repetition import Repetition, refuse_repetition
from data_prep.curate.scoring import load_scorer, score
from data_prep.passes import Judged, Kept
from nvlm_train.contracts import Sample
from nvlm_train.errors import SampleRefused


@dataclass(frozen=True)
class Scoring:
    """A model that scores pictures against answers; samples without pictures are not scored."""

    scorer: str = limit("", "what makes one, such as data_prep.curate.clip:load=FOLDER; none", metavar="MODULE:FACTORY")
    min_score: float = limit(0.0, "lowest score that is kept", metavar="SCORE")


@dataclass(frozen=True)
class Check:
    """A judge of single samples. The reasons and repairs are listed in docs/curation.md."""

    pictures: Pictures = field(default_factory=Pictures)
    text: Text = field(default_factory=Text)
    repetition: Repetition = field(default_factory=Repetition)
    scoring: Scoring = field(default_factory=Scoring)

    def __call__(self, sample: Sample) -> Kept:
        """Raises SampleRefused with the first reason found: text before pictures, which cost more to look at."""
        turns, repairs = check_turns(sample.turns, len(sample.images), self.text)
        for turn in turns:
            if turn.role == "assistant":
                refuse_repetition(turn.text, self.repetition)
        if len(sample.images) > self.pictures.max_images:
            raise SampleRefused("too_many_images", f"{len(sample.images)} pictures, the limit is {self.pictures.max_images}")
        checked = [check_picture(image, self.pictures) for image in sample.images]
        repairs += tuple(sorted({repair for _, of_one in checked for repair in of_one}))
        sample = replace(sample, turns=turns, images=tuple(image for image, _ in checked))
        if self.scoring.scorer and sample.images:
            value = score(sample, self.scoring.scorer, self.scoring.min_score)
            sample = replace(sample, meta={**sample.meta, "score": round(value, 6)})
        return Kept(sample, repairs)


def main(arguments: list[str]) -> int:
    """`python -m data_prep check IN OUT ...`"""
    parser = parser_of("check", __doc__)
    add_options(parser, Pictures, Text, Repetition, Scoring)
    options = parser.parse_args(arguments)
    judge = Check(*(from_options(kind, options) for kind in (Pictures, Text, Repetition, Scoring)))
    if judge.scoring.scorer:
        load_scorer(judge.scoring.scorer)   # before any process starts
    if judge.text.text_repair:
        package("ftfy", "the repair of text (--no-text-repair leaves it out)")
    show_pass("check", Judged(existing_folder(options.source, "check"), judge), options.out, options.workers)
    return 0
