"""Where a command is told to write: folders and files that a user might have, ours, half ours and not ours.

Each is a function that makes the target in a sandbox (see :class:`Box`) and returns its path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MARK = ".mmfusion.json"

ADDED: dict[str, tuple[str, ...]] = {
    "cohort": (
        "notes.txt", ".tmp-draft.txt", "project/deep/.tmp-draft.txt", "cases/.git/HEAD", "cases/.tmp-draft.txt",
        "cases/P00/notes.txt", "cases/P00/.tmp-draft.txt", "cases/P00.txt", "cases/mine/image.npy", "qc/holiday.png",
        "cases/.P00~draft/notes.txt", "nifti/sub-P00/anat/tumor_by_hand.nii.gz", "nifti/sub-P00/notes.txt",
        "nifti/.sub-P00~old/notes.txt", "nifti/sub-mine/anat/sub-mine_T1w.nii.gz", "landmarks/notes.txt",
        "earlier/notes.txt", "mmfusion-tmp-mine.txt",
    ),
    "run": (
        "notes.txt", "thesis.txt", ".tmp-draft.txt", ".git/HEAD", "checkpoints/mine.pt", "checkpoints/.tmp-draft.txt",
        "models/README.md", "single/notes.txt", "single/ct/notes.txt", "fold_notes.txt", "earlier/notes.txt",
        "earlier/1/notes.txt", "earlier/7/model.pt", "predictions/thesis.txt", "tensorboard/notes.txt",
        "inference/notes.txt", "configs/my.yaml",
    ),
    "prediction": (
        "notes.txt", ".tmp-draft.txt", "predictions/thesis.txt", "predictions/.git/HEAD", "predictions/P00/notes.txt",
        "cohort/notes.txt", "cohort/.tmp-draft.txt", "cohort/cases/P00/notes.txt", "cohort/cases/.git/HEAD",
        "cohort/qc/holiday.png", "labels.csv",
    ),
    "bundle": (
        "notes.txt", ".tmp-draft.txt", "models/README.md", "models/.git/HEAD", "models/my_model.pt", "docs/notes.txt",
        "configs/my.yaml", "scripts/mine.py", "model.onnx",
    ),
    "simulated cohort": ("notes.txt", ".tmp-draft.txt", "cases/.git/HEAD", "cases/TRAIN0001/notes.txt", "qc/a.png"),
    "demo": ("notes.txt", ".tmp-draft.txt", "raw/notes.txt", "raw/study/notes.txt", "run/notes.txt", "cohort/a.txt"),
}  # fmt: skip
"""What a user may have put into a folder of ours, by its kind."""

OUR_NAMES = (
    "options.json", "cases.csv", "split.csv", "history.csv", "predictions.csv", "metrics.json", "manifest.csv",
    "report.html", "qc.html", "model.pt", "model.json", "model.onnx", "model.ts", "demo.json", "truth.json",
    "predictions/thesis.txt", "predictions/P00.json", "cases/P00/notes.txt", "cases/P00/image.npy", "qc/P00.png",
    "cases/.git/HEAD", "nifti/sub-P00/anat/mask.nii.gz", "checkpoints/best.pt", "checkpoints/final.pt",
    "models/model.pt", "models/model.json", "fold_0/model.pt", "single/ct/model.pt", "cohort/cases.csv",
    "docs/README.md", "project/deep/.tmp-draft.txt", "raw/study/labels.csv", "inference/predictions.csv",
)  # fmt: skip
"""Files of names that mmfusion writes, too, in a folder of somebody else."""


@dataclass
class Box:
    """A sandbox with a copy of the study, and what in it is a user's.

    Attributes:
        path: the folder.
        strangers: files that no command may change, relative to it.
    """

    path: Path
    strangers: set[str] = field(default_factory=set)

    def put(self, *names: str, below: Path | None = None) -> None:
        """Write files of a user, where there are none."""
        for name in names:
            path = (below or self.path) / name
            if not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"mine, and not on any other disk: {name}\n")
                self.strangers.add(str(path.relative_to(self.path)))

    def keep(self, folder: Path) -> None:
        """All that is in a folder, or a file, is a user's."""
        for path in [folder, *folder.rglob("*")]:
            if path.is_file() or path.is_symlink():
                self.strangers.add(str(path.relative_to(self.path)))


Make = Callable[[Box, str, str], Path]
"""(sandbox, kind that is to be written, name of a finished folder of that command) to the target."""


def new(box: Box, _kind: str, _own: str) -> Path:
    """Nothing is there."""
    return box.path / "target"


def new_below(box: Box, _kind: str, _own: str) -> Path:
    """Nothing is there, nor are the folders above it."""
    return box.path / "one" / "two" / "target"


def empty(box: Box, _kind: str, _own: str) -> Path:
    """An empty folder."""
    (box.path / "target").mkdir()
    return box.path / "target"


