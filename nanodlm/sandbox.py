"""Run programs that a model wrote, for HumanEval and MBPP: each in a process of its own, with little to break.

    passed, why = sandbox.run("assert 1 + 1 == 2", seconds=10)
    with sandbox.installed(allowed=run_code): ...        lm-eval's code tasks, run by this file instead of the hub's

A program gets a temporary directory, an empty environment and limits of time, memory and file size. It gets no network
and no process but its own: on Linux because it lives in namespaces, where the kernel grants them; everywhere because an
audit hook refuses what Python reports of sockets, of processes and of changes to files elsewhere. Many containers grant
no namespaces, nor does macOS: the hook alone is what there is then, and ctypes or an extension walks past it.

This is a seat belt against careless programs, not a jail for hostile ones: those can read what you can read. Whoever
does not trust a model runs the whole evaluation in a container or a virtual machine.
"""

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress

try:
    import resource
except ImportError:  # Windows
    resource = None

FILE_MB = 64  # the largest file a program may write, its stderr among them
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, PR_SET_PDEATHSIG = 0x10000000, 0x20000000, 0x40000000, 1  # Linux


# ---- outside: start the process, wait, clean up ----------------------------------------------------------------------


def run(program, seconds=10.0, megabytes=4096, namespaces=True):
    """(whether `program` ran to its end, "passed" or what went wrong).

    Leaving early is no pass, even with exit status 0. `megabytes` bounds the address space (macOS knows no such limit).
    namespaces=False does without them, as a kernel that refuses them does."""
    if resource is None:
        raise RuntimeError("this system cannot limit what model-written code does: run it on Linux, macOS or WSL")
    home = os.path.realpath(tempfile.mkdtemp(prefix="execute-"))
    # BLAS would start a thread for each core, here in as many programs at once.
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "TMPDIR": home, "OMP_NUM_THREADS": "1"}
    python, this = os.path.abspath(sys.executable), os.path.abspath(__file__)
    command = [python, "-I", "-B", this, str(seconds), str(megabytes), str(namespaces)]
    token = os.urandom(16).hex().encode()
    try:
        # Files, not pipes: nobody waits for a reader, and the limit on files bounds them. They have no name.
        with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as receipt, tempfile.TemporaryFile() as err:
            script.write(token + program.encode("utf-8", "surrogatepass"))
            script.seek(0)
            streams = {"stdin": script, "stdout": receipt, "stderr": err}
            process = subprocess.Popen(command, **streams, cwd=home, env=env, start_new_session=True)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False, f"timed out after {seconds:g} s"
            finally:
                with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS: only a zombie
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            receipt.seek(0)
            err.seek(max(0, err.seek(0, os.SEEK_END) - 4096))
            lines = err.read().decode(errors="replace").split("\n")
            if status == 0:
                passed = receipt.read(len(token) + 1) == token
                return passed, "passed" if passed else "left before its last line"
            if status < 0:
                return False, f"killed by signal {-status}"
            return False, next((line.strip()[:200] for line in reversed(lines) if line.strip()), f"status {status}")
    finally:
        remove(home)


def remove(directory):
    """Delete what a program left, whatever it is."""
    for _ in range(100):  # processes that were just killed may still be writing
        with suppress(RecursionError):
            shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            return
        # Directories may be closed to us, or lie a thousand deep: these two take no offence.
        for command in (["chmod", "-R", "u+rwx", directory], ["rm", "-rf", directory]):
            subprocess.run(command, stderr=subprocess.DEVNULL)
        time.sleep(0.01)


def check(programs, workers=None, **limits):
    """What run() says of each program, in their order; `workers` at once, by default one for each core."""
    from concurrent.futures import ThreadPoolExecutor  # here: the process inside needs neither, and starts faster

    from tqdm import tqdm

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(lambda program: run(program, **limits), programs)
        quiet = len(programs) == 1 or None  # lm-eval comes with one at a time
        return list(tqdm(done, total=len(programs), desc="running code", disable=quiet, leave=False))


# ---- inside: the first things that the new process does --------------------------------------------------------------


def inside(seconds, megabytes, namespaces):
    """Give up what the program must not have, run it, and say that it has come to its end."""
    with open(0, "rb", buffering=0, closefd=False) as script:
        token, program = script.read(32), script.read().decode("utf-8", "surrogatepass")
    limit("CPU", math.ceil(seconds) + 1)  # the clock outside comes first
    limit("AS", megabytes << 20)
    limit("FSIZE", FILE_MB << 20)
    limit("CORE", 0)
    if sys.platform == "linux":
        separate(namespaces)
    arm(token, sys._getframe())
    del token
    sys.addaudithook(guard(os.getcwd()))
    # An empty namespace, as in the original: what stands under `if __name__ == "__main__"` does not run.
    exec(compile(program, "<program>", "exec", dont_inherit=True), {})
    sys.audit("execute.ended")


