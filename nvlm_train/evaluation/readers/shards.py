"""Folders of our own shards, such as the demo's questions."""

from collections.abc import Collection, Iterator, Sequence

from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused
from nvlm_train.evaluation.readers.records import Record
from nvlm_train.evaluation.tasks import truths_of


class Shards:
    """The samples of several folders, one after the other: the text that is asked, the truths, pictures, task."""

    def __init__(self, folders: Sequence[str]):
        """Raises DataError."""
        self._folders = [ShardFolder(folder, str(folder).rstrip("/").rpartition("/")[2]) for folder in folders]
        self.where = ", ".join(folders)

    def count(self) -> int:
        return sum(map(len, self._folders))

    def rows(self, wanted: Collection[int]) -> Iterator[Record]:
        first, left = 0, sorted(wanted)
        for folder in self._folders:
            for number in left:
                if first <= number < first + len(folder):
                    yield self._record(folder, number - first)
            first += len(folder)

    def _record(self, folder: ShardFolder, number: int) -> Record:
        try:
            sample = folder.read(number)
        except SampleRefused as refusal:
            raise DataError(f"{folder.path}: question {number} cannot be read: {refusal}") from refusal
        truths = truths_of(sample)
        turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
        if len(turns) != 1 or turns[0].role != "user":
            raise DataError(f"{sample.key} of {folder.path}: a benchmark's sample is one question, this has {len(turns)} turns before its "
                            "answer")
        return {"id": f"{sample.source}/{sample.key}", "question": turns[0].text, "answers": list(truths), "images": list(sample.images),
                "task": str(sample.meta.get("task", sample.source))}
