"""How fast a machine is at each kind of work: the constants of the time model, each with where it comes from.

`Rates` are shares of the datasheet's figures, so that what one H100 was measured at carries over to a GPU that was not at hand.
What "measured" means here, and how well whole steps are predicted with these: docs/planning.md. To measure them on a GPU of
yours: `python -m benchmarks.calibrate`.
"""

from dataclasses import dataclass

from nvlm_train.planning.devices import Gpu


@dataclass(frozen=True)
class Rates:
    """matmul: FLOP/s of a large bf16 matrix product over the peak, measured: 773 of 989 TFLOP/s at 8,192 cubed.
    fp8: FLOP/s of a large product of fp8 numbers over twice that peak, chosen: with the casts around it, five of the six linears in
    docs/planning.md come out within 10 %, the smallest twice as fast as measured.
    attention: FLOP/s of flash attention over the peak, measured: 10.1 TFLOP (forward, and 2.5 times that backward) in 27 ms.
    memory: bytes a second of element by element kernels over the memory's bandwidth, chosen: of the eager steps in docs/planning.md the
    first would be exact with 0.93, the second with 0.56; between 0.68 and 0.83 both are within 15 %, and so are the compiled ones.
    launch_s: seconds that issuing one kernel takes the host, assumed: PyTorch's eager mode is known for 4 to 8 us.
    step_s: of every step, while the GPU waits for the host, measured: 272 ms by the clock against 262 ms of GPU time.
    link, network: share of a link's bandwidth that a ring reaches with messages as they come, assumed. Large all-reduces are said to
    reach 476 GB/s in an H100 node with NVLink SHARP, and 46 to 48 of 50 GB/s a card between nodes (github.com/NVIDIA/nccl-tests issue
    290); ours are megabytes.
    latency_s, network_latency_s: of one collective inside and between nodes, assumed.
    """

    matmul: float = 0.78
    fp8: float = 0.54
    attention: float = 0.38
    memory: float = 0.78
    launch_s: float = 6e-6
    step_s: float = 0.010
    link: float = 0.75
    network: float = 0.85
    latency_s: float = 15e-6
    network_latency_s: float = 40e-6


MEASURED = Rates()     # the defaults: one H100, and what was assumed beside it

ATTENTION_BACKWARD = 2.5    # flash attention's backward makes the scores anew: five products for the forward's two


@dataclass(frozen=True)
class Machine:
    """A GPU (or whatever was measured in its place) at its real rates: operations, bytes and calls become seconds.

    tile: sides of the output tile of a matrix product that one processor makes; block: tokens that attention works on at once.
    processors 1, tile (1, 1) and block 1 stand for a machine where shapes do not matter. overlaps: calls are issued while earlier
    ones still run (a GPU); a CPU does one after the other. number_bytes: of a number of the compute dtype. fp8_flops: of products of fp8
    numbers; 0 where there are none.

    Memory traffic of a trained parameter, in bytes, from the code that moves it: accumulate_bytes once a row (Megatron reads the bf16
    gradient, 2, and reads and writes the fp32 sum, 8); summed_bytes the same where the product adds up (it reads and writes the sum;
    whether behind its arithmetic was not measured, so none of it is hidden); update_bytes once a step for each parameter of a rank's
    own share (the norm reads the gradient, 4, clipping scales it, 8, AdamW reads it and reads and writes weight and two moments, 28, a
    bf16 copy is made, 6); clear_bytes once a step for each parameter that the rank holds (gradients are set to zero).
    """

    flops: float
    attention_flops: float
    bytes_s: float
    launch_s: float
    step_s: float = 0.0
    processors: int = 1
    tile: tuple[int, int] = (1, 1)
    block: int = 1
    number_bytes: int = 2
    accumulate_bytes: int = 10
    summed_bytes: int = 8
    update_bytes: int = 46
    clear_bytes: int = 4
    overlaps: bool = True
    fp8_flops: float = 0.0

    def matmul(self, rows: int, columns: int, inner: int, fp8: bool = False) -> float:
        """Seconds of one [rows, inner] x [inner, columns] product: its arithmetic in whole waves of tiles, or its bytes if those take
        longer. A product with few tiles is split along its inner dimension, as libraries do. fp8: of what it reads."""
        if not (rows and columns and inner):
            return 0.0
        arithmetic = 2 * rows * columns * inner / (self.fp8_flops if fp8 else self.flops) / self._busy(rows, columns, inner)
        moved = ((1 if fp8 else self.number_bytes) * (rows + columns) * inner + self.number_bytes * rows * columns) / self.bytes_s
        return max(arithmetic, moved)

    def _busy(self, rows: int, columns: int, inner: int) -> float:
        """Share of the processors' work that ends up in the product: its edges and the last wave are partly empty."""
        best = 0.0
        for high, wide in {self.tile, self.tile[::-1]}:
            down, across = -(-rows // high), -(-columns // wide)
            filled = rows * columns / (down * high * across * wide)
            for split in (1, 2, 4, 8):
                if split > 1 and inner // split < 1024:
                    break
                tiles = down * across * split
                waves = -(-tiles // self.processors)
                best = max(best, filled * tiles / (waves * self.processors))
        return best

    def attention(self, flops: float) -> float:
        return flops / self.attention_flops

    def moved(self, count: float) -> float:
        """Seconds of kernels that read and write `count` bytes."""
        return count / self.bytes_s

    def seconds(self, work: float, calls: float) -> float:
        """Of kernels that take `work` seconds and are issued by `calls` calls: the slower of the two where calls run ahead."""
        issuing = calls * self.launch_s
        return max(work, issuing) if self.overlaps else work + issuing


def machine(gpu: Gpu, rates: Rates = MEASURED) -> Machine:
    """The GPU at these rates. Tiles of 128 x 256 and blocks of 128 are what its libraries' largest kernels use."""
    return Machine(gpu.peak * rates.matmul, gpu.peak * rates.attention, gpu.bandwidth * rates.memory, rates.launch_s, rates.step_s,
                   gpu.processors, (128, 256), 128, fp8_flops=2 * gpu.peak * rates.fp8)