def limit(kind, most):
    with suppress(ValueError, OSError):  # it is lower already, or macOS does not know it
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def separate(namespaces):
    """Go on in a child that is the first process of new namespaces: with it dies all that it starts, in any session.

    Every user may ask for them, and the kernel may refuse."""
    libc = ctypes.CDLL(None)
    granted = namespaces and libc.unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET) == 0
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not granted:
        return
    limit("NPROC", 256)  # it counts within the namespace; outside, it would count all that the user runs
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a child does not inherit it


def arm(token, frame):
    """Let `frame`, and no other, give the token back to the process outside, as a proof that it got that far.

    What keeps the token is the closure of an audit hook, and Python has no list of those. stdin and stdout, which it
    came from and goes to, become /dev/null."""
    receipt, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    getframe, write = sys._getframe, os.write  # the program may put others in their place

    def hook(event, args):
        if event == "execute.ended" and getframe().f_back is frame:
            write(receipt, token)

    sys.addaudithook(hook)


def guard(home):
    """An audit hook that refuses sockets, other processes, changes to files outside of `home`, and looking for arm()'s
    hook among all objects."""
    refused = {f"socket.{name}" for name in "connect bind sendto sendmsg getaddrinfo getnameinfo sethostname".split()}
    refused |= {"socket.gethostbyname", "socket.gethostbyaddr", "subprocess.Popen", "pty.spawn", "signal.pthread_kill"}
    refused |= {f"os.{name}" for name in "fork forkpty system exec spawn posix_spawn kill killpg".split()}
    refused |= {"gc.get_objects", "gc.get_referrers", "sys._current_frames"}
    changes = {f"os.{name}" for name in "remove rename rmdir mkdir truncate chmod chown link symlink".split()}
    changes |= {"shutil.rmtree"}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def hook(event, args):
        paths = args[:1] if event == "open" and args[2] & writing else args if event in changes else ()
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                path = realpath(fsdecode(path))
                if path != os.devnull and path != home and not path.startswith(home + os.sep):
                    raise PermissionError(f"model-written code may not change {path}")
        if event in refused:
            raise PermissionError(f"model-written code may not call {event}")

    return hook


# ---- the metric ------------------------------------------------------------------------------------------------------


def pass_at_k(n, c, k):
    """The chance that of k programs, drawn from n of which c pass, at least one does (arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} programs for each problem, not {n}: generate more or lower k")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


class CodeEval:
    """`evaluate`'s metric code_eval, as far as lm-eval uses it. `limits` go to check()."""

    def __init__(self, **limits):
        self.limits = limits

    def compute(self, references, predictions, k=(1, 10, 100)):
        """({"pass@1": mean over the problems, ...}, {problem: [(candidate, what became of it), ...]}).

        `references` holds the test code of each problem, `predictions` its candidates. A k that is larger than some
        problem's number of candidates is left out."""
        if len(references) != len(predictions):
            raise ValueError(f"{len(references)} tests and {len(predictions)} lists of candidates: give one for each")
        names = [(i, j) for i, candidates in enumerate(predictions) for j in range(len(candidates))]
        ran = check([predictions[i][j] + "\n" + references[i] for i, j in names], **self.limits)
        results = {i: [] for i in range(len(references))}
        for (i, j), (passed, why) in zip(names, ran):
            results[i].append((j, {"task_id": i, "passed": passed, "result": why, "completion_id": j}))
        counts = [(len(rs), sum(r["passed"] for _, r in rs)) for rs in results.values()]
        possible = [n for n in k if counts and n <= min(total for total, _ in counts)]
        return {f"pass@{n}": sum(pass_at_k(*count, n) for count in counts) / len(counts) for n in possible}, results


class Refused(ValueError):
    pass


@contextmanager
def installed(allowed, **limits):
    """While active, evaluate.load("code_eval") gives a CodeEval, or refuses where model-written code is not `allowed`.

    lm-eval's tasks load it while they are imported, so that nothing is generated before the refusal."""
    import evaluate

    original = evaluate.load

    def load(path, *args, **keys):
        if path != "code_eval":
            return original(path, *args, **keys)
        if not allowed:
            raise Refused("this task runs code that the model wrote: allow it with --run_code")
        return CodeEval(**limits)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


if __name__ == "__main__":
    inside(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True")
