"""A certificate authority per cluster, and one certificate per role.

The authority's key signs three certificates and is dropped. The client's files, and the worker's for machines that are
added later, stay in the user's state folder; the scheduler's exist only on the scheduler's machine.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_cloudvm import schema
from dask_cloudvm.errors import StateError

ROLES = ("scheduler", "worker", "client")
VALID = datetime.timedelta(days=365)


def state_folder() -> Path:
    """``$XDG_STATE_HOME/dask-cloudvm``, by default below ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".local" / "state") / "dask-cloudvm"


def write_private(path: Path, text: str) -> None:
    """Writes a file whole or not at all, readable by its owner only. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def make(cluster: str) -> dict[str, str]:
    """PEM texts by file name: ``ca.pem`` and, per role, ``<role>.pem`` and ``<role>.key``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(
        common: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, is_ca: bool
    ) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=10))  # the machines' clocks may be a little behind
            .not_valid_after(now + VALID)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if not is_ca:
            both = [
                ExtendedKeyUsageOID.SERVER_AUTH,
                ExtendedKeyUsageOID.CLIENT_AUTH,
            ]  # every Dask process listens and connects
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def pem(key: ec.EllipticCurvePrivateKey) -> str:
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain).decode()

    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = f"{cluster} authority"
    files = {"ca.pem": certificate(issuer, authority, issuer, authority, is_ca=True)}
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        files[f"{role}.pem"] = certificate(f"{cluster} {role}", key, issuer, authority, is_ca=False)
        files[f"{role}.key"] = pem(key)
    return files


def of(security: Any) -> dict[str, str]:
    """The files of a user's own ``distributed.Security``, whose fields are paths or PEM texts. Raises OSError."""
    fields = {"ca.pem": "tls_ca_file"}
    for role in ROLES:
        fields |= {f"{role}.pem": f"tls_{role}_cert", f"{role}.key": f"tls_{role}_key"}
    values = {file: getattr(security, name) or "" for file, name in fields.items()}
    return {file: value if "\n" in value else Path(value).read_text("utf-8") for file, value in values.items()}


def for_role(files: Mapping[str, str], role: str) -> dict[str, str]:
    """The files that one role's machine needs, and no more."""
    return {name: files[name] for name in ("ca.pem", f"{role}.pem", f"{role}.key")}


def keep(cluster: str, files: Mapping[str, str]) -> Path:
    """Keeps what a later connection or scale needs, beside what is kept already: never the scheduler's key.

    Done before the scheduler is asked for: a launcher that is killed right after it leaves a cluster that can be
    reached. Then comes :func:`settle` or :func:`drop`. Raises StateError.
    """
    folder = _folder(cluster)
    try:
        state_folder().parent.mkdir(parents=True, exist_ok=True)
        for each in (state_folder(), folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        kept = folder / f"{secrets.token_hex(4)}.json"
        ours = {name: text for name, text in files.items() if not name.startswith("scheduler")}
        write_private(kept, json.dumps(ours))
    except OSError as error:
        raise StateError.of("keep the cluster's certificates", folder, error) from None
    return kept


def settle(kept: Path) -> None:
    """What :func:`keep` kept is the cluster's: what an earlier one of this name left goes."""
    with suppress(OSError):
        for other in kept.parent.iterdir():
            if other != kept:
                other.unlink()


def drop(kept: Path) -> None:
    """What :func:`keep` kept is of no use: the cluster is another launcher's, or was not made."""
    with suppress(OSError):  # another launcher keeps its own there
        kept.unlink()
        kept.parent.rmdir()


def load(cluster: str) -> dict[str, str] | None:
    """What :func:`keep` kept for a cluster last, or None."""
    wanted = {"ca.pem", *(f"{role}.{kind}" for role in ("worker", "client") for kind in ("pem", "key"))}
    try:
        newest = max(_folder(cluster).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        found: dict[str, str] = json.loads(newest.read_text("utf-8"))
        return found if wanted <= set(found) else None
    except (OSError, ValueError):  # there is none, or it goes at this moment
        return None


def forget(cluster: str) -> None:
    """Removes what :func:`keep` kept; nothing where there is nothing."""
    if schema.is_name(cluster):  # anything else could be a path
        shutil.rmtree(_folder(cluster), ignore_errors=True)


def _folder(cluster: str) -> Path:
    return state_folder() / "tls" / cluster
