"""A bundle folder <-> model.sig, a signature over all its files.

The format is OpenSSF Model Signing. The package model-signing, which the extra `sign` installs, reads and writes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import MissingExtraError, SignatureError, disk_errors, reason

SIGNATURE = "model.sig"
MAX_SIGNATURE_BYTES = 1 << 20


def sign_folder(path: Path, private_key: Path) -> list[str]:
    """Sign all files in a folder and write `model.sig`, replacing an older one.

    Args:
        path: the folder.
        private_key: PEM file with an unencrypted private key on the curve P-256, P-384 or P-521.

    Returns:
        The names of the signed files.

    Raises:
        SignatureError: the key cannot be used, or the folder holds a link.
        OutputError: `model.sig` cannot be written.
        MissingExtraError: model-signing is not installed.
    """
    with _missing_extra():
        from model_signing import hashing, signing
    with _key_errors(private_key, "private"):
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False))
    new = path / f"{SIGNATURE}.new"
    with disk_errors(path / SIGNATURE):
        try:
            config.sign(path, new)
            new.replace(path / SIGNATURE)
        except ValueError as e:
            raise SignatureError(f"{path}: cannot be signed ({reason(e)}); copy it, following links") from e
        finally:
            new.unlink(missing_ok=True)
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != SIGNATURE)


def verify_signature(path: Path, public_key: Path) -> dict[str, str]:
    """Check that a folder holds exactly the files that were signed with a key.

    Args:
        path: the folder.
        public_key: PEM file with the public key.

    Returns:
        The sha256 of each file by its name, so that no file has to be read again.

    Raises:
        SignatureError: the signature is missing or made with another key, or a file was changed, added or removed.
        MissingExtraError: model-signing is not installed.
    """
    signature = path / SIGNATURE
    if signature.is_symlink() or not signature.is_file() or signature.stat().st_size > MAX_SIGNATURE_BYTES:
        raise SignatureError(
            f"{path}: got no {SIGNATURE}, need one made with the key {public_key}; sign the bundle with 'ptexport sign'"
        )
    hashes: dict[str, str] = {}
    with _missing_extra():
        from model_signing import verifying

        hash_all_files = _hash_all_files(hashes)
    with _key_errors(public_key, "public"):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config.set_hashing_config(hash_all_files)
    try:
        config.verify(path, signature)
    except Exception as e:  # model_signing has no base class: a damaged signature raises errors of its parts
        # About changed files it prints both digests, as a list of Python objects; the first file's name is enough.
        line = reason(e).replace("\\'", "'").removeprefix("Signature mismatch: ")
        first = line.split(": Expected")[0].lstrip("['\"").rstrip(']"')
        if hash_all_files.started:
            why = f"was changed after it was signed with the key {public_key} ({first})"
            raise SignatureError(f"{path}: {why}; copy the bundle again from its signer") from e
        why = f"is not a signature made with the key {public_key} ({first.rstrip('. ')})"
        raise SignatureError(
            f"{signature}: {why}; give the key of the bundle's signer, or copy the bundle again"
        ) from e
    return hashes


def _hash_all_files(hashes: dict[str, str]) -> Any:
    """Configure model_signing to hash every file but the signature, whatever the signature excludes.

    Args:
        hashes: receives the sha256 of each file by its name.
    """
    from model_signing import hashing, manifest

    class AllFiles(hashing.Config):
        """Ignores the list of excluded files in a signature; files are hashed once that was found to be the key's."""

        started = False

        def hash(self, model_path: hashing.PathLike, *, files_to_hash: object = None) -> manifest.Manifest:
            self.started = True
            made = super().hash(model_path)
            hashes.update({item.identifier: item.digest.digest_hex for item in made.resource_descriptors()})
            return made

        def add_ignored_paths(self, *, model_path: hashing.PathLike, paths: object) -> None:
            pass

    config = AllFiles()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


@contextmanager
def _missing_extra() -> Iterator[None]:
    """Raise a MissingExtraError for a package that cannot be imported in the block."""
    try:
        yield
    except ImportError as e:
        raise MissingExtraError(f"signatures need the package {e.name!r}; pip install 'ptexport[sign]'") from e


@contextmanager
def _key_errors(path: Path, kind: str) -> Iterator[None]:
    """Raise a SignatureError about a key that cannot be loaded in the block."""
    try:
        yield
    except Exception as e:  # cryptography raises several classes, and model_signing adds more for other kinds of keys
        need = f"need a {kind} key in PEM on the curve P-256, P-384 or P-521, not encrypted"
        raise SignatureError(f"{path}: cannot be used ({reason(e)}), {need}; see docs/trust.md") from e
