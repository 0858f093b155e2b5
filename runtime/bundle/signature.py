"""A bundle's folder <-> model.sig, a signature over all its files; knows keys and files, nothing of what is in them.

The format is OpenSSF Model Signing's; model-signing, which writes and reads it, is the extra `sign`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptexport.runtime.errors import MissingExtraError, SignatureError, reason, saying_what_the_disk_refused

SIGNATURE = "model.sig"
MAX_SIGNATURE_BYTES = 1 << 20


def sign_folder(path: Path, private_key: Path) -> list[str]:
    """Sign all files in a folder, as they are now, into its `model.sig`, which is replaced.

    Args:
        path: the folder.
        private_key: file with a private key in PEM, on the curve P-256, P-384 or P-521, not encrypted.

    Returns:
        The names of the files.

    Raises:
        SignatureError: the key is none, or the folder holds a link.
        OutputError: the disk refuses.
        MissingExtraError: model-signing is not installed.
    """
    with _needing_the_extra():
        from model_signing import hashing, signing
    with _saying_what_is_no_key(private_key, "private"):
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False))
    new = path / f"{SIGNATURE}.new"
    with saying_what_the_disk_refused(path / SIGNATURE):
        try:
            config.sign(path, new)
            new.replace(path / SIGNATURE)
        except ValueError as e:
            raise SignatureError(f"{path}: cannot be signed ({reason(e)}); copy it, following links") from e
        finally:
            new.unlink(missing_ok=True)
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != SIGNATURE)


def verify_signature(path: Path, public_key: Path) -> dict[str, str]:
    """Check that a folder holds the files that were signed with a key, all of them and no other.

    Args:
        path: the folder.
        public_key: file with the key in PEM.

    Returns:
        The sha256 of each file by its name, so that nobody needs to read them again.

    Raises:
        SignatureError: there is no signature, another key's, or any file was changed, added or removed.
        MissingExtraError: model-signing is not installed.
    """
    signature = path / SIGNATURE
    if signature.is_symlink() or not signature.is_file() or signature.stat().st_size > MAX_SIGNATURE_BYTES:
        raise SignatureError(
            f"{path}: holds no {SIGNATURE}, need one by the key {public_key}; sign it by 'ptexport sign'"
        )
    with _needing_the_extra():
        from model_signing import hashing, manifest, verifying
    hashes: dict[str, str] = {}
    signed_by_key = False

    class AllFiles(hashing.Config):
        """Hashes every file but the signature, whatever that says can be left out."""

        def hash(self, model_path: hashing.PathLike, *, files_to_hash: object = None) -> manifest.Manifest:
            nonlocal signed_by_key
            signed_by_key = True  # files are looked at once the signature has proved to be the key's
            made = super().hash(model_path)
            hashes.update({item.identifier: item.digest.digest_hex for item in made.resource_descriptors()})
            return made

        def add_ignored_paths(self, *, model_path: hashing.PathLike, paths: object) -> None:
            pass

    with _saying_what_is_no_key(public_key, "public"):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    every = AllFiles()  # type: ignore[no-untyped-call]
    config.set_hashing_config(every.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False))
    try:
        config.verify(path, signature)
    except Exception as e:  # model_signing raises what its parts do, on a signature that is none
        # Of files that differ it prints both digests, as a list of Python objects; the first one's name is enough.
        said = reason(e).replace("\\'", "'").removeprefix("Signature mismatch: ")
        first = said.split(": Expected")[0].lstrip("['\"").rstrip(']"')
        if signed_by_key:
            why = f"was changed after it was signed by the key {public_key} ({first})"
            raise SignatureError(f"{path}: {why}; copy the bundle again from who signed it") from e
        why = f"is no signature by the key {public_key} ({first.rstrip('. ')})"
        raise SignatureError(f"{signature}: {why}; name the key of who signed the bundle, or copy it again") from e
    return hashes


@contextmanager
def _needing_the_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as e:
        raise MissingExtraError(f"signatures need the package {e.name!r}; pip install 'ptexport[sign]'") from e


@contextmanager
def _saying_what_is_no_key(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # cryptography raises several, and model_signing lets other kinds of keys run into more
        need = f"need a {kind} key in PEM on the curve P-256, P-384 or P-521, not encrypted"
        raise SignatureError(f"{path}: cannot be used ({reason(e)}), {need}; see docs/trust.md") from e
