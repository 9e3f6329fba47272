"""Limits: how long one study may be read, so that a file that hangs its reader costs its own study and no other."""

import faulthandler
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

from data.quarantine import REPAIR, BadStudy

SECONDS_PER_STUDY = 900.0
_MORE = 1.2  # a library that lets no signal through ends its process by then


class _OutOfTime(BaseException):
    """Raised where a study is being read; no library that handles every Exception handles it."""


@contextmanager
def limited(seconds: float) -> Generator[None]:
    """Raise BadStudy where the body takes longer; end this process where a library in it cannot be interrupted.

    Only a process's main thread can be interrupted; in another one, only its process is ended.
    """

    def stop(number: int, frame: object) -> None:
        raise _OutOfTime

    interruptible = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, stop) if interruptible else None
    with open(os.devnull, "w") as nothing:  # the traceback may show names  # noqa: PTH123
        try:
            faulthandler.dump_traceback_later(seconds * _MORE, exit=True, file=nothing)
            if interruptible:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        except _OutOfTime:
            raise BadStudy(
                f"more than {seconds:g} s of reading",
                "a scan that is read within that time",
                REPAIR,
            ) from None
        finally:
            if interruptible:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            faulthandler.cancel_dump_traceback_later()
