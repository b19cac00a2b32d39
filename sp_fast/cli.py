"""The console script `sp-fast`: handles signals before anything large is imported."""

import os
import signal
import sys
from types import FrameType

from sp_fast.freed_memory import address_space_is_small, save_address_space


def main() -> None:
    """Run the command line; see `sp_fast.commands.app`.

    Ctrl-C ends it with exit status 130, SIGTERM with 143, unless a command does more, such as saving first.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    if address_space_is_small():
        save_address_space()
    from sp_fast.commands.app import run

    run()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Modules in the middle of their import may swallow an exception, or turn it into another.
    if _is_importing(frame):
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(128 + number)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
