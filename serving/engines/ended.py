"""How a process ended, for people: the signal that killed it or its exit status, and what to do about it."""

from __future__ import annotations

import signal

_ADVICE = {
    signal.SIGKILL: "Most likely the system had no memory left: serve fewer or smaller models, or give the machine more memory.",
    signal.SIGSEGV: "A native library of the model crashed: let its requirements name the versions it was made with.",
    signal.SIGBUS: "A file that the model maps into memory is cut short, or the disk is full: register the model again.",
    signal.SIGILL: "A native library of the model was built for another processor: let its requirements name another build.",
    signal.SIGABRT: "A native library of the model gave up: its log says why.",
    signal.SIGFPE: "A native library of the model divided by zero: let its requirements name the versions it was made with.",
}


def how(status: int | None) -> tuple[str, str]:
    """How it ended, such as "killed by SIGSEGV", and what to do; both may be empty.

    `status` is an exit status as of `subprocess.Popen.returncode`: a negative one is the number of a signal.
    """
    if status is None:
        return "", ""
    if status >= 0:
        return f"exit status {status}", ""
    try:
        found = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}", ""
    return f"killed by {found.name}", _ADVICE.get(found, "")
