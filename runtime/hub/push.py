"""A bundle folder -> one commit on the hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from ptexport.runtime.bundle.folder import FILES, MANIFEST, Bundle, check_unchanged
from ptexport.runtime.errors import HubError, PtexportError, reason
from ptexport.runtime.hub.failures import LOG_IN, answer_in, connection_errors, unreachable

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_GIT_FILES = (".gitattributes", ".gitignore")


def check_push(repository: str, *, private: bool) -> None:
    """Check that a bundle can be pushed, before the work for it starts; changes nothing.

    Args:
        repository: OWNER/NAME on the hub.
        private: whether the repository has to be private.

    Raises:
        HubError: the name is not one, the hub cannot be reached, the token is missing or may not write there, or the
            repository has something other than a bundle, or is public.
    """
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import RepositoryNotFoundError

    if _REPOSITORY.fullmatch(repository) is None:
        raise HubError(f"push {repository!r}: not the name of a repository, need OWNER/NAME; correct it")
    owner = repository.split("/")[0]
    with _push_errors(repository):
        user = HfApi().whoami()
        try:
            info: ModelInfo | None = HfApi().model_info(repository)
        except RepositoryNotFoundError:
            info = None
    owners = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
    if owner not in owners:
        raise HubError(f"push {repository}: you are {owners[0]}, need one of {', '.join(owners)} as OWNER; name it")
    if info is None:
        return
    files = sorted({file.rfilename for file in info.siblings or ()} - {*_GIT_FILES})
    if files and MANIFEST not in files:
        raise HubError(
            f"push {repository}: has {files[0]} and no {MANIFEST}, need a new repository or one with a bundle; choose "
            "another name"
        )
    if private and not info.private:
        raise HubError(f"push {repository}: is public, need a private one; change it on its page, or choose another")


def push(bundle: Path, repository: str, *, private: bool) -> str:
    """Verify a bundle and put it on the hub in one commit; creates the repository if there is none.

    Files of a bundle that was there before go in the same commit; other files stay.

    Args:
        bundle: folder of the bundle.
        repository: OWNER/NAME on the hub, which passed `check_push`.
        private: whether a new repository is private; otherwise the hub's default for the owner applies.

    Returns:
        URL of the commit.

    Raises:
        BundleError: the folder does not match its manifest.
        HubError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    opened = Bundle.open(bundle)
    ours = [name for name in FILES if (bundle / name).is_file()]
    with _push_errors(repository):
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        info = api.model_info(repository)
        there = {file.rfilename for file in info.siblings or ()}
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationDelete(name) for name in FILES if name in there and name not in ours),
                *(CommitOperationAdd(name, bundle / name) for name in ours),
            ],
            commit_message=f"Upload {opened.manifest.name} with ptexport {version('ptexport')}",
            parent_commit=info.sha,
        )
    check_unchanged(opened)
    return str(commit.commit_url)


@contextmanager
def _push_errors(repository: str) -> Iterator[None]:
    """Raise a HubError in one sentence for what huggingface_hub raises."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    where = f"push {repository}"
    others: tuple[type[Exception], ...] = (RuntimeError, ValueError, OSError, *connection_errors())
    try:
        yield
    except PtexportError:
        raise
    except HFValidationError as e:
        raise HubError(f"{where}: not a name that the hub allows ({reason(e)}); choose another") from e
    except LocalTokenNotFoundError as e:
        raise HubError(f"{where}: not logged in to the hub, need a token that may write; {LOG_IN}") from e
    except others as e:
        answer = answer_in(e)
        if answer is None and isinstance(e, connection_errors()):
            raise HubError(f"{where}: {unreachable()}; check the network, and try again") from e
        if answer is None:  # of an upload, or of the model card
            raise HubError(f"{where}: failed ({reason(e.__cause__ or e)}); try again") from e
        if answer.response.status_code == 401:
            raise HubError(f"{where}: the hub refuses the token, need a valid one; {LOG_IN}") from e
        why = reason(answer)
        if answer.response.status_code == 403:
            raise HubError(f"{where}: the token may not write there ({why}); use one with write access to it") from e
        raise HubError(f"{where}: the hub refuses it ({why}); try again") from e
