"""Forks the processes of models: a process that has imported what they all import, which takes seconds, and does nothing else.

    python -m serving.engines.forkserver SOCKET MODULE

MODULE's `warm()` imports, and its `main(SOCKET)` is what a fork runs. There is one thread here and no model's code, so a fork is
as good as a process that began anew, and none can harm the next.

Messages are JSON over a SOCK_SEQPACKET socket, each answered in its turn. First of all comes `{"ready": true}`, or
`{"refused": "why"}` where forks would not be safe. `{"fork": {"environment": {…}, "folder": "…"}}` brings the process's socket
and its log as descriptors; its answer `{"pid": N}` brings a pidfd. `{"reap": N}` lets go of one that has ended, whose number is
not given to another process before; its answer is `{"reaped": N, "status": S}`, with the status as `subprocess.Popen.returncode`
has it. Ends when the socket does; what it forked lives on. Linux.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 1 << 17
"""Bytes of a message."""
ALONE = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Keeps libraries from starting threads when they are imported; a fork has none of them, and may have what it needs."""


def unsafe() -> str | None:
    """Why forks of this process cannot be made, or would not be safe; None where they are."""
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        return f"{threads} threads run once the packages are imported"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"processes cannot be watched here: {error}"
    return None


def serve(connection: socket.socket, run: Callable[[int], Any]) -> None:
    """Answer until the socket ends."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 2)
        if not data:
            return
        asked = json.loads(data)
        if "reap" in asked:
            connection.send(json.dumps({"reaped": asked["reap"], "status": _status(asked["reap"])}).encode())
            continue
        watch: list[int] = []
        try:
            if (pid := os.fork()) == 0:
                _become(connection, asked["fork"], descriptors, run)
            with contextlib.suppress(OSError):  # both set it: neither knows who is first
                os.setpgid(pid, pid)
            watch.append(os.pidfd_open(pid))
            socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], watch)
        except OSError as error:
            connection.send(json.dumps({"refused": str(error)}).encode())
        finally:
            for descriptor in (*descriptors, *watch):
                os.close(descriptor)


def _status(pid: int) -> int | None:
    """The status of a process of ours that has ended, which is let go of."""
    with contextlib.suppress(ChildProcessError):
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    return None


def _become(connection: socket.socket, given: Mapping[str, Any], descriptors: list[int], run: Callable[[int], Any]) -> None:
    """Be a model's process. Does not return."""
    try:
        connection.close()
        ours, log = descriptors
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        os.set_inheritable(ours, False)
        for name in ALONE:
            os.environ.pop(name, None)
        os.environ.update(given["environment"])
        os.chdir(given["folder"])
        time.tzset()
        _own()
        run(ours)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def _own() -> None:
    """What every process must have for itself: its random numbers, and the threads of its numeric libraries."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "threadpoolctl" in sys.modules:
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        threads = int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
        sys.modules["threadpoolctl"].threadpool_limits(threads)


def main(descriptor: int, module: str) -> None:
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    warnings.simplefilter("ignore")
    try:
        worker = importlib.import_module(module)
        worker.warm()
    except Exception as error:
        traceback.print_exc()
        connection.send(json.dumps({"refused": f"{type(error).__name__}: {error}"[:500]}).encode())
        return
    why = unsafe()
    connection.send(json.dumps({"refused": why} if why else {"ready": True}).encode())
    if why:
        return
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection writes to it
    with contextlib.suppress(ConnectionError):  # whoever asks for forks is gone
        serve(connection, worker.main)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
