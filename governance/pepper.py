"""The secret beside the database, without which its digests of keys open nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path


def load_pepper(path: Path) -> bytes:
    """The pepper, made on first use: written in full under another name, then linked, so that no one ever reads half of it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".pepper-", dir=path.parent)  # mode 0600
        try:
            os.write(handle, secrets.token_bytes(32))
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(name, path)
        except FileExistsError:
            pass  # another process was first; its pepper counts
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    if path.stat().st_mode & 0o077 and os.name == "posix":
        path.chmod(0o600)
    pepper = path.read_bytes()
    if len(pepper) < 32:
        raise ValueError(f"{path} is damaged: restore it from a backup, or delete it and make new keys")
    return pepper
