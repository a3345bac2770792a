"""The clouds' APIs at their own names, for machines that call them: passed on to the fakes."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ("compute.googleapis.com",)
FILE = "gateway.pem"
# Where OpenSSL looks first; the machines trust the lab's own certificate there.
TRUSTED = "/usr/lib/ssl/cert.pem"


def certificate(address: str) -> tuple[bytes, bytes]:
    """A certificate for the APIs' names and the gateway's address that signs itself, and its key, as PEM."""
    known = [*(x509.DNSName(host) for host in HOSTS), x509.IPAddress(ipaddress.ip_address(address))]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=10))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(known), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return made.public_bytes(encoding), key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)


def secured(listening: socket.socket, pem: bytes, key: bytes, folder: Path) -> ssl.SSLSocket:
    """The listening socket with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / FILE).write_bytes(pem + key)
    context.load_cert_chain(folder / FILE)
    return context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)


def handler(targets: Mapping[str, str]) -> type[BaseHTTPRequestHandler]:
    """Passes calls for a host on to the URL that ``targets`` has for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = urlsplit(targets[self.headers["Host"]])
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
            headers = {**dict(self.headers), "X-Forwarded-Proto": "https"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name not in ("Server", "Date", "Connection", "Transfer-Encoding", "Content-Length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _pass

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
