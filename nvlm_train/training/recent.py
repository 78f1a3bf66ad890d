"""The newest steps of a stage: what speeds, shares and laggards are told from."""

from collections import deque

WINDOW = 20     # steps that are judged together: one step alone is full of chance, and rows are not equally long


class Recent(deque):
    """Of what is appended the last WINDOW. The first is forgotten when the second comes: the first step warms up."""

    def __init__(self) -> None:
        super().__init__(maxlen=WINDOW)
        self.seen = 0

    def append(self, item) -> None:
        if self.seen == 1:
            self.clear()
        self.seen += 1
        super().append(item)

    # -- of rows of metrics.jsonl -------------------------------------------------------------------------------------

    def mean(self, name: str) -> float:
        """Of a figure."""
        return sum(row[name] for row in self) / len(self)

    def rate(self, name: str) -> float:
        """How many a second."""
        return sum(row[name] for row in self) / sum(row["step_s"] for row in self)
