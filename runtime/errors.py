"""Every error ptexport raises on purpose.

    PtexportError
      TemplateError    a template that cannot be parsed, or not on this backbone
      VerbalizerError  labels or label words that cannot be read out
      DataError        rows that cannot be read, or do not fit the task
      ModelError       a backbone that cannot be loaded, or lacks what the method reads
      TrainError       training that cannot go on
      RunError         a run folder that is not what it says
      AdapterError     a PEFT folder that cannot be imported
      ExportError      a graph that cannot be made, or does not agree with the model
      BundleError      a bundle folder that is not what it says
        SignatureError   one that is not signed with the key that was asked for
      EngineError      an engine that cannot answer, here or any more
      PackError        a pack that is not what it says, or is for another backbone
      ProviderError    an execution provider that does not run the graph
      BenchError       a measurement that cannot be made, or compares what is not the same
      OutputError      a place that cannot be written to
      ServeError       an address that cannot be listened on
      RequestError     an HTTP request that is not what the protocol says
      MissingExtraError  a package that this command needs and this installation lacks

Messages read *where: got what, need what; do what*.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PtexportError(Exception):
    """Root of all errors ptexport raises on purpose."""


_REASON_LENGTH = 300


def reason(error: BaseException) -> str:
    """Say in one line why a library failed, for the middle of one of our own sentences.

    The middle of a long one, which may quote a whole file, is left out: what happened stands first, and where last.
    """
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if len(said) <= _REASON_LENGTH:
        return said
    return f"{said[: _REASON_LENGTH // 2]} … {said[-_REASON_LENGTH // 2 :]}"


class TemplateError(PtexportError, ValueError):
    """A template that cannot be parsed, or not on this backbone: for example two `{text}`."""


class VerbalizerError(PtexportError, ValueError):
    """Labels or label words that cannot be read out: for example a word of two tokens."""


class DataError(PtexportError, ValueError):
    """Rows that cannot be read or do not fit the task: for example a label nobody declared."""


class ModelError(PtexportError, ValueError):
    """A backbone that cannot be loaded or lacks what the method reads: for example no language-model head."""


class TrainError(PtexportError, RuntimeError):
    """Training that cannot go on: for example a loss that is not a number."""


class RunError(PtexportError, ValueError):
    """A run folder that is not what it says: for example one without weights."""


class AdapterError(PtexportError, ValueError):
    """A PEFT folder that cannot be imported: for example one for another model."""


class ExportError(PtexportError, RuntimeError):
    """A graph that cannot be made, or whose answers differ from the model's."""


class BundleError(PtexportError, ValueError):
    """A bundle folder that is not what it says: for example one flipped byte."""


class EngineError(PtexportError, RuntimeError):
    """An engine that cannot answer, here or any more: for example one that was closed."""


class SignatureError(BundleError):
    """A bundle that is not signed with the key that was asked for: for example one without `model.sig`."""


class PackError(PtexportError, ValueError):
    """A pack that is not what it says, or does not go with a bundle: for example one for another backbone."""


class ProviderError(PtexportError, RuntimeError):
    """An execution provider that does not run the graph: for example CUDA without a driver."""


class BenchError(PtexportError, RuntimeError):
    """A measurement that cannot be made, or would compare what is not the same: for example answers that differ."""


class OutputError(PtexportError, OSError):
    """A place that cannot be written to: for example a folder that exists already."""


class ServeError(PtexportError, OSError):
    """An address that cannot be listened on: for example a port in use."""


class RequestError(PtexportError, ValueError):
    """An HTTP request that is not what the protocol says: for example a shape that does not match its data."""


class MissingExtraError(PtexportError, ImportError):
    """A package that this command needs and this installation lacks."""


@contextmanager
def saying_what_the_disk_refused(
    path: Path, advice: str = "check the path and its permissions, or free some space"
) -> Iterator[None]:
    """Turn what the disk refuses while the block runs into an OutputError about `path`."""
    try:
        yield
    except PtexportError:  # some of ours are OSErrors too, and say more
        raise
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror or e}); {advice}") from e
