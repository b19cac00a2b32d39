"""Atomic writes: a file is written beside its place, then renamed. And the hash of a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        written = beside.stat().st_size / 1e6
        what = f"no space left on the disk, which needs more than {written:.1f} MB for this file"
        raise OSError(errno.ENOSPC, what, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


class _Sink:
    """Writes to a file, and keeps the error of a write that fails: torch.save raises another in its place."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Writes bytes."""
        try:
            return self._file.write(data)
        except BaseException as error:  # Ctrl-C too
            self.error = error
            raise

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()


def write_tensors(value: Any, path: Path) -> None:
    """Write a value to `path` by torch.save (atomic write)."""
    import torch

    with replacing(path) as file:
        sink = _Sink(file)
        try:
            torch.save(value, sink)
        except RuntimeError:
            if sink.error is None:
                raise
            raise sink.error from None


def write_text(text: str, path: Path) -> None:
    """Write text to `path` as UTF-8 (atomic write)."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(value: Any, path: Path) -> None:
    """Write a value to `path` as indented JSON (atomic write)."""
    write_text(json.dumps(value, indent=1), path)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return sha256_of_rest(file)


def sha256_of_rest(file: BinaryIO, start: int = 0) -> str:
    """SHA-256 of an open file from byte `start` on, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(start)
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()
