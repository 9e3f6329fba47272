"""The commands and YAML blocks that documents and comments tell people to type, exactly as written."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What is written from the code while the site is built is read nowhere else.
_WRITTEN = [path for path in sorted(DOCS.rglob("*.md")) if "generated" not in path.parts]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *_WRITTEN]
TUTORIALS = [path for path in _WRITTEN if path.parent.name == "tutorials" and path.name != "index.md"]
COMMENTED = [ROOT / "cluster.yaml", ROOT / "cluster" / "rayjob.yaml", *sorted((ROOT / "experiments").rglob("*.yaml"))]
PROGRAMS = ("raydiology", "make", "ray", "kubectl", "export", "source", "pre-commit", ".venv/bin/pip", "python3.11")
_PROGRAM = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))}) \S")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Told:
    """A command and where it stands; ``inline`` commands may have placeholders in capitals."""

    where: str
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text[:60]}"


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    where: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Its commands, one a line, without remarks; in a transcript only what follows a ``$``."""
        text = self.text.replace("\\\n", " ")
        lines = [re.sub(r"\s+#\s.*$", "", line).strip() for line in text.splitlines()]
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [re.sub(r"\s+", " ", line) for line in lines if line]


def blocks() -> list[Block]:
    """Return the fenced blocks of all documents."""
    return [block for path in DOCUMENTS for block in blocks_of(path)]


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    found = re.finditer(r"^```(\w*|\{\w+\})\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(name_of(path), match[1], match[2]) for match in found]


def name_of(path: Path) -> str:
    """Return a document's path, as it is named in test ids."""
    return str(path.relative_to(ROOT))


def is_command(line: str) -> bool:
    """Tell whether a line begins with a program that people are told to type."""
    return bool(_PROGRAM.match(f"{line} "))


def commands() -> list[Told]:
    """Return every command of the documents and of the comments of experiments and cluster files."""
    told = [Told(block.where, line) for block in blocks() for line in block.lines if is_command(line)]
    for path in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        texts = [re.sub(r"\s+", " ", match[1]) for match in _INLINE.finditer(prose)]
        told += [Told(name_of(path), text, inline=True) for text in texts if is_command(text)]
    for path in COMMENTED:
        told += [Told(str(path.relative_to(ROOT)), line) for line in _commented(path)]
    job = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())
    return [
        *told,
        Told("cluster/rayjob.yaml, entrypoint", f"raydiology submit -- {_verb(job['spec']['entrypoint'])}"),
    ]


def _verb(entrypoint: str) -> str:
    return entrypoint.removeprefix("raydiology ")


def _commented(path: Path) -> list[str]:
    """Return the commands of a YAML file's comments; what follows after two spaces, or in brackets, explains them."""
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(comments))
    lines = [re.sub(r"^[A-Z]\w*:\s+", "", line) for line in text.splitlines()]
    return [re.split(r"\s{2,}| \(", line)[0] for line in lines if is_command(line)]
