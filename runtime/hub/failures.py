"""Errors of huggingface_hub -> one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptexport.runtime.errors import PtexportError, reason

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LOG_IN = "set HF_TOKEN or run 'hf auth login'"


@contextmanager
def download_errors(
    where: str, error: type[PtexportError], *, revision: str | None = None, tried: str = ""
) -> Iterator[None]:
    """Raise `error` in one sentence for what huggingface_hub raises in a download; errors of the disk pass.

    Args:
        where: what is downloaded.
        error: class of the error.
        revision: the requested branch, tag or commit; None: the main branch.
        tried: what the name is not either, such as "not a folder, ".
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreached: tuple[type[Exception], ...] = (LocalEntryNotFoundError, *connection_errors())
    others: tuple[type[Exception], ...] = (RuntimeError, ValueError, OSError, *unreached)
    try:
        yield
    except PtexportError:
        raise
    except GatedRepoError as e:
        raise error(f"{where}: gated on the hub; accept its terms on its page there, then {LOG_IN}") from e
    except RevisionNotFoundError as e:
        raise error(f"{where}: has no revision {revision!r} on the hub; look up its commits there") from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        also = f"{tried}and " if tried else ""
        raise error(f"{where}: {also}not on the hub; check the name, or set HF_TOKEN if it is private") from e
    except others as e:
        answer = answer_in(e)
        if answer is None and isinstance(e, unreached):
            raise error(
                f"{where}: {tried}not in the cache, and {unreachable()}; check the name and the network, or give a "
                "folder"
            ) from e
        if answer is None and isinstance(e, OSError) and e.errno is not None:
            raise
        why = reason(answer or e)
        raise error(f"{where}: cannot be downloaded from the hub ({why}); try again, or give a folder") from e


def connection_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises if it did not reach the hub, or may not (HF_HUB_OFFLINE).

    It hands the errors of its HTTP library through: requests before version 1, httpx, httpx2 from version 2 on. Answers
    of the hub are HfHubHTTPError, which is one of these errors too.
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    # In httpx it is the base class of all errors; in requests one of several, below their base class.
    http_error, base = HTTPError.__mro__[:2]
    return OfflineModeIsEnabled, http_error if base is Exception else base


def answer_in(error: BaseException) -> "HfHubHTTPError | None":
    """Return the hub's answer that an error is, or was made of; None: there was none."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((e for e in (error, error.__cause__) if isinstance(e, HfHubHTTPError)), None)


def unreachable() -> str:
    """Say that the hub was not reached, and whether it may be."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return f"the hub cannot be reached{' (HF_HUB_OFFLINE is set)' if HF_HUB_OFFLINE else ''}"