def only_ds_store(box: Box, _kind: str, _own: str) -> Path:
    """What the Finder of macOS leaves in a folder that looks empty."""
    box.put("target/.DS_Store")
    return box.path / "target"


def own(box: Box, _kind: str, name: str) -> Path:
    """What the same command wrote."""
    return box.path / name


def own_unmarked(box: Box, _kind: str, name: str) -> Path:
    """What the same command wrote before there were marks."""
    for path in (box.path / name).rglob(MARK):
        path.unlink()
    return box.path / name


def own_killed(box: Box, kind: str, name: str) -> Path:
    """What the same command left when it was killed half way, with a temporary file."""
    last = {
        "cohort": ["cases.csv", "qc.html", "cases/P01/case.json"],
        "run": ["model.json", "model.pt", "predictions.csv", "metrics.json", "report.html", "fold_1/model.json"],
        "prediction": ["predictions.csv", "cohort/cases.csv", "predictions/P01.json"],
        "simulated cohort": ["cases.csv", "options.json"],
        "bundle": ["docs/README.md"],
        "demo": ["run/model.json"],
    }
    folder = box.path / name
    for path in last[kind]:
        (folder / path).unlink(missing_ok=True)
    (folder / ".mmfusion-tmp-0123456789ab-cases.csv").write_text("half")
    return folder


def own_killed_unmarked(box: Box, kind: str, name: str) -> Path:
    """The same, from before there were marks."""
    own_killed(box, kind, name)
    return own_unmarked(box, kind, name)


def own_and_mine(box: Box, kind: str, name: str) -> Path:
    """What the same command wrote, and a user's files at every level."""
    below = box.path / name
    box.put(*ADDED[kind], below=below / "fold_0" if name == "folds" else below)
    box.put("notes.txt", "thesis.txt", "single/notes.txt", "ensemble/.git/HEAD", below=below)
    return below


def own_and_mine_unmarked(box: Box, kind: str, name: str) -> Path:
    """The same, from before there were marks."""
    own_and_mine(box, kind, name)
    return own_unmarked(box, kind, name)


def own_and_mine_killed(box: Box, kind: str, name: str) -> Path:
    """The same, killed half way."""
    own_and_mine(box, kind, name)
    return own_killed(box, kind, name)


def own_backed_up(box: Box, _kind: str, name: str) -> Path:
    """What the same command wrote, with a backup of hard links (cp -al), which writing in place would change."""
    shutil.copytree(box.path / name, box.path / "backup", copy_function=os.link)
    box.keep(box.path / "backup")
    return box.path / name


def own_linked(box: Box, _kind: str, name: str) -> Path:
    """A link to what the same command wrote."""
    (box.path / "link").symlink_to(box.path / name)
    return box.path / "link"


def own_with_links(box: Box, kind: str, name: str) -> Path:
    """What the same command wrote, parts of which a user moved to another disk and linked."""
    parts = {"cohort": "cases/P00", "run": "checkpoints", "prediction": "predictions", "bundle": "models",
             "simulated cohort": "cases", "demo": "run"}  # fmt: skip
    part, away = box.path / name / parts[kind], box.path / "other disk" / "moved"
    if part.exists():
        away.parent.mkdir(exist_ok=True)
        part.rename(away)
    box.put("notes.txt", "thesis.txt", below=away)
    part.symlink_to(away)
    return box.path / name


def linked_empty(box: Box, _kind: str, _own: str) -> Path:
    """A link to an empty folder."""
    (box.path / "empty").mkdir()
    (box.path / "link").symlink_to(box.path / "empty")
    return box.path / "link"


def dangling_link(box: Box, _kind: str, _own: str) -> Path:
    """A link to nothing."""
    (box.path / "link").symlink_to(box.path / "nothing")
    return box.path / "link"


