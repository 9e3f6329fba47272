"""Store: the address of the SQLite store of a home, whatever the home is called."""

import os
from pathlib import Path
from urllib.parse import unquote

STORE = "mlflow.db"
_SQLITE = "sqlite:///"


def sqlite_address(path: Path) -> str:
    """Return the address of an SQLite file; MLflow decodes an address's path, and ``?`` begins options."""
    return _SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store's address; None for any other MLflow."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def default_uri(home: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or the SQLite store under the home, at an absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(home / STORE)


def hide_password(uri: str) -> str:
    """Return an address without user and password, so that it may be shown."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
