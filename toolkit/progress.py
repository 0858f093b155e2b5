"""Progress of long work: one protocol for training, export, evaluation and benchmarks."""

from typing import Protocol


class Progress(Protocol):
    """Events of long work. The command line shows them as progress bars or writes them as JSON lines."""

    def step(self, done: int, total: int, loss: float) -> None:
        """Report an optimizer step.

        Args:
            done: steps taken.
            total: steps of all epochs.
            loss: loss of this step, in nats.
        """

    def epoch(self, number: int, dev_accuracy: float) -> None:
        """Report an evaluation on the dev rows.

        Args:
            number: number of the epoch, from 1.
            dev_accuracy: share of correct predictions, 0 to 1.
        """

    def stage(self, name: str) -> None:
        """Report the start of a stage of unknown duration."""

    def note(self, message: str) -> None:
        """Report an intermediate result, as a sentence."""

    def choice(self, message: str) -> None:
        """Report what was chosen for the user, as a sentence; shown even without a terminal."""

    def rows(self, done: int, total: int | None) -> None:
        """Report processed rows; `total` is None if unknown."""

    def warning(self, message: str) -> None:
        """Report something that may affect the result."""
