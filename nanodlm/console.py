"""A command and whoever reads what it says: in any encoding, as far as they listen, and no more than text."""

import errno
import gc
import os
import re
import sys

# What a terminal or a browser would obey instead of showing: control characters other than line break and tab, marks
# that turn the direction of reading or break lines, halves of characters.
UNSEEN = re.compile("[\0-\b\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

# Of a disk, or a user's part of it, that takes no more: what is written to an open file fails without its name.
FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)]


def visible(text):
    """A text of somebody else's (a model's, a checkpoint's, a data set's) as it may be printed."""

    def sign(match):
        code = ord(match[0])  # Unicode has pictures of the first 32, ␀ to ␟
        return chr(0x2400 + code) if code < 32 else match[0].encode("unicode_escape").decode()

    return UNSEEN.sub(sign, str(text))


def run(main, *args):
    """Call main as a command, which ends the process where main says or fails so: with its exit status, and without a
    traceback where somebody presses Ctrl-C or stops reading (as `| head` does)."""
    gc.freeze()  # what was imported stays: to look through torch's objects for garbage takes 80 ms each time
    streams = [s for s in (sys.stdin, sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    for stream in streams:  # what an encoding lacks is no reason to end
        stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    try:
        try:
            status = main(*args)
        except SystemExit as e:
            status = visible(e.code) if isinstance(e.code, str) else e.code
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            status = 130  # as if SIGINT had ended it
        except OSError as e:
            if e.filename is None:  # of a stream
                raise
            status = visible(f"{e.filename!r} cannot be used: {e.strerror}")
        for stream in streams[1:]:
            stream.flush()
    except OSError as e:
        if any(map(mute, streams[1:])):
            status = 141 if isinstance(e, BrokenPipeError) else f"what was to be said could not be written: {e}"
        elif e.errno in FULL:
            status = f"a file could not be written ({e.strerror}): make room on the disk, and start the same again"
        else:
            raise
    if status:
        sys.exit(status)


def mute(stream):
    """Whether a stream takes no more; what it still holds then goes nowhere, or Python would complain at the end."""
    try:
        stream.write("\n")
        stream.flush()
        return False
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
