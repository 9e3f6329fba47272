"""Tests. While they run, jaxtyping has types and shapes checked by ``checked``, in all packages (pyproject.toml)."""

from beartype import BeartypeConf, beartype

# An int may stand where a float is annotated, as pyright has it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
