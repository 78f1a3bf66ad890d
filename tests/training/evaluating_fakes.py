"""A run directory, and a model whose answers are known before and after every step, for the hook that asks benchmarks."""

from data_prep.shards import write_shards
from nvlm_train.config.schema import Connector, Data, Evaluate, Guard, Language, Model, Run, RunSettings, Train, Vision
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.training.evaluating import Around, Evaluation
from tests.evaluation.fakes import LookupEngine

TOKENIZER = load_tokenizer("tiny")
MODEL = Model(vision=Vision(tile_size=32, patch=8), connector=Connector(), language=Language(vocab=1024))
ENCODER = Encoder(MODEL, Data(format="chat", max_tokens=240, pack_tokens=256, max_tiles=4, pack_tiles=8), TOKENIZER)
OPENING = TOKENIZER.encode("assistant\n")
COUNT = 20      # questions, the truth of each is "yes"


class Talker(LookupEngine):
    """Answers "yes" to the first `right` questions, and "no" to the others. Counts what it was asked."""

    def __init__(self, right=COUNT, **place):
        self.right, self.asked = right, 0
        super().__init__(self._next, **place)

    def _next(self, tokens):
        if OPENING not in [tokens[i:i + len(OPENING)] for i in range(len(tokens))]:
            return 0        # padding
        start = max(i for i in range(len(tokens) + 1) if tokens[max(0, i - len(OPENING)):i] == OPENING)
        number = int(TOKENIZER.decode(tokens).split("Number ")[1].split("?")[0])
        answer = [*TOKENIZER.encode("yes" if number < self.right else "no"), TOKENIZER.eos_id]
        self.asked += len(tokens) == start
        return answer[len(tokens) - start]

    def any_rank(self, flag):
        return any(self.gather_objects(flag))


class Setting:
    """A run directory with questions, and what the hook tells the rest of its job."""

    def __init__(self, folder):
        self.folder, self.dir = folder, folder / "run"
        self.dir.mkdir(parents=True)
        write_shards(folder / "quiz", [Sample(f"q{n}", "quiz", (), (Turn("user", f"Number {n}?"), Turn("assistant", "yes")), {})
                                       for n in range(COUNT)])
        self.saves, self.beats, self.words, self.stopping = [], [], [], False

    def run(self, evaluate=None, guard=None, stage="sft", trainable=("connector", "language"), save_every=10):
        asked = {"benchmarks": ("demo_sums",), "data": {"demo_sums": str(self.folder / "quiz")}, **(evaluate or {})}
        return Run("test", stage, MODEL, Train(steps=100, trainable=trainable), run=RunSettings(dir=str(self.dir), save_every=save_every),
                   evaluate=Evaluate(**asked), guard=Guard(**(guard or {})))

    def hook(self, engine, sinks=(), weights="the backbones", **settings):
        around = Around(weights, self.beats.append, lambda: self.stopping, self.saves.append, self.words.append)
        return Evaluation(self.run(**settings), engine, ENCODER, sinks, around)
