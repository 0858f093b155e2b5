"""Bundles signed with real keys by OpenSSF Model Signing, and everything that must not pass for one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from packed import pack_of
from servers import start

from ptexport.runtime import Engine
from ptexport.runtime.bundle import signature as signature_
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.bundle.signature import sign_folder
from ptexport.runtime.errors import BundleError, MissingExtraError, SignatureError
from ptexport.toolkit.cli.main import cli


def write_keys(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    """Write NAME.pem, encrypted NAME.secret.pem, and NAME.pub, which is returned."""
    for suffix, encryption in ((".pem", NoEncryption()), (".secret.pem", BestAvailableEncryption(b"word"))):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (folder / name).with_suffix(suffix).write_bytes(pem)
    public = (folder / name).with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys `ours` and `theirs`, and an RSA key, which nobody signs with."""
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder, "ours", ec.generate_private_key(ec.SECP256R1()))
    write_keys(folder, "theirs", ec.generate_private_key(ec.SECP384R1()))
    write_keys(folder, "rsa", rsa.generate_private_key(65537, 2048))
    return folder


@pytest.fixture
def signed(llama_bundle: Path, keys: Path, tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(llama_bundle, tmp_path / "signed"))
    ptexport("sign", bundle, "--private-key", keys / "ours.pem")
    return bundle


def ptexport(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_signed_bundle_opens_with_the_key_and_without(signed: Path, keys: Path) -> None:
    key = keys / "ours.pub"
    assert Engine.open(signed, require_signature=key).predict(["slow"]) == Engine.open(signed).predict(["slow"])
    for engine in (Engine.open(signed, require_signature=str(key)), Engine.open(signed)):
        assert len(engine.logits(["slow"])) == 1
    assert ptexport("predict", signed, "slow", "--require-signature", key)
    record = json.loads(ptexport("inspect", signed, "--require-signature", key, "--json"))
    assert record["signature"] == "verified"
    assert json.loads(ptexport("inspect", signed, "--json"))["signature"] == "not checked"


def test_its_own_tool_takes_it_and_its_signature_is_taken(signed: Path, keys: Path) -> None:
    """Neither reader needs the other: `model_signing` on the command line, as docs/trust.md has it."""
    tool = [sys.executable, "-m", "model_signing"]
    place = ["--signature", str(signed / "model.sig")]
    verify = [*tool, "verify", "key", str(signed), *place, "--public_key", str(keys / "ours.pub")]
    assert "succeeded" in subprocess.run(verify, check=True, capture_output=True, text=True).stdout
    (signed / "README.md").write_text("another")
    assert subprocess.run(verify, check=False, capture_output=True).returncode != 0
    sign = [*tool, "sign", "key", str(signed), *place, "--private_key", str(keys / "theirs.pem")]
    subprocess.run(sign, check=True, capture_output=True)
    Engine.open(signed, require_signature=keys / "theirs.pub")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file the runtime reads": lambda b: flip(b / "model.onnx.data"),
    "one for people": lambda b: flip(b / "README.md"),
    "the manifest": lambda b: flip(b / "manifest.json"),
    "an added file": lambda b: (b / "more").write_bytes(b""),
    "an added file that git would hide": lambda b: (b / ".gitattributes").write_bytes(b""),
    "an added folder with a file": lambda b: ((b / "sub").mkdir(), (b / "sub" / "model.sig").write_bytes(b"")),
    "an added link": lambda b: (b / "more").symlink_to("README.md"),
    "a missing file": lambda b: (b / "README.md").unlink(),
}
NO_SIGNATURES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda b: flip(b / "model.sig"),
    "no JSON": lambda b: (b / "model.sig").write_bytes(b"{"),
    "JSON of something else": lambda b: (b / "model.sig").write_bytes(b"{}"),
    "a deep nest": lambda b: (b / "model.sig").write_bytes(b"[" * 100_000),
    "an empty signature": lambda b: (b / "model.sig").write_bytes(b""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_after_it_was_signed(what: str, signed: Path, keys: Path) -> None:
    CHANGES[what](signed)
    with pytest.raises(
        SignatureError, match=r"signed: was changed after it was signed with the key .*ours.pub \(.*; cop"
    ):
        Bundle.open(signed, require_signature=keys / "ours.pub")


@pytest.mark.parametrize("what", NO_SIGNATURES)
def test_what_is_no_signature(what: str, signed: Path, keys: Path) -> None:
    NO_SIGNATURES[what](signed)
    with pytest.raises(
        SignatureError, match=r"model.sig: is not a signature made with the key .*ours.pub \(.*; give the key"
    ):
        Bundle.open(signed, require_signature=keys / "ours.pub")


@pytest.mark.parametrize("how", ["none", "a link", "too large"])
def test_a_bundle_without_a_signature(how: str, signed: Path, keys: Path, tmp_path: Path) -> None:
    (signed / "model.sig").rename(tmp_path / "kept.sig")
    if how == "a link":
        (signed / "model.sig").symlink_to(tmp_path / "kept.sig")
    elif how == "too large":
        (signed / "model.sig").write_bytes((tmp_path / "kept.sig").read_bytes() + b" " * (1 << 20))
    with pytest.raises(SignatureError, match=r"got no model.sig, need one made with the key .*; sign the bundle with"):
        Engine.open(signed, require_signature=keys / "ours.pub")
    if how == "none":
        assert json.loads(ptexport("inspect", signed, "--json"))["signature"] == "none"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "theirs.pub",
            r"model.sig: is not a signature made with the key .*theirs.pub \(Key mismatch.*; give the key of",
        ),
        ("rsa.pub", "cannot be used .*, need a public key in PEM on the curve P-256"),
        ("ours.pem", "cannot be used .*, need a public key"),
        ("nothing", "cannot be used .*No such file"),
        (None, "cannot be used"),
    ],
)
def test_another_key(key: str | None, message: str, signed: Path, keys: Path) -> None:
    """An empty name too, as of a variable that is not set: it does not mean that any bundle will do."""
    with pytest.raises(SignatureError, match=message):
        Engine.open(signed, require_signature="" if key is None else keys / key)
    flip(signed / "README.md")  # whatever else is wrong: an unknown signer's word says nothing of files
    with pytest.raises(SignatureError, match=message):
        Engine.open(signed, require_signature="" if key is None else keys / key)


