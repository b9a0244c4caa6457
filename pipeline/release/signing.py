"""Signatures of releases by OpenSSF model-signing: somebody vouches for every file.

The signature covers each file of the folder, the manifest too, and lies beside them. It is made
with a private key, or with an identity through Sigstore, and needs the extra `sign`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.release.checks.files import OUTSIDE, SIGNATURE
from pipeline.release.checks.findings import Finding

IGNORED = (*(name for name in OUTSIDE if name.startswith(".")), ".cache", ".git", SIGNATURE)


@dataclass(frozen=True)
class Signer:
    """Whose signature is asked for.

    Attributes:
        public_key: PEM file with an elliptic curve key.
        identity: who signed through Sigstore, such as an address or a workflow's URL.
        identity_provider: URL of who vouched for that identity.
    """

    public_key: Path | None = None
    identity: str | None = None
    identity_provider: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would check less than it seems to.

        Raises:
            InputError: an identity without its provider or the other way, or beside a key.
        """
        if (self.identity is None) != (self.identity_provider is None):
            raise InputError(
                "an identity means nothing without who vouches for it",
                where="--identity",
                remedy="give both --identity and --identity-provider, such as "
                "https://accounts.google.com",
            )
        if self.public_key is not None and self.identity is not None:
            raise InputError(
                "a signature is made with a key or with an identity",
                where="--public-key and --identity",
                remedy="give one of them",
            )

    def __bool__(self) -> bool:
        return self.public_key is not None or self.identity is not None


def check_available() -> None:
    """Check that releases can be signed and signatures checked here.

    Raises:
        InputError: the extra is not installed.
    """
    _library("signing")


def sign(folder: Path, private_key: Path | None, password: str | None = None) -> Path:
    """Sign a release, and return the signature's file; an earlier signature is replaced.

    Args:
        folder: the release.
        private_key: PEM file with an elliptic curve key; None signs through Sigstore, with the
            identity of the CI job or of whoever logs in.
        password: of the key, if it has one.

    Raises:
        InputError: the extra is not installed, the key cannot be used, or Sigstore refuses.
    """
    from_extra, hashing = _library("signing"), _hashing(folder)

    def signed() -> None:
        config = from_extra.Config().set_hashing_config(hashing)
        if private_key is None:
            config.use_sigstore_signer()
        else:
            secret = password.encode() if password else None  # it says str, and wants bytes
            config.use_elliptic_key_signer(private_key=private_key, password=secret)
        config.sign(folder, folder / SIGNATURE)

    _explained(signed, private_key or "Sigstore")
    return folder / SIGNATURE


def check_signature(folder: Path, signer: Signer) -> list[Finding]:
    """Check that a release is as this signer signed it, to the byte.

    Raises:
        InputError: the extra is not installed, or the public key cannot be read.
    """
    from_extra, hashing = _library("verifying"), _hashing(folder)
    config = from_extra.Config().set_hashing_config(hashing)
    if signer.public_key is not None:
        key = signer.public_key
        _explained(lambda: config.use_elliptic_key_verifier(public_key=key), key)
    else:
        config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.identity_provider)
    if not (folder / SIGNATURE).is_file():
        return [Finding(SIGNATURE, "is missing: the release is not signed")]
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever the library raises, the signature does not hold
        return [Finding(SIGNATURE, f"does not hold: {error or type(error).__name__}")]
    return []


def _hashing(folder: Path) -> Any:
    # The Hub's cache keeps a snapshot as links to files.
    config = _library("hashing").Config().set_allow_symlinks(True)
    return config.set_ignored_paths(paths=[folder / name for name in IGNORED])


def _library(module: str) -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise InputError(
            f"signatures need a package that is not installed ({error})",
            where="model-signing",
            remedy="install the extra: pip install 'unlearn-pipeline[sign]'",
        ) from error
    return getattr(model_signing, module)


def _explained(work: Callable[[], object], where: Path | str) -> None:
    try:
        work()
    except Exception as error:  # OpenSSL, Sigstore and the file system each have their own
        raise InputError(
            f"cannot be used for a signature: {error or type(error).__name__}",
            where=str(where),
            remedy="give a PEM file with an elliptic curve key, as `openssl ecparam -name "
            "prime256v1 -genkey -noout` makes it",
        ) from error
