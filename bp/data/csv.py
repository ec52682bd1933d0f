"""CSV: a table of numbers as text, one sample a line, one column the target."""

from pathlib import Path

import numpy as np

from bp.data.dataset import Batch
from bp.data.reading import reading
from bp.errors import DataError


def read_csv(path: str | Path, target: int | str = -1, *, labels: bool = False, delimiter: str | None = ",") -> Batch:
    """Inputs (N, columns - 1) float32 and targets (N,) of a numeric CSV file, plain or gzipped, in UTF-8.

    target: the column of the targets, by index (negative: from the right) or by its name in the header. A first line
    without any number is the header. labels: the targets are whole numbers and come as int64, else as float32.
    delimiter: None for any white space. Empty lines are skipped.
    Raises DataError naming the file, the line (from 1) and the column (from 1) that is no finite number, or the line
    whose number of columns differs from the first.
    """
    with reading(path) as content:
        table, header, numbers = _parse(content.read(), delimiter)
        column = _column(target, header, table.shape[1])
        y = table[:, column]
        if labels:
            _expect_whole(y, numbers, column)
        return np.delete(table, column, axis=1).astype(np.float32), y.astype(np.int64 if labels else np.float32)


def read_table(path: str | Path, *, delimiter: str | None = ",") -> np.ndarray:
    """All columns (N, columns) float32 of a numeric CSV file; the rest is as in `read_csv`."""
    with reading(path) as content:
        return _parse(content.read(), delimiter)[0].astype(np.float32)


def _parse(data: bytes, delimiter: str | None) -> tuple[np.ndarray, list[str], list[int]]:
    """The table as float64, the names in the header if there is one, and the line number of each row."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected text in UTF-8, got other bytes ({error})") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    header: list[str] = []
    if lines and not any(_is_number(field) for field in lines[0][1].split(delimiter)):
        header = [field.strip().strip('"') for field in lines.pop(0)[1].split(delimiter)]
    if not lines:
        raise DataError("expected at least one line of numbers, got none")
    return _table(lines, len(header), delimiter), header, [number for number, _ in lines]


def _table(lines: list[tuple[int, str]], columns: int, delimiter: str | None) -> np.ndarray:
    """All lines as float64, by NumPy's parser; where that fails, line by line to find the place.

    columns: as many as the header has, or 0 without one.
    """
    try:
        table = np.loadtxt([line for _, line in lines], delimiter=delimiter, comments=None, ndmin=2)
    except ValueError:
        table = np.empty((0, 0))
    columns = columns or len(lines[0][1].split(delimiter))
    if table.shape == (len(lines), columns) and (np.abs(table) <= np.finfo(np.float32).max).all():
        return table
    rows = []
    for number, line in lines:
        fields = line.split(delimiter)
        if len(fields) != columns:
            raise DataError(f"line {number}: expected {columns} columns, got {len(fields)}")
        for column, field in enumerate(fields, 1):
            if not _is_number(field):
                raise DataError(f"line {number}, column {column}: expected a finite float32, got {field.strip()!r}")
        rows.append([float(field) for field in fields])
    return np.array(rows)


def _column(target: int | str, header: list[str], columns: int) -> int:
    if columns < 2:
        raise DataError(f"expected at least two columns, inputs and a target, got {columns}")
    if isinstance(target, str):
        if target not in header:
            raise DataError(f"expected a column '{target}', got {', '.join(header) or 'no header'}")
        return header.index(target)
    if not -columns <= target < columns:
        raise DataError(f"expected a target column in {-columns}..{columns - 1}, got {target}")
    return target % columns


def _expect_whole(y: np.ndarray, numbers: list[int], column: int) -> None:
    whole = (y == np.round(y)) & (np.abs(y) < 2**53)
    if not whole.all():
        first = int(whole.argmin())
        raise DataError(f"line {numbers[first]}, column {column + 1}: expected a whole number, got {y[first]}")


def _is_number(field: str) -> bool:
    """Whether the text is a number that a finite float32 holds."""
    try:
        return "_" not in field and abs(float(field)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False