def strangers_folder(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder."""
    box.put("mine/thesis.txt", "mine/letters/one.txt")
    return box.path / "mine"


def strangers_repository(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder that shows nothing: a repository with no files checked out."""
    box.put("mine/.git/HEAD", "mine/.git/objects/ab/cd")
    return box.path / "mine"


def strangers_empty_folders(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder with no file in it, only folders of our names."""
    for name in ("cases/P00", "predictions", "models"):
        (box.path / "mine" / name).mkdir(parents=True)
    return box.path / "mine"


def strangers_our_names(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder in which files happen to have our names."""
    box.put(*OUR_NAMES, below=box.path / "mine")
    return box.path / "mine"


def strangers_like_ours(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder whose files look like ours at a glance."""
    box.put("mine/thesis.txt", "mine/predictions/thesis.txt", "mine/cases/P00/notes.txt", "mine/model.pt")
    texts = {
        "options.json": '{"seed": 1, "size": [8, 8, 8]}', "cases.csv": "case,subject,status\nP00,P00,done\n",
        "predictions.csv": "case,subject,p_a\nP00,P00,0.5\n", "metrics.json": '{"auc": 0.99}',
        "model.json": '{"format": 1}', "demo.json": '{"seed": 0}', "truth.json": "{}",
        "cases/P00/case.json": '{"key": "mine"}', "configs/metadata.json": '{"version": "1"}',
    }  # fmt: skip
    for name, text in texts.items():
        box.put(f"mine/{name}")
        (box.path / "mine" / name).write_text(text)
    return box.path / "mine"


def strangers_damaged_mark(box: Box, _kind: str, _own: str) -> Path:
    """Somebody's folder with a file of the name of our mark that is none."""
    box.put("mine/thesis.txt", f"mine/{MARK}", "mine/cases/P00/notes.txt", "mine/predictions/thesis.txt")
    return box.path / "mine"


def unknown_mark(box: Box, _kind: str, _own: str) -> Path:
    """A folder that another version of mmfusion marked."""
    box.put("mine/results.csv", f"mine/{MARK}")
    (box.path / "mine" / MARK).write_text('{"kind": "atlas"}')
    return box.path / "mine"


def foreign_bundle(box: Box, _kind: str, _own: str) -> Path:
    """A bundle of MONAI's zoo, trained and exported by somebody."""
    box.put("zoo/models/model.pt", "zoo/models/model.ts", "zoo/models/model.onnx", "zoo/docs/README.md",
            "zoo/configs/train.yaml", "zoo/configs/metadata.json", "zoo/LICENSE")  # fmt: skip
    text = '{"version": "0.1", "monai_version": "1.4", "required_packages_version": {"nibabel": "5"}}'
    (box.path / "zoo" / "configs" / "metadata.json").write_text(text)
    return box.path / "zoo"


def linked_stranger(box: Box, kind: str, name: str) -> Path:
    """A link to somebody's folder of our names."""
    (box.path / "link").symlink_to(strangers_our_names(box, kind, name))
    return box.path / "link"


def a_file(box: Box, _kind: str, _own: str) -> Path:
    """A file."""
    box.put("thesis")
    return box.path / "thesis"


def linked_file(box: Box, kind: str, name: str) -> Path:
    """A link to a file."""
    (box.path / "link").symlink_to(a_file(box, kind, name))
    return box.path / "link"


def below_a_file(box: Box, kind: str, name: str) -> Path:
    """Below a file, where no folder can be."""
    return a_file(box, kind, name) / "target"


def name_too_long(box: Box, _kind: str, _own: str) -> Path:
    """A name that no file system takes."""
    return box.path / ("t" * 300)


def holds_everything(box: Box, _kind: str, _own: str) -> Path:
    """The folder that holds all that the command reads."""
    return box.path


def of_kind(name: str) -> Make:
    """A folder of another kind: that of this name."""

    def make(box: Box, _kind: str, _own: str) -> Path:
        return box.path / name

    make.__doc__ = f"The folder {name}."
    return make


def linked(name: str) -> Make:
    """A link to the folder of this name."""

    def make(box: Box, _kind: str, _own: str) -> Path:
        (box.path / "link").symlink_to(box.path / name)
        return box.path / "link"

    return make


FOLDERS: dict[str, tuple[Make, str]] = {
    "new": (new, "writes"), "new, below new folders": (new_below, "writes"), "empty": (empty, "writes"),
    "only .DS_Store": (only_ds_store, "writes"), "link to an empty folder": (linked_empty, "either"),
    "dangling link": (dangling_link, "either"),
    "own": (own, "writes"), "own, unmarked": (own_unmarked, "writes"), "own, killed": (own_killed, "writes"),
    "own, killed, unmarked": (own_killed_unmarked, "either"),
    "own and mine": (own_and_mine, "writes"), "own and mine, unmarked": (own_and_mine_unmarked, "writes"),
    "own and mine, killed": (own_and_mine_killed, "writes"), "own, backed up": (own_backed_up, "writes"),
    "link to own": (own_linked, "writes"), "own, parts are links": (own_with_links, "keeps"),
    "stranger's": (strangers_folder, "refuses"), "stranger's repository": (strangers_repository, "refuses"),
    "stranger's empty folders": (strangers_empty_folders, "refuses"),
    "stranger's of our names": (strangers_our_names, "refuses"),
    "stranger's like ours": (strangers_like_ours, "refuses"),
    "stranger's with a damaged mark": (strangers_damaged_mark, "refuses"),
    "mark of another version": (unknown_mark, "refuses"), "foreign bundle": (foreign_bundle, "refuses"),
    "link to a stranger's": (linked_stranger, "refuses"), "a file": (a_file, "refuses"),
    "link to a file": (linked_file, "refuses"), "below a file": (below_a_file, "refuses"),
    "name too long": (name_too_long, "refuses"), "all that is there": (holds_everything, "refuses"),
}  # fmt: skip
"""Targets of a command that writes one folder, and what is to come of each."""
