"""Certificate authorities and what they sign, made with the openssl program; folders as qemu and libnbd read them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.programs import run

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority.

    Args:
        folder: where its files are; made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.certificate, self._key = folder / "ca-cert.pem", folder / "ca-key.pem"
        name = ("-subj", f"/CN={folder.name}", "-days", "2")
        run("openssl", "req", "-x509", *CURVE, "-keyout", self._key, "-out", self.certificate, *name)

    def sign(self, to: Path, what: str, *, days: int = 1) -> None:
        """Make a key and a certificate for "server" or "client" in the folder `to`, beside the authority's own.

        Args:
            to: the folder; made if it is not there.
            what: "server" or "client", the start of the files' names.
            days: how long it is valid from now on; negative: it has expired.
        """
        to.mkdir(exist_ok=True)
        shutil.copy(self.certificate, to / "ca-cert.pem")
        request, extensions = to / "request.pem", to / "extensions"
        extensions.write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={what}Auth\n")
        run("openssl", "req", *CURVE, "-keyout", to / f"{what}-key.pem", "-out", request, "-subj", "/CN=localhost")
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        run("openssl", "x509", "-req", "-in", request, *signer, "-days", days, "-out", to / f"{what}-cert.pem")


def make_keys(path: Path, **keys: str) -> Path:
    """Write a file of pre-shared keys, as psktool does: one USER:HEX a line."""
    path.write_text("".join(f"{user}:{key}\n" for user, key in keys.items()))
    return path
