"""Which process made an object; threads and sessions do not survive a fork."""

import os

from ptexport.runtime.errors import EngineError


class Process:
    """A process. Ids of processes are reused, so an object stands for it, replaced after a fork."""

    _current: "Process"

    @classmethod
    def current(cls) -> "Process":
        """Return this process."""
        return cls._current

    def check(self, what: str) -> None:
        """Check that this is still the same process.

        Args:
            what: an object and what became of it, for the message, such as "engine: was opened".

        Raises:
            EngineError: this process was forked from that one.
        """
        if self is not Process._current:
            raise EngineError(
                f"{what} before this process was forked, and its threads stayed behind; do it again in this process"
            )

    @classmethod
    def forked(cls) -> None:
        """Tell that this process was just forked."""
        cls._current = cls()


Process.forked()
if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=Process.forked)
