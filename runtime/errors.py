"""Every error that ptexport raises deliberately.

    PtexportError
      TemplateError    a template that cannot be parsed, or does not fit the backbone
      VerbalizerError  labels or label words that cannot be scored
      DataError        rows that cannot be read, or do not fit the task
        TooLongError     a text that is longer than the task takes, and may not be truncated
      ModelError       a backbone that cannot be loaded, or lacks a part that the method needs
      TrainError       training that cannot continue
      RunError         a run folder that is incomplete or was changed
      CheckpointError  a checkpoint trained elsewhere that cannot be imported
      ExportError      a graph that cannot be made, or differs from the model
      BundleError      a bundle folder that is incomplete or was changed
        SignatureError   a bundle that is not signed with the required key
      HubError         a repository on the hub that cannot be reached, read or written
      BusyError        texts that are not taken now, since too many others wait
      EngineError      an engine that cannot predict, in this process or any longer
      PackError        a pack that was changed, or is for another backbone
        MissingBackboneError  a pack that fits none of the open bundles
      ProviderError    an execution provider that does not run the graph
      BenchError       a measurement that cannot be made, or would compare different things
      OutputError      a path that cannot be written
      ServeError       an address, token or certificate that the server cannot use
      RequestError     a request that does not follow the protocol
        LargeRequestError  one that is larger than the server takes
        UnknownModelError  one for a model that the server does not have
      ClientGoneError  a client that hung up before its answer was ready
      DeadlineError    a request whose time was over before it was answered
      MissingExtraError  a package that this command needs and that is not installed

Messages read *where: got what, need what; do what*.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PtexportError(Exception):
    """Base class of all errors that ptexport raises deliberately."""


_REASON_LENGTH = 300


def reason(error: BaseException) -> str:
    """Return the first line of a library's error, to be quoted in a message of ours.

    A long line, which may quote a whole file, loses its middle: the start has the cause, the end the place.
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if len(line) <= _REASON_LENGTH:
        return line
    return f"{line[: _REASON_LENGTH // 2]} … {line[-_REASON_LENGTH // 2 :]}"


class TemplateError(PtexportError, ValueError):
    """A template that cannot be parsed, or does not fit the backbone: for example one with two `{text}`."""


class VerbalizerError(PtexportError, ValueError):
    """Labels or label words that cannot be scored: for example a word of two tokens."""


class DataError(PtexportError, ValueError):
    """Rows that cannot be read or do not fit the task: for example a row with an undeclared label."""


class TooLongError(DataError):
    """A text that is longer than the task takes, and may not be truncated."""


class ModelError(PtexportError, ValueError):
    """A backbone that cannot be loaded or lacks a part that the method needs: for example a language-model head."""


class TrainError(PtexportError, RuntimeError):
    """Training that cannot continue: for example a loss that is not a number."""


class RunError(PtexportError, ValueError):
    """A run folder that is incomplete or was changed: for example one without weights."""


class CheckpointError(PtexportError, ValueError):
    """A checkpoint trained elsewhere that cannot be imported: for example an adapter for another model."""


class ExportError(PtexportError, RuntimeError):
    """A graph that cannot be made, or has other logits than the model."""


class BundleError(PtexportError, ValueError):
    """A bundle folder that is incomplete or was changed: for example by one flipped byte."""


class BusyError(PtexportError, RuntimeError):
    """Texts that are not taken now, since too many others wait.

    Attributes:
        retry_after_s: seconds after which there should be room.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(PtexportError, RuntimeError):
    """An engine that cannot predict, in this process or any longer: for example a closed one."""


class SignatureError(BundleError):
    """A bundle that is not signed with the required key: for example one without `model.sig`."""


class HubError(PtexportError, RuntimeError):
    """A repository on the hub that cannot be reached, read or written: for example a private one without a token."""


class PackError(PtexportError, ValueError):
    """A pack that was changed, or does not fit a bundle: for example one for another backbone."""


class MissingBackboneError(PackError):
    """A pack that fits none of the open bundles: for example one that arrived before its bundle."""


class ProviderError(PtexportError, RuntimeError):
    """An execution provider that does not run the graph: for example CUDA without a driver."""


class BenchError(PtexportError, RuntimeError):
    """A measurement that cannot be made, or would compare different things: for example different predictions."""


class OutputError(PtexportError, OSError):
    """A path that cannot be written: for example a folder that exists already."""


class ServeError(PtexportError, OSError):
    """An address, token or certificate that the server cannot use: for example a port in use."""


class RequestError(PtexportError, ValueError):
    """A request that does not follow the protocol: for example a shape that does not match its data."""


class LargeRequestError(RequestError):
    """A request that is larger than this server takes: for example a text of a million characters."""


class UnknownModelError(RequestError):
    """A request for a model, or a version of it, that this server does not have."""


class DeadlineError(PtexportError, TimeoutError):
    """A request whose time was over before it was answered."""

    @classmethod
    def after(cls, seconds: float) -> "DeadlineError":
        """Make the error of a request that had so many seconds."""
        return cls(f"timeout: got {seconds * 1000:.3g} ms for the answer, need more; allow more time")


class ClientGoneError(PtexportError, ConnectionError):
    """A client that hung up before its answer was ready."""


class MissingExtraError(PtexportError, ImportError):
    """A package that this command needs and that is not installed."""


@contextmanager
def disk_errors(path: Path, advice: str = "check the path and its permissions, or free some space") -> Iterator[None]:
    """Raise an OutputError about `path` for any OSError in the block."""
    try:
        yield
    except PtexportError:  # some of these are OSErrors too, with a more exact message
        raise
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror or e}); {advice}") from e
