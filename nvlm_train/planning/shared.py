"""One context-parallel rank's part of a row, for the time it takes: `model.context` in numbers. (Its memory: `rows.rank_size`.)"""

import itertools
from dataclasses import replace

from nvlm_train.model.context import deal, pieces
from nvlm_train.planning.decoder_time import Row


def rank_row(row: Row, ranks: int) -> Row:
    """What the rank computes whose attention has most pairs. Supervised tokens and readers are taken to lie evenly."""
    if ranks == 1:
        return row
    edges = [0, *itertools.accumulate(row.segments)]
    parts = [pieces(ranges, edges) for ranges in deal(edges, ranks)]
    busiest = max(parts, key=lambda part: sum(piece.pairs for piece in part))

    def share(count: int) -> int:
        return -(-count // ranks)

    return replace(row, tokens=row.tokens // ranks, tiles=share(row.tiles), supervised=share(row.supervised), readers=share(row.readers),
                   pairs=share(row.pairs), whole=row.tokens,
                   pieces=tuple((piece.end - piece.start, piece.end - piece.first) for piece in busiest))
