"""The batch shapes that a GPU sees.

On a GPU each batch shape may cost memory, a recorded graph or a TensorRT engine, so batches are padded to one of a few
shapes. The graph computes position ids from the attention mask, so padding does not change the logits. On the CPU
batches keep their shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ptexport.runtime.errors import DataError

MAX_BATCH_ROWS = 32
"""On a CPU more rows do not raise throughput; TensorRT allocates memory for this many of the longest rows."""
CUDA_BATCH_ROWS = 256
MAX_BATCH_TOKENS = 4096
CPU_BATCH_TOKENS = 1024
"""On a CPU more tokens per batch do not raise throughput (SmolLM2 and MiniLM, 2 cores), but cost memory and latency."""
_SHORTEST = 16
_USUAL = (8, 64)  # rows and tokens for which TensorRT optimizes its engine


@dataclass(frozen=True, slots=True)
class Buckets:
    """The batch shapes that a graph takes.

    Attributes:
        lengths: tokens of a row, ascending; the last is the most that the bundle takes. Each is at most 1.5 times the
            one before, so less than a third of a row is padding, except at the shortest length.
        most_rows: rows of the largest batch, a power of 2.
    """

    lengths: tuple[int, ...]
    most_rows: int = MAX_BATCH_ROWS

    @classmethod
    def up_to(cls, max_length: int) -> "Buckets":
        """Choose the lengths up to `max_length` tokens: 16, 24, 32, 48, 64 and so on."""
        lengths = []
        power = _SHORTEST
        while power < max_length:
            lengths += [length for length in (power, power * 3 // 2) if length < max_length]
            power *= 2
        return cls((*lengths, max_length))

    def fit(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the smallest shape that holds a batch.

        Raises:
            DataError: no shape does. Such a batch is never run, since TensorRT would build an engine for minutes.
        """
        if not (0 < rows <= self.most_rows and 0 < tokens <= self.lengths[-1]):
            need = f"need at most {self.most_rows} x {self.lengths[-1]}"
            raise DataError(f"batch: got {rows} rows of {tokens} tokens, {need}; send fewer or shorter texts at once")
        return 1 << (rows - 1).bit_length(), next(n for n in self.lengths if n >= tokens)

    def shapes(self) -> Iterator[tuple[int, int]]:
        """List all batch shapes of the engine; batches of several rows have at most `MAX_BATCH_TOKENS` tokens."""
        for tokens in self.lengths:
            for rows in (1 << power for power in range(self.most_rows.bit_length())):
                # A batch of one row more than the next smaller shape is padded to this one.
                if rows == 1 or (rows // 2 + 1) * (self._shorter(tokens) + 1) <= MAX_BATCH_TOKENS:
                    yield rows, tokens

    def profile(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return the minimum, optimum and maximum shapes for a TensorRT profile."""
        most = (self.most_rows, self.lengths[-1])
        usual_tokens = next((n for n in self.lengths if n >= _USUAL[1]), self.lengths[-1])
        return (1, self.lengths[0]), (_USUAL[0], usual_tokens), most

    def _shorter(self, tokens: int) -> int:
        return max((n for n in self.lengths if n < tokens), default=0)