def test_a_signature_that_leaves_files_out(signed: Path, keys: Path) -> None:
    """By the right key, but over less than the bundle: what it leaves out could be anything."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys / "ours.pem")
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["model.sig", "model.onnx"]))
    config.sign(signed, signed / "model.sig")
    with pytest.raises(SignatureError, match=r"Extra files found in model .*model.onnx"):
        Engine.open(signed, require_signature=keys / "ours.pub")


@pytest.mark.parametrize("key", ["rsa.pem", "ours.secret.pem", "ours.pub", "nothing"])
def test_what_cannot_sign(key: str, signed: Path, keys: Path) -> None:
    before = (signed / "model.sig").read_bytes()
    with pytest.raises(
        SignatureError, match=r"cannot be used .*, need a private key in PEM on the curve P-256.* not encry"
    ):
        sign_folder(signed, keys / key)
    assert (signed / "model.sig").read_bytes() == before


def test_only_a_bundle_is_signed_and_only_once(signed: Path, keys: Path) -> None:
    again = ["sign", str(signed), "--private-key", str(keys / "theirs.pem")]
    with pytest.raises(OSError, match=r"model.sig: exists already; replace it with --force"):
        ptexport(*again)
    assert "model.onnx.data" in json.loads(ptexport(*again, "--force", "--json"))["files"]
    Engine.open(signed, require_signature=keys / "theirs.pub")
    flip(signed / "model.onnx.data")
    with pytest.raises(BundleError, match="its sha256 differs"):
        ptexport(*again, "--force")
    assert not (signed / "model.sig.new").exists()


def test_files_are_hashed_once(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one who checks the signature; a control that hashes twice is one that fails here."""
    opened: list[str] = []
    plain_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self.name), plain_open(self, *a, **k))[1])
    Bundle.open(signed)
    assert "model.onnx.data" in opened
    opened.clear()
    hashes = signature_.verify_signature(signed, keys / "ours.pub")
    assert set(hashes) == {file.name for file in signed.iterdir()} - {"model.sig"}
    once = opened.count("model.onnx.data")
    opened.clear()
    Bundle.open(signed, require_signature=keys / "ours.pub")
    assert opened.count("model.onnx.data") == once


def test_without_the_extra(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"signatures need the package 'model_signing.*; pip install 'ptexport"):
        Engine.open(signed, require_signature=keys / "ours.pub")
    with pytest.raises(MissingExtraError, match=r"pip install 'ptexport\[sign\]'"):
        sign_folder(signed, keys / "ours.pem")


def test_a_server_that_needs_signatures_takes_no_pack(
    signed: Path, keys: Path, llama_bundle: Path, llama_run: Path, tmp_path: Path
) -> None:
    """A pack has none; the control takes it."""
    (tmp_path / "watched").mkdir()
    pack_of(llama_bundle, llama_run, tmp_path / "watched" / "task.ptpack")
    seen = []
    for options in (["--require-signature", keys / "ours.pub"], []):
        process, record = start(signed, "--watch", tmp_path / "watched", *options)
        process.terminate()
        events = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]
        seen.append((events[0]["event"], record["models"][0]["name"]))
    assert seen == [("model-refused", "reviews"), ("model-loaded", "reviews")]
