"""``predictions.csv``: the one table of what models said of cases, written and read here.

A row for each case: case, subject, session, part, label, ``p_<class>`` for each class, predicted, entropy, epistemic,
modalities (those that were used), status (of its preparation: done, doubtful, accepted or failed), reasons, and model
(the hash of the weights that made it); of a cross-validation also fold. A case without a prediction has empty cells and
a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.files.reading import read_rows
from mmfusion.files.writing import write_csv

_REMEDY = "evaluate, or predict, again"


@dataclass(frozen=True)
class Predictions(Sequence[Mapping[str, str]]):
    """The rows of a ``predictions.csv`` that have probabilities, as text and as arrays.

    Attributes:
        rows: as the file has them.
        classes: their names, in the order of the columns.
        path: the file, for messages.
    """

    rows: list[dict[str, str]]
    classes: tuple[str, ...]
    path: Path

    @classmethod
    def read(cls, path: str | Path, remedy: str = "run mmfusion evaluate, or mmfusion predict, first") -> Predictions:
        """The table in a file.

        Raises:
            CohortError: the file is not there.
            ReadError: it is damaged, or no table of predictions.
        """
        path = Path(path)
        rows = read_rows(path, remedy, ("case", "label"))
        header = list(rows[0]) if rows else ["p_", "p_"]
        classes = tuple(name.removeprefix("p_") for name in header if name.startswith("p_"))
        if len(classes) < 2:
            raise ReadError(f"{path} has columns {', '.join(header)}; expected p_<class> for 2 classes or more")
        if twice := [case for case, times in Counter(row["case"] for row in rows).items() if times > 1]:
            raise ReadError(f"{path} is damaged: {len(twice)} cases have several rows, as {twice[0]}; {_REMEDY}")
        predicted = [row for row in rows if any(row[f"p_{name}"] for name in classes)]
        return cls(predicted, classes, path)

    @staticmethod
    def write(path: Path, rows: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> None:
        """Write the table, atomically; rows may lack cells."""
        rows = list(rows)
        columns = ["case", "subject", "session", "part", "label", *(f"p_{name}" for name in classes), "predicted"]
        columns += ["entropy", "epistemic", "modalities", "status", "reasons", "model"]
        write_csv(rows, path, [*columns, *(["fold"] if any("fold" in row for row in rows) else [])])

    @overload
    def __getitem__(self, number: int) -> dict[str, str]: ...
    @overload
    def __getitem__(self, number: slice) -> list[dict[str, str]]: ...
    def __getitem__(self, number: int | slice) -> dict[str, str] | list[dict[str, str]]:
        return self.rows[number]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows)

    @property
    def cases(self) -> list[str]:
        """``[N]`` the cases, in order."""
        return [row["case"] for row in self.rows]

    def labelled(self, part: str | None = None) -> Predictions:
        """Those with a label, of one part of the split or of all."""
        rows = [row for row in self.rows if row["label"] and part in (None, row.get("part", part))]
        return replace(self, rows=rows)

    def of_cases(self, cases: Collection[str]) -> Predictions:
        """Those of some cases, in the order given; cases without a row are left out."""
        by_case = {row["case"]: row for row in self.rows}
        return replace(self, rows=[by_case[case] for case in cases if case in by_case])

    def in_order(self, classes: Sequence[str]) -> Predictions:
        """With the classes in another order.

        Raises:
            ReadError: these are other classes.
        """
        if sorted(classes) != sorted(self.classes):
            raise ReadError(
                f"{self.path} has the classes {', '.join(self.classes)}, expected {', '.join(classes)}; {_REMEDY}"
            )
        return replace(self, classes=tuple(classes))

    @cached_property
    def label(self) -> np.ndarray:
        """``[N]`` the class of each row, as its number.

        Raises:
            ReadError: a label is no class.
        """
        number = {name: k for k, name in enumerate(self.classes)}
        for row in self.rows:
            if row["label"] not in number:
                raise self._refusal(row, repr(row["label"]))
        return np.array([number[row["label"]] for row in self.rows], dtype=np.int64)

    @cached_property
    def probability(self) -> np.ndarray:
        """``[N, K]``, each row with a sum of 1.

        Raises:
            ReadError: a cell is no probability.
        """
        shares = np.empty((len(self.rows), len(self.classes)))
        for values, row in zip(shares, self.rows, strict=True):
            cells = [row[f"p_{name}"] for name in self.classes]
            try:
                values[:] = [float(cell) for cell in cells]
            except ValueError:
                raise self._refusal(row, repr(cells)) from None
            if not ((values >= 0) & (values <= 1)).all() or not values.sum() > 0:
                raise self._refusal(row, repr(cells))
        return shares / shares.sum(1, keepdims=True)

    def _refusal(self, row: Mapping[str, str], content: str) -> ReadError:
        return ReadError(
            f"{self.path}, case {row['case']}: found {content:.100}, expected a label of {', '.join(self.classes)} and "
            f"a probability between 0 and 1 for each; {_REMEDY}"
        )

    @property
    def subject(self) -> np.ndarray:
        """``[N]`` the subject of each row; the case itself where a table has none."""
        return np.array([row.get("subject") or row["case"] for row in self.rows], dtype=str)

    @property
    def fold(self) -> np.ndarray | None:
        """``[N]`` the fold of a cross-validation by whose model each row was predicted, as text; else None."""
        folds = [row.get("fold") or "" for row in self.rows]
        return np.array(folds) if any(folds) else None

    def predicted(self, threshold: float | None) -> np.ndarray:
        """``[N]`` class numbers: at the threshold for two classes, the most probable one for more; without a threshold
        what the rows say."""
        if threshold is None:
            return np.array([self.classes.index(row["predicted"]) for row in self.rows])
        if len(self.classes) == 2:
            return np.asarray(self.probability[:, 1] >= threshold, dtype=np.int64)
        return np.argmax(self.probability, axis=1)
