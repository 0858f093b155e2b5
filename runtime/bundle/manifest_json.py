"""manifest.json -> Manifest, of this format or the one before."""

import json
import math

import msgspec

from ptexport.runtime.bundle import format_1
from ptexport.runtime.bundle.manifest import FORMAT, MAX_MANIFEST_BYTES, Manifest, digest_of
from ptexport.runtime.errors import BundleError, reason


def read_manifest(data: bytes, where: str) -> Manifest:
    """Decode a manifest and check it against its own digest.

    Args:
        data: content of `manifest.json`.
        where: its name, for messages.

    Raises:
        BundleError: too large, not JSON, another format, an unknown, missing or mistyped field, a wrong digest.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: got {len(data)} bytes, need at most {MAX_MANIFEST_BYTES}; export again")
    try:
        record = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{where}: not JSON ({e}); copy the bundle again") from e
    version = record.get("format") if isinstance(record, dict) else None
    if version not in (FORMAT, FORMAT - 1) or isinstance(version, bool):
        got = repr(version)[:40] if isinstance(version, int | float | str | None) else type(version).__name__
        raise BundleError(f"{where}: got format {got}, need {FORMAT}; export again with this version of ptexport")
    try:
        digest = digest_of(record)
        manifest = format_1.upgrade(record, where) if version == FORMAT - 1 else msgspec.convert(record, Manifest)
    except msgspec.ValidationError as e:
        raise BundleError(
            f"{where}: {reason(e)[:200]}; copy the bundle again, or export it again with this version"
        ) from e
    except UnicodeEncodeError as e:
        raise BundleError(f"{where}: holds half of a surrogate pair, need Unicode; export again") from e
    if record.get("digest") != digest:
        raise BundleError(f"{where}: its digest does not match its content; it was changed, copy the bundle again")
    return manifest


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value
