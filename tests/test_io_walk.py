"""The walk of a tree: each file once, and an account of what is not read."""

import json
import os

from mmfusion.files import MARK
from mmfusion.io import Unread, walk


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def found(root, unread=None):
    return [path.relative_to(root).as_posix() for path in walk(root, unread)]


def test_names_with_a_dot_are_names_like_others(tmp_path):
    put(tmp_path, "b", ".a", ".x/c", "y/.z/d")
    assert found(tmp_path) == [".a", "b", ".x/c", "y/.z/d"]
    assert [path.name for path in walk(tmp_path, below=False)] == [".a", "b"]


def test_links_are_followed_once_and_never_back(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    put(root, "P1/a")
    put(store, "p2/b", "c")
    (root / "A").symlink_to(root / "P1")  # a second name of P1, before it in order
    (root / "P2").symlink_to(store / "p2")
    (root / "Q").symlink_to(store / "p2")
    (root / "c").symlink_to(store / "c")
    (store / "p2" / "loop").symlink_to(root)
    (store / "p2" / "up").symlink_to(tmp_path)
    (root / "self").symlink_to("self")
    unread = Unread()
    assert found(root, unread) == ["c", "P1/a", "P2/b"]
    assert [path.relative_to(root).as_posix() for path in unread.repeated] == ["A", "Q", "P2/loop", "P2/up"]
    assert unread.broken_links == [root / "self"]


def test_folders_of_the_system_and_our_own_are_not_entered(tmp_path):
    put(tmp_path, ".git/a", "x/@eaDir/b", "y/@eaDir/b", ".Trash-1000/c", "cohort/d", "raw/e", "git/f")
    for name, kind in (("", "cohort"), ("cohort", "cohort"), ("raw", "raw study")):
        (tmp_path / name / MARK).write_text(json.dumps({"kind": kind}))
    unread = Unread()
    assert found(tmp_path, unread) == [MARK, "git/f", f"raw/{MARK}", "raw/e"]
    assert unread.system == {".git": 1, "@eaDir": 2, ".Trash-1000": 1} and unread.ours == [tmp_path / "cohort"]


def test_closed_folders_and_special_files_are_named(tmp_path, monkeypatch):
    put(tmp_path, "a/x", "b/x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    scandir = os.scandir

    def refusing(path):
        if path == tmp_path / "a":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    unread = Unread()
    assert found(tmp_path, unread) == ["b/x"]
    assert unread.unreadable == [tmp_path / "a"] and unread.special == [tmp_path / "pipe", tmp_path / "zero"]
