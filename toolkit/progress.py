"""What long work reports while it runs: one protocol for training, export, evaluation and benches."""

from typing import Protocol


class Progress(Protocol):
    """What long work reports; the command line shows it as bars, or writes it as JSON lines."""

    def step(self, done: int, total: int, loss: float) -> None:
        """Report an optimizer step."""

    def epoch(self, number: int, dev_accuracy: float) -> None:
        """Report an evaluation on dev."""

    def stage(self, name: str) -> None:
        """Report what begins."""

    def note(self, message: str) -> None:
        """Say how far it is, in words."""

    def rows(self, done: int, total: int | None) -> None:
        """Report rows processed; None: how many there are is not known."""

    def warning(self, message: str) -> None:
        """Say what may make the result other than expected."""
