"""Which of a table's rows are kept, and which of its columns are ours.

Invariant: a column or filter that no row has is an error that says what is there; a mapping never falls back silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mot_core.errors import ProblemError
from mot_core.formats import COLUMNS, FORMATS, Column, as_text
from mot_core.sources import Row
from mot_core.spec import nearest

_ABSENT = object()


def cell_at(cells: Mapping[str, Any], path: str) -> Any:
    """The cell at a dotted path (a number reaches into a list); `_ABSENT` if there is none."""
    if path in cells:
        return cells[path]
    found: Any = cells
    for step in path.split("."):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, (list, tuple)) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return _ABSENT
    return found


def kept_by(filters: Mapping[str, Any], rows: Iterable[Row], where: str) -> Iterator[Row]:
    """The rows whose cells have the filters' values, compared as text.

    Raises:
        ProblemError: a filter's column that no row has; no row left.
    """
    allowed = {
        path: {as_text(one) for one in (value if isinstance(value, (list, tuple)) else [value])}
        for path, value in filters.items()
    }
    num_rows, passed, seen, names = 0, dict.fromkeys(allowed, 0), set[str](), list[str]()
    for row in rows:
        num_rows += 1
        names = names or list(row.cells)
        seen |= {path for path in allowed if path not in seen and cell_at(row.cells, path) is not _ABSENT}
        for path, values in allowed.items():
            cell = cell_at(row.cells, path)
            if cell is _ABSENT or isinstance(cell, (list, dict)) or as_text(cell) not in values:
                break
            passed[path] += 1
        else:
            yield row
    for path in set(allowed) - seen if num_rows else ():
        raise ProblemError(
            f"{where}: filters: no row has a column {path!r}; {nearest(path, names)}there are {', '.join(names)}"
        )
    if num_rows and allowed and passed[list(allowed)[-1]] == 0:
        counts = ", ".join(f"{path} = {'|'.join(sorted(allowed[path]))} kept {count}" for path, count in passed.items())
        raise ProblemError(f"{where}: filters left none of {num_rows} rows (one after the other: {counts})")


def mapping_of(table: Mapping[str, Any]) -> dict[str, Column]:
    """Our column → theirs: the format's, then those that `columns` names (a format's transform stays).

    Raises:
        ProblemError: a format or column of ours that is not known.
    """
    name, chosen = table.get("format"), table.get("columns") or {}
    if name is not None and name not in FORMATS:
        raise ProblemError(f"format {name!r} is not known; {nearest(name, FORMATS)}known: {', '.join(FORMATS)}")
    mapping = dict(FORMATS[name].columns) if name is not None else {ours: Column.of(ours) for ours in COLUMNS}
    for ours, theirs in chosen.items():
        if ours not in COLUMNS:
            raise ProblemError(
                f"columns: {ours!r} is none of ours; {nearest(ours, COLUMNS)}known: {', '.join(COLUMNS)}"
            )
        kept = mapping[ours].transform if ours in mapping and not mapping[ours].together else None
        mapping[ours] = Column.of(theirs, transform=kept)
    return mapping


@dataclass
class Reader:
    """Reads rows through a mapping, and remembers which of our columns were ever found."""

    mapping: Mapping[str, Column]
    demanded: frozenset[str] = frozenset()
    """Columns that the user named: one that no row has is a mistake, even if it is optional."""
    found: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Reader:
        return cls(mapping_of(table), frozenset(table.get("columns") or {}))

    def cell(self, row: Row, ours: str) -> Any:
        """One of our columns as it lies in the row; None where there is none."""
        self.names = self.names or list(row.cells)
        if ours not in self.mapping:
            return None
        column = self.mapping[ours]
        if column.together:
            cells = [cell_at(row.cells, path) for path in column.paths]
            if any(cell is _ABSENT for cell in cells):
                return None
            self.found.add(ours)
            return cells
        for path in column.paths:
            cell = cell_at(row.cells, path)
            if cell is not _ABSENT:
                self.found.add(ours)
                if cell is not None:
                    return cell
        return None

    def look_for(self, row: Row, columns: tuple[str, ...]) -> None:
        """Take note of which columns a row has, without reading them."""
        for ours in columns:
            if ours not in self.found:
                self.cell(row, ours)

    def text(self, row: Row, ours: str) -> str:
        """One of our columns as text, empty where there is none.

        Raises:
            ValueError: a cell that has no such text.
        """
        cell = self.cell(row, ours)
        if cell is None:
            return ""
        transform = self.mapping[ours].transform
        return as_text(cell if transform is None else transform(cell))

    def check(self, required: tuple[tuple[str, ...], ...], where: str) -> None:
        """Raise `ProblemError` unless of each group of required columns one was found, and all that the user named."""
        groups = [*required, *((ours,) for ours in sorted(self.demanded))]
        for group in groups if self.names else ():
            if not self.found.intersection(group):
                paths = [path for ours in group if ours in self.mapping for path in self.mapping[ours].paths]
                missing = f"no row has {' or '.join(map(repr, paths))}" if paths else "the format has none"
                raise ProblemError(
                    f"{where}: no column for {' or '.join(group)}: {missing}; "
                    f"{nearest(paths[0] if paths else group[0], self.names)}there are {', '.join(self.names)}; name it "
                    f"with columns: {{{group[0]}: …}} or a format"
                )
