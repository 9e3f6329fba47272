"""Privacy: patients and studies get keyed pseudonyms; without the key, nobody can find a name by trial.

Names that users choose are written as they are: names given to datasets, names of labels and classes (in
dataset.json, class folders, and values of a table's label column), and the folders of shards and runs.
"""

import hashlib
import os
import secrets
from pathlib import Path

KEY_BYTES = 32
KEY_FILE = "pseudonym.key"


class Pseudonymiser:
    """Turns private names into stable pseudonyms by keyed blake2b. The same key gives the same pseudonyms."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(
                f"pseudonym key of {len(key)} bytes; expected {KEY_BYTES}: delete the file for a new key"
            )
        self._key = key

    def patient(self, name: str) -> str:
        """Return ``p-`` and 16 hexadecimal digits for a patient's original name or number."""
        return f"p-{self._digest('patient', name)}"

    def study(self, name: str) -> str:
        """Return ``v-`` and 16 hexadecimal digits for a study's original name or path."""
        return f"v-{self._digest('study', name)}"

    def dataset(self, name: str) -> str:
        """Return ``d-`` and 16 hexadecimal digits for the name of a source's folder, which may be a patient's."""
        return f"d-{self._digest('dataset', name)}"

    def fingerprint(self, text: str) -> str:
        """Return 16 hexadecimal digits that identify a private text without revealing it."""
        return self._digest("text", text)

    def _digest(self, kind: str, name: str) -> str:
        return hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=8, key=self._key).hexdigest()


def load_key(home: Path | None = None) -> bytes:
    """Return this machine's pseudonym key, made at first use and kept with mode 0600.

    It lies in ``home``, by default the folder that RAYDIOLOGY_HOME names or ``~/.raydiology``: never beside shards,
    which are shared. Everyone with the key gets the same pseudonyms, and can find out whose they are.
    """
    folder = home or Path(os.environ.get("RAYDIOLOGY_HOME", "~/.raydiology")).expanduser()
    path = folder / KEY_FILE
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return bytes.fromhex(path.read_text())
    except FileNotFoundError:
        return _make_key(path)
    except ValueError:
        raise ValueError(f"{path}: not a hexadecimal key; restore it, or delete it for a new key") from None


def _make_key(path: Path) -> bytes:
    """Write a new key; of several processes that try at once, one wins and all return its key."""
    temporary = path.with_name(f"{KEY_FILE}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_bytes(KEY_BYTES).hex())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return bytes.fromhex(path.read_text())
