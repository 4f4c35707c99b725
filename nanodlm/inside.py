"""What sandbox.py starts inside its boundary: it gives up what a program must not have, runs it, and says when it has
come to its end.

    python -I -B -c "$(cat inside.py)" SECONDS MEGABYTES < token and program > receipt
"""

import ctypes
import math
import os
import resource
import signal
import sys
from contextlib import suppress

PROCESSES, FILES, FILE_MB = 64, 128, 64  # threads count as processes; the largest file is stderr's, too
PR_SET_PDEATHSIG = 1  # Linux


def main(seconds, megabytes):
    with open(0, "rb", buffering=0, closefd=False) as script:
        token, program = script.read(32), script.read().decode("utf-8", "surrogatepass")
    limit("CPU", math.ceil(seconds) + 1)  # the clock outside comes first
    limit("AS", megabytes << 20)
    limit("FSIZE", FILE_MB << 20)
    limit("NOFILE", FILES)
    limit("CORE", 0)
    if os.getpid() == 1:  # in a namespace, that is; elsewhere it would count all that the user runs
        limit("NPROC", PROCESSES)
    elif sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # bubblewrap does that for its own
    arm(token, sys._getframe())
    del token
    # An empty namespace, as in the original: what stands under `if __name__ == "__main__"` does not run.
    exec(compile(program, "<program>", "exec", dont_inherit=True), {})
    sys.audit("sandbox.ended")


def limit(kind, most):
    with suppress(ValueError, OSError):  # it is lower already, or macOS does not know it
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def arm(token, frame):
    """Let `frame`, and no other, give the token back to the process outside, as a proof that it got that far.

    What keeps the token is the closure of an audit hook, of which Python has no list; a second hook, so that no
    traceback leads to the first one, refuses to look for it among all objects. stdin and stdout, which the token came
    from and goes to, become /dev/null."""
    receipt, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    getframe, write = sys._getframe, os.write  # the program may put others in their place

    def keep(event, args):
        if event == "sandbox.ended" and getframe().f_back is frame:
            write(receipt, token)

    def hide(event, args):
        if event in ("gc.get_objects", "gc.get_referrers", "sys._current_frames"):
            raise PermissionError(f"model-written code may not call {event}")

    sys.addaudithook(keep)
    sys.addaudithook(hide)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
