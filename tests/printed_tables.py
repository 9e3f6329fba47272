"""The papers' tables as their text prints them: which table file holds which columns, and the numbers of each row."""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
SEEDS = ROOT.parent / "shared" / "seeds"
_NUMBER = r"\d+\.\d+(?: ?± ?\d+\.\d+)?"
_NUMBERS = re.compile(rf"(?:(?:{_NUMBER}|N/A)(?: M)?[ /]*)+")


@dataclass(frozen=True)
class Columns:
    """A table file, and where its numbers stand in a printed table.

    columns    the place of the metric's column among the columns of numbers, and those of the metrics under ``also``
    lines      the places of its rows among the printed ones; by default all
    runs       whether the further columns are a row's single runs (``paper.values``)
    """

    file: str
    columns: tuple[int, ...]
    lines: tuple[int, ...] | None = None
    runs: bool = False


@dataclass(frozen=True)
class PrintedTable:
    """A table of a seed: the text between its first cells and its caption, the later of which is unique.

    width     numbers of a row
    scale     printed numbers are this many times those of the table files
    turned    whether the file's row is a printed column
    cellwise  whether the text has one cell on a line
    cells     the first cell of a line that is read and the one behind the last; by default all but the name
    mixed     whether the text is one line that mixes the numbers of a row, which are rising ones and their mean
    """

    seed: str
    begins: str
    ends: str
    width: int
    files: tuple[Columns, ...]
    scale: int = 100
    turned: bool = False
    cellwise: bool = False
    cells: tuple[int, int | None] = (1, None)
    mixed: bool = False


def _each(width: int, *files: str) -> tuple[Columns, ...]:
    return tuple(Columns(file, (place,)) for place, file in enumerate(files[-width:]))


_VOCO, _JSSL, _SVDNET = "002", "000", "003"
_TASKS = tuple(
    Columns(f"voco/table_14_task_{task:02}.yaml", ((task - 1) % 5,), (0, 1) if task <= 5 else (2, 3))
    for task in range(1, 11)
)
PRINTED = (
    PrintedTable(
        _VOCO,
        "Mathad\t",
        "Table 1. Experimental",
        14,
        (Columns("voco/table_1.yaml", (13,)), Columns("voco/table_1_organs.yaml", (13, *range(13)))),
    ),
    PrintedTable(_VOCO, "Method\t", "Table 2. Experimental", 1, _each(1, "voco/table_2.yaml")),
    PrintedTable(
        _VOCO,
        "Method\t",
        "Table 3. Experimental",
        2,
        _each(2, "voco/table_3_spleen.yaml", "voco/table_3_mm_whs.yaml"),
    ),
    PrintedTable(_VOCO, "Mathad\t", "Table 4. Experimental", 4, (Columns("voco/table_4.yaml", (3, 0, 1, 2)),)),
    PrintedTable(_VOCO, "Method\t", "Table 5. Experimental", 1, _each(1, "voco/table_5.yaml")),
    PrintedTable(
        _VOCO,
        "Loss Functions",
        "Table 6. Evaluation",
        2,
        _each(2, "voco/table_6_btcv.yaml", "voco/table_6_mm_whs.yaml"),
    ),
    PrintedTable(
        _VOCO,
        "Number of bases",
        "Table 7. Evaluation",
        2,
        _each(2, "voco/table_7_btcv.yaml", "voco/table_7_mm_whs.yaml"),
    ),
    PrintedTable(
        _VOCO, "λ\t", "Table 10. Ablation", 2, _each(2, "voco/table_10_btcv.yaml", "voco/table_10_mm_whs.yaml")
    ),
    PrintedTable(_VOCO, "Methods\t", "Table 11. Experimental", 1, _each(1, "voco/table_11.yaml")),
    PrintedTable(
        _VOCO, "Organs\t", "Table 12. Dice", 1, (Columns("voco/table_12.yaml", (7, *range(7))),), turned=True
    ),
    PrintedTable(
        _VOCO,
        "Method\t",
        "Table 13. Online",
        4,
        (
            Columns("voco/table_13_btcv.yaml", (0,)),
            Columns("voco/table_13_flare23.yaml", (1,)),
            Columns("voco/table_13_amos22.yaml", (2, 3)),
        ),
    ),
    PrintedTable(_VOCO, "Method\tTask1\t", "Table 14. MSD", 5, _TASKS),
    PrintedTable(
        _JSSL,
        "Method\t",
        "Table 3: Comparing",
        2,
        _each(2, "jssl/table_3_brats2018.yaml", "jssl/table_3_luna2016.yaml"),
    ),
    PrintedTable(
        _JSSL,
        "Method\t",
        "Table 4: Comparing",
        2,
        _each(2, "jssl/table_4_mmwhs_ct.yaml", "jssl/table_4_mmwhs_mri.yaml"),
    ),
    PrintedTable(_JSSL, "Method\t", "Table 5: Comparing", 1, _each(1, "jssl/table_5.yaml")),
    PrintedTable(
        _JSSL,
        "Methods\t",
        "Table 6: Performance",
        3,
        _each(3, "jssl/table_6_jsrt_20.yaml", "jssl/table_6_jsrt_40.yaml", "jssl/table_6_jsrt_100.yaml"),
    ),
    PrintedTable(
        _JSSL,
        "Setting\t",
        "Table 7: Ablation",
        2,
        _each(2, "jssl/table_7_mmwhs_ct.yaml", "jssl/table_7_mmwhs_mri.yaml"),
    ),
    PrintedTable(_JSSL, "Method\t", "Table 8: Computational", 1, _each(1, "jssl/table_8.yaml"), scale=1),
    PrintedTable(
        "001",
        "IoU interval\t",
        "on average, while",
        5,
        (Columns("iou_positives/table_4_2.yaml", (0, 1, 2, 3, 4), runs=True),),
        scale=1,
    ),
    PrintedTable(
        "004",
        "Model\nET\n",
        "when fine-tuning our models",
        3,
        (Columns("proxy_tasks/table_1.yaml", (1, 2, 0)),),
        cellwise=True,
    ),
    PrintedTable(
        _SVDNET,
        "Methods\tBackbone",
        "and effectiveness of the proposed",
        1,
        _each(1, "svdnet/table_3.yaml"),
        cells=(2, 3),
    ),
    PrintedTable(
        _SVDNET,
        "Methods\tAccuracy",
        "TABLE IV AUC",
        6,
        (Columns("svdnet/table_4.yaml", (1, 0, 2, 3, 4, 5)),),
        cells=(1, 7),
    ),
    PrintedTable(
        _SVDNET,
        "Methods\tBackbone",
        "D. Liver Segmentation",
        1,
        _each(1, "svdnet/table_5.yaml"),
        cells=(2, 3),
    ),
    PrintedTable(
        _SVDNET,
        "Methods Slices",
        "Fig. 4. Detection performance",
        5,
        (Columns("svdnet/table_6.yaml", (4, 0, 1, 2, 3)),),
        mixed=True,
    ),
    PrintedTable(
        _SVDNET,
        "mFROC\nOurs",
        "proposed SVD-Net takes advantage",
        5,
        (Columns("svdnet/table_7.yaml", (4, 0, 1, 2, 3)),),
    ),
)


