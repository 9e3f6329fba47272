"""Row: one line of a table as its file states it, with the numbers that the paper prints for it."""

from typing import Any

from pydantic import Field, model_validator

from methods.base import FrozenConfig
from orchestrator.config.parts import Seed
from orchestrator.tables.choice import Lists

Seeds = tuple[Seed, ...]


class PaperNumbers(FrozenConfig):
    """The numbers that the paper prints for a row."""

    mean: float
    deviation: float | None = Field(default=None, ge=0)
    values: tuple[float, ...] = ()


class TableRow(FrozenConfig):
    """One line of a table: changes to the base experiment (``{"method.crops.iou": [0.3, 0.6]}``).

    ``choose`` and ``repeat_over`` replace the table's; ``{}`` is none. ``paper`` holds what the paper prints for the
    table's metric, ``paper_also`` for the metrics under ``also``. ``missing`` says in a few words why the row cannot
    be run (``the network is not built``): the row then shows the paper's numbers, and has nothing else. A row that
    starts from a file of weights which is not there becomes a missing one.
    """

    name: str = Field(min_length=1)
    overrides: dict[str, Any] = Field(default_factory=dict)
    pretrain_seeds: Seeds | None = None
    finetune_seeds: Seeds | None = Field(default=None, min_length=1)
    paper: PaperNumbers | None = None
    paper_also: dict[str, float] = Field(default_factory=dict)
    choose: Lists | None = None
    repeat_over: Lists | None = None
    missing: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _missing_row_has_only_numbers(self) -> "TableRow":
        if self.missing is None:
            return self
        run_only = ("overrides", "pretrain_seeds", "finetune_seeds", "choose", "repeat_over")
        given = [name for name in run_only if name in self.model_fields_set]
        if given:
            raise ValueError(
                f"row {self.name}: {given[0]} beside missing ({self.missing}), but a missing row is not run; "
                f"remove {given[0]}, or missing"
            )
        if self.paper is None and not self.paper_also:
            raise ValueError(
                f"row {self.name}: missing ({self.missing}) and without numbers of the paper, so that there is "
                "nothing to show; give paper, or remove the row"
            )
        return self
