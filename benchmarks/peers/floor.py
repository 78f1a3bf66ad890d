"""What decoding and resizing alone take: `data_path.floor`, a thread for each core, the pictures already in memory. No text, no tiles."""

import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from benchmarks.data_path import floor
from benchmarks.peers.work import Meter, options, tell
from nvlm_train.data.shards import ShardFolder


def pictures(shards: Path) -> list[bytes]:
    folder = ShardFolder(shards, "photographs")
    return [image for sample in range(len(folder)) for image in folder.read(sample).images]


def in_threads(jpegs: Sequence[bytes], threads: int) -> None:
    """Decode and resize all. Raises what a thread raised."""
    waiting: SimpleQueue[bytes] = SimpleQueue()
    errors: list[BaseException] = []
    for jpeg in jpegs:
        waiting.put(jpeg)

    def run() -> None:
        path = floor()
        try:
            while True:
                path(waiting.get_nowait())
        except Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    running = [Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def epoch(shards: Path, threads: int, warm: int) -> dict:
    """Every picture of the folder once, of which the first `warm` are not timed. Counts no tiles and no text."""
    jpegs = pictures(shards)
    meter = Meter(warm)
    for part in (jpegs[:warm], jpegs[warm:]):
        in_threads(part, threads)
        meter.saw(len(part), 0, 0)
    return meter.stop()


def main() -> int:
    chosen = options(__doc__.splitlines()[0], ways=("floor",))
    tell(epoch(chosen.shards, chosen.workers, chosen.warm), ["torch", "simplejpeg"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
