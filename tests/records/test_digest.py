"""Hashes of files: whole, remembered for large ones, and never those of another content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from questbench import _digest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_digest, "LARGE", 1000)


def kept(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").rglob("*"))) - 1 if (tmp_path / "cache").exists() else 0


def old(path: Path, seconds: float = 100.0) -> Path:
    """As if it had been written a while ago."""
    stat = path.stat()
    os.utime(path, (stat.st_mtime - seconds, stat.st_mtime - seconds))
    return path


def test_small_files_are_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    path = old(tmp_path / "x")
    assert _digest.sha256(path) == hashlib.sha256(b"abc").hexdigest() and kept(tmp_path) == 0


def test_large_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"a" * 2000)
    path = old(tmp_path / "x")
    expected = hashlib.sha256(b"a" * 2000).hexdigest()
    assert _digest.sha256(path) == expected and kept(tmp_path) == 1
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert _digest.sha256(path) == expected
    path.write_bytes(b"b" * 2000)  # of the same size, with another time
    assert _digest.sha256(old(path, 50.0)) == hashlib.sha256(b"b" * 2000).hexdigest()


def test_a_file_that_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 2000)
    assert _digest.sha256(path) == hashlib.sha256(b"a" * 2000).hexdigest() and kept(tmp_path) == 0


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "file"))
    (tmp_path / "x").write_bytes(b"a" * 2000)
    assert _digest.sha256(old(tmp_path / "x")) == hashlib.sha256(b"a" * 2000).hexdigest()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _digest.sha256(tmp_path / "nothing")