@dataclass(frozen=True)
class PrintedNumber:
    """A number and its deviation with the digits of the text; neither where the text has N/A."""

    value: Decimal | None
    deviation: Decimal | None = None


@dataclass(frozen=True)
class PrintedRow:
    label: str
    numbers: tuple[PrintedNumber, ...]


@cache
def text_of(seed: str) -> str:
    (path,) = SEEDS.glob(f"{seed}_*.txt")
    return path.read_text()


def rows_of(table: PrintedTable) -> list[PrintedRow]:
    """Return the rows of numbers in the order of the text, each with its first cell."""
    text = text_of(table.seed)
    end = text.index(table.ends)
    block = text[text.rindex(table.begins, 0, end) : end]
    if table.mixed:
        return _unmixed(block, table.width)
    if table.cellwise:
        block = re.sub(r"[\n ](?=\d+\.\d+$)", "\t", block, flags=re.MULTILINE)
    labels, numbers = [], []
    for line in block.splitlines():
        label, cells = line.split("\t")[0], line.split("\t")[slice(*table.cells)]
        found = [one for cell in cells for one in _numbers_in(_plain(cell))]
        if found:
            labels += [label] * (len(found) // table.width)
            numbers += found
    assert len(numbers) % table.width == 0, f"{table.ends}: {len(numbers)} numbers in rows of {table.width}"
    rows = [tuple(numbers[at : at + table.width]) for at in range(0, len(numbers), table.width)]
    if table.turned:
        return [PrintedRow(block.splitlines()[-1], tuple(number for row in rows for number in row))]
    return [PrintedRow(label, row) for label, row in zip(labels, rows, strict=True)]


def _unmixed(block: str, width: int) -> list[PrintedRow]:
    """Return rows whose numbers stand in a line, row by row, but within a row in any order: the mean comes last."""
    numbers = [Decimal(number) for number in re.findall(r"\b\d\d\.\d+", block)]
    assert len(numbers) % width == 0, f"{len(numbers)} numbers in rows of {width}"
    rows = []
    for at in range(0, len(numbers), width):
        row = sorted(numbers[at : at + width])
        # A mean of four printed numbers is off by the rounding of each.
        (mean,) = {one for one in row if abs((sum(row) - one) / (width - 1) - one) <= Decimal("0.01")}
        row.remove(mean)
        rows.append(PrintedRow("", tuple(PrintedNumber(one) for one in [*row, mean])))
    return rows


def _plain(cell: str) -> str:
    """Strip marks of emphasis, of footnotes and of columns in a cell; a plus between numbers is a misread ±."""
    cell = re.sub(r"\\(?:underline|textbf)\{(.*?)\}", r"\1", cell.replace("\\pm", "±"))
    cell = re.sub(r"\\(?:begin|end)\{array\}(?:\{c\})?", "", cell).replace("\\\\", " ")
    cell = re.sub(r"(?<=\d) \+ (?=\d)", " ± ", cell)
    return re.sub(r"[$†]", "", cell).strip()


def _numbers_in(cell: str) -> list[PrintedNumber]:
    if not _NUMBERS.fullmatch(cell):
        return []
    found = re.findall(r"(N/A)|([\d.]+)(?: ?± ?([\d.]+))?", cell)
    return [
        PrintedNumber(None) if absent else PrintedNumber(Decimal(value), Decimal(deviation) if deviation else None)
        for absent, value, deviation in found
    ]
