"""Run programs that a model wrote, for HumanEval and MBPP, where they can do no harm.

    passed, why = sandbox.run("assert 1 + 1 == 2", seconds=10)
    with sandbox.installed(allowed="true"): ...          lm-eval's code tasks, run by this file instead of the hub's

The boundary is the kernel's, drawn by bubblewrap. Inside are the system's programs and this interpreter, read-only, a
/tmp and a /dev/shm of their own, small and gone afterwards, and nothing else: no network, no process but the program's,
no /home, /root, /proc, /sys, no data, nothing of this project, and a user who owns nothing and may do nothing. Time,
memory, processes and files are limited. Memory is what the processes hold together, looked at every 50 ms; what the
kernel holds for them beside that is bounded by the number of their files.

What a program shares with us is the kernel and its faults: against those helps a virtual machine. And that it came to
its end it says itself, by a token hidden in its own process: leaving early is no pass, but code written to search its
own memory for that token could pretend.
"""

import functools
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from nanodlm.files import ROOT

INSIDE = Path(__file__).with_name("inside.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
SYSTEM += ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")  # what libraries are looked up in, and the time
NOBODY, HOME, LOOK_EVERY = 65534, "/tmp/home", 0.05  # seconds


class Refused(ValueError):
    """Model-written code does not run here, or not so."""


# ---- the boundary ----------------------------------------------------------------------------------------------------


def view():
    """bubblewrap's arguments for all that can be seen. Directories are made first: those that bubblewrap makes for
    what it mounts in them are closed to others."""
    python = dict.fromkeys([sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)])
    # Only these parts: an environment may be made in the project's own directory, or in somebody's home.
    parts = [f"{prefix}/{part}" for prefix in python for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    return [
        *("--dir", "/etc", *(x for path in SYSTEM for x in ("--ro-bind-try", path, path))),
        *("--dev", "/dev", "--size", str(64 << 20), "--tmpfs", "/dev/shm"),
        *("--size", str(256 << 20), "--tmpfs", "/tmp", "--dir", HOME),
        *("--dir", str(ROOT), "--tmpfs", str(ROOT)),  # it may lie in /usr
        *(x for prefix in python for x in ("--dir", prefix)),
        *(x for path in parts for x in ("--ro-bind-try", path, path)),
        *(x for path in (str(ROOT), "/dev", "/") for x in ("--remount-ro", path)),
    ]


def boundary(status, calls):
    """The command in front of a program's. Two file descriptors: bubblewrap writes to `status` how it went, and reads
    from `calls` which system calls to refuse."""
    bwrap = shutil.which("bwrap") or "bwrap"
    user = f"--uid {NOBODY} --gid {NOBODY} --cap-drop ALL --unshare-all --unshare-user --disable-userns"
    # It is the first process, so that none is there whose files and memory it could look into, and ends all others.
    first = f"--as-pid-1 --die-with-parent --chdir {HOME} --json-status-fd {status} --seccomp {calls}"
    command = [bwrap, *view(), *user.split(), *first.split()]
    if os.geteuid():
        return command
    # Root stays the owner of its files in any namespace, of /dev/null as well, and may fork without end. So root only
    # draws the view, as the interpreter may lie in /root, and within it nobody draws the boundary. The first process
    # is root's here: nobody would not hear that we died.
    rights = "--cap-add CAP_SETUID --cap-add CAP_SETGID --unshare-pid --die-with-parent"
    become = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    return [bwrap, "--proc", "/proc", *view(), *rights.split(), *become.split(), *command]


# Of the system calls that no namespace keeps inside: add_key, request_key, keyctl see the keys of whoever started us;
# shmget, msgget, memfd_create take memory that is no process's.
REFUSED_CALLS = {
    "x86_64": (0xC000003E, (248, 249, 250, 29, 68, 319)),
    "aarch64": (0xC00000B7, (217, 218, 219, 194, 186, 279)),
}


def refused_calls():
    """They as a program for the kernel (linux/filter.h); none for other machines."""
    machine, numbers = REFUSED_CALLS.get(os.uname().machine, (None, ()))
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001  # with EPERM
    steps = [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    if machine:
        steps = [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)] + steps
        # Other numbers mean the same in another machine's programs, which ours may run: 32 bits, x32.
        steps = [(load, 0, 0, 0), (at_least, len(numbers) + 1, 0, 0x40000000)] + steps
        steps = [(load, 0, 0, 4), (equal, 0, len(steps) - 1, machine)] + steps
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


@functools.cache
def missing():
    """Why there is no boundary here, and what to do, in a sentence; empty where there is one."""
    how = "install it (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)"
    if sys.platform != "linux":
        why, how = f"does not exist for {sys.platform}", "run it on Linux"
    elif shutil.which("bwrap") is None:
        why = "is not installed"
    else:
        try:
            passed, said = run("", seconds=60)
        except (Refused, OSError) as e:
            passed, said = False, str(e)
        why = "" if passed else f"does not work here ({said})"
        how = "it must be version 0.8 or newer, and the kernel or the container must allow user namespaces"
    instead = "--run_code=unguarded does without any protection"
    return why and f"model-written code runs inside bubblewrap, which {why}: {how}; {instead}"


# ---- one program, and many -------------------------------------------------------------------------------------------


def run(program, seconds=10.0, megabytes=4096, guarded=True):
    """(whether `program` ran to its end, "passed" or what went wrong).

    Leaving early is no pass, even with exit status 0. `megabytes` bounds the address space of each process, and what
    all of them hold together. Without a guard are only the limits, and a temporary directory."""
    if sys.platform == "win32":
        raise Refused("this system cannot limit what model-written code does: run it on Linux, macOS or WSL")
    home = HOME if guarded else os.path.realpath(tempfile.mkdtemp(prefix="sandbox-"))
    # BLAS would start a thread for each core, here in as many programs at once.
    env = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "OMP_NUM_THREADS": "1"}
    python = [os.path.abspath(sys.executable), "-I", "-B", "-c", INSIDE.read_text("utf-8")]
    python += [str(seconds), str(megabytes)]
    token = os.urandom(16).hex().encode()
    # Files, not pipes: nobody waits for a reader, and the limit on files bounds them. They have no name.
    file = tempfile.TemporaryFile
    try:
        with file() as script, file() as receipt, file() as err, file() as status, file() as calls:
            script.write(token + program.encode("utf-8", "surrogatepass"))
            calls.write(refused_calls())
            for x in (script, calls):
                x.seek(0)
            fds = (status.fileno(), calls.fileno()) if guarded else ()
            command, where = ([*boundary(*fds), *python], "/") if guarded else (python, home)
            streams = {"stdin": script, "stdout": receipt, "stderr": err, "pass_fds": fds}
            process = subprocess.Popen(command, **streams, cwd=where, env=env, start_new_session=True)
            try:
                stopped = watch(process, seconds, megabytes)
            finally:
                with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS: only a zombie
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for x in (receipt, status):
                x.seek(0)
            err.seek(max(0, err.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip()[:200] for line in err.read().decode(errors="replace").split("\n") if line.strip()]
            if stopped:
                return False, stopped
            if guarded and b'"exit-code"' not in status.read():  # the program never began, and did nothing wrong
                raise Refused(lines[-1] if lines else "bwrap ended without a word")
            return ended(process.returncode, receipt.read(len(token) + 1) == token, lines)
    finally:
        if not guarded:
            remove(home)


def watch(process, seconds, megabytes):
    """Wait for the process to end; or say why it may not go on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(LOOK_EVERY, max(0, end - time.monotonic())))
            return ""
        if memory(process.pid) > megabytes << 20:
            return f"took more than {megabytes} MB in all its processes"
    return f"timed out after {seconds:g} s"


def memory(pid):
    """The bytes that a process holds, and all that descend from it. (psutil would look at every process there is.)"""
    process, held = Path(f"/proc/{pid}"), 0
    with suppress(OSError):  # it is gone; macOS has no /proc
        held = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for thread in (process / "task").iterdir():
            held += sum(map(memory, (thread / "children").read_text().split()))
    return held


def ended(status, passed, lines):
    """What run() says of a program that ended by itself."""
    if status == 0:
        return passed, "passed" if passed else "left before its last line"
    if status < 0 or status > 128:  # which is how bubblewrap says it
        return False, f"killed by signal {-status if status < 0 else status - 128}"
    return False, lines[-1] if lines else f"status {status}"


def remove(directory):
    """Delete what a program left: directories may be closed to us, or lie a thousand deep."""
    for command in (["chmod", "-R", "u+rwx", directory], ["rm", "-rf", directory]):
        subprocess.run(command, stderr=subprocess.DEVNULL)


def check(programs, workers=None, **limits):
    """What run() says of each program, in their order; `workers` at once, by default one for each core."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(lambda program: run(program, **limits), programs)
        quiet = len(programs) == 1 or None  # lm-eval comes with one at a time
        return list(tqdm(done, total=len(programs), desc="running code", disable=quiet, leave=False))


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


@contextmanager
def installed(allowed, **limits):
    """While active, evaluate.load("code_eval") gives a CodeEval, or refuses where model-written code is not `allowed`:
    "false", "true", or "unguarded", without any boundary.

    lm-eval's tasks load it while they are imported, so that nothing is generated before the refusal."""
    import evaluate

    if allowed == "unguarded":
        print("warning: nothing guards this machine from what the model wrote (run_code=unguarded)")
    original = evaluate.load

    def load(path, *args, **keys):
        if path != "code_eval":
            return original(path, *args, **keys)
        if allowed not in ("true", "unguarded"):
            raise Refused("this task runs code that the model wrote: allow it with --run_code")
        guarded = allowed == "true"
        if guarded and missing():
            raise Refused(missing())
        return CodeEval(guarded=guarded, **limits)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original
