"""Store: the address of the SQLite store of a home, whatever the home is called."""

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
