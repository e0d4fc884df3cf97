"""A person's decision on a doubtful case: what it settles, and when it no longer holds.

``accepted.json`` of a cohort has, by case, the date, a note, the reasons that stood there, and digests of what was
looked at: scans, transforms, mask. While these are the same, and no reason is new, the case counts as ``accepted``;
else it is doubtful again and says why. Preparing again does not touch the file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cohort import misplaced
from mmfusion.errors import CohortError, OptionError, OutputError, few, printable
from mmfusion.files import (
    CohortFolder,
    a_table,
    a_text,
    check_fields,
    claim_place,
    optional_fields,
    write_json,
)
from mmfusion.options import nearest
from mmfusion.prepare.folder import Cohort, open_cohort, read_case, write_table
from mmfusion.report import write_qc
from mmfusion.report.files import reasons_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Acceptance:
    """What a person decided on a case.

    Attributes:
        date: when, UTC, ISO 8601 to the second.
        note: why; may be empty.
        reasons: those that are settled.
        looked_at: digests of scans, transforms and mask, by what they are called.
    """

    date: str
    note: str
    reasons: tuple[str, ...]
    looked_at: Mapping[str, str]

    def objection(self, reasons: Sequence[str], looked_at: Mapping[str, str]) -> str:
        """Why it does not hold for a case as it is now; empty if it does."""
        day = self.date[:10]
        names = dict.fromkeys((*looked_at, *self.looked_at))
        if changed := [name for name in names if looked_at.get(name) != self.looked_at.get(name)]:
            return f"it was accepted on {day} with another {', another '.join(changed)}; look at it again"
        if not set(reasons) <= set(self.reasons):
            return f"it was accepted on {day} for other reasons; look at it again"
        return ""


def read_acceptances(folder: Path) -> dict[str, Acceptance]:
    """The decisions in a cohort folder, by case.

    Raises:
        ReadError: ``accepted.json`` is damaged.
    """
    path, out = CohortFolder(folder).accepted, {}
    remedy = "put back the file as mmfusion wrote it, or remove it and accept the cases again"
    checks = {"date": a_text, "note": a_text, "reasons": _texts, "looked_at": a_table}
    for case, fields in optional_fields(path).items():
        given = fields if isinstance(fields, dict) else {}
        out[case] = Acceptance(**check_fields(f"{path}, case {printable(case)}", given, checks, remedy))
    return out


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of sentences")
    return tuple(value)


def apply_acceptances(
    folder: Path, rows: Sequence[Mapping[str, Any]], accepted: Mapping[str, Acceptance]
) -> list[dict[str, Any]]:
    """Rows of ``cases.csv`` as preparing made them, with what persons decided on the doubtful ones.

    Where a decision holds, ``status`` is ``accepted`` and columns ``accepted`` and ``accepted_note`` say when and why;
    where it does not, the reasons begin with what has changed.
    """
    out = []
    for row in rows:
        decision = accepted.get(row["case"])
        new = {} if decision is None or row["status"] != "doubtful" else _apply(folder, row, decision)
        out.append({**row, **new})
    return out


def _apply(folder: Path, row: Mapping[str, Any], decision: Acceptance) -> dict[str, str]:
    record = read_case(folder, row["case"]) or {}
    if words := decision.objection(reasons_of(row), record.get("looked_at", {})):
        return {"reasons": f"{words} | {row['reasons']}"}
    return {"status": "accepted", "accepted": decision.date, "accepted_note": decision.note}


def accept_case(folder: str | Path, case: str, *, note: str | None = None, undo: bool = False) -> Cohort:
    """Record that a person has looked at a doubtful case and found it right; ``cases.csv`` and ``qc.html`` follow.

    Args:
        folder: a cohort folder.
        case: as column ``case`` of ``cases.csv`` names it.
        note: why, in the person's words; if none is given, the note of a decision that still holds stays.
        undo: take the decision back.

    Raises:
        OutputError: the folder is no cohort folder, or cannot be written.
        CohortError: no such case, it is not doubtful, or was never accepted; or preparing is under way.
        OptionError: a note that is not text, or beside ``undo``.
        ReadError: a file of the cohort is damaged.
    """
    if note and undo:
        raise OptionError("undo takes a decision back and has no note; leave it out")
    note = None if note is None else _one_line(note)
    files = CohortFolder(Path(folder))
    if words := misplaced(folder, "cohort"):
        raise OutputError(words)
    claim_place(files.accepted, "cohort", "simulated cohort")
    with files.lock():
        cohort, accepted = open_cohort(folder), read_acceptances(files.path)
        if undo and accepted.pop(case, None) is None:
            raise CohortError(f"case '{case}' of {folder} was not accepted; there is nothing to take back")
        if not undo:
            record = _doubtful_record(cohort, case)
            reasons, looked_at, former = tuple(reasons_of(record)), record["looked_at"], accepted.get(case)
            if note is None and former and not former.objection(reasons, looked_at):
                note = former.note
            now = datetime.now(UTC).isoformat(timespec="seconds")
            accepted[case] = Acceptance(now, note or "", reasons, looked_at)
        write_json({name: asdict(one) for name, one in sorted(accepted.items())}, files.accepted)
        rows = [_as_prepared(files.path, row) if row["case"] == case else row for row in cohort.rows]
        write_table(
            files.path, apply_acceptances(files.path, rows, {name: accepted[name] for name in accepted if name == case})
        )
        write_qc(files.path)
        return open_cohort(folder)


def _doubtful_record(cohort: Cohort, case: str) -> dict[str, Any]:
    """``case.json`` of a doubtful case."""
    rows = {row["case"]: row for row in cohort.rows}
    if case not in rows:
        near = nearest(case, rows)
        doubtful = [name for name, row in rows.items() if row["status"] == "doubtful"]
        raise CohortError(
            f"{cohort.folder} has no case '{case}'"
            + (f"; did you mean '{near}'?" if near else ".")
            + (f" Doubtful are {few(doubtful)}" if doubtful else " No case is doubtful")
        )
    if rows[case]["status"] == "failed":
        raise CohortError(
            f"case {case} of {cohort.folder} failed and has nothing to accept ({rows[case]['reasons']}); correct it "
            "and run mmfusion prepare again"
        )
    record = read_case(cohort.folder, case)
    if record is None:
        raise CohortError(f"cases/{case} of {cohort.folder} is damaged: delete it and run mmfusion prepare again")
    if record["status"] != "doubtful":
        raise CohortError(f"case {case} of {cohort.folder} is not doubtful; there is nothing to accept")
    if not record["looked_at"]:
        raise CohortError(
            f"case {case} of {cohort.folder} was prepared by an earlier version of mmfusion, which kept no digests of "
            "what is looked at; run mmfusion prepare again, then accept it"
        )
    return record


def _as_prepared(folder: Path, row: Mapping[str, str]) -> dict[str, Any]:
    """A row without what a person decided."""
    record = read_case(folder, row["case"]) or row
    return {**row, "status": record["status"], "reasons": record["reasons"], "accepted": "", "accepted_note": ""}


def _one_line(note: str) -> str:
    """The note in one line."""
    try:
        note.encode()
    except UnicodeEncodeError:
        raise OptionError("the note is not text in UTF-8; write it again") from None
    return " ".join(note.split())
