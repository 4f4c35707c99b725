"""Model-written programs, run for real: what passes, what stops the others, and what none of them can reach."""

import ctypes
import functools
import gzip
import importlib.util
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanodlm import sandbox

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing runs on Windows")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
GUARDED = not sandbox.missing()  # what does not test the boundary runs without one, too
bubblewrap = pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing())
root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, on Linux")
both = pytest.mark.parametrize("guarded", [pytest.param(True, marks=bubblewrap), False], ids=["guarded", "unguarded"])


def failed(program, **limits):
    """Why a program failed, which it must."""
    passed, why = sandbox.run(program, **{"guarded": GUARDED} | limits)
    assert not passed, program
    return why


# ---- passing and failing ----

PASSES = """from __future__ import annotations
import asyncio, signal, sys, tempfile, threading
from dataclasses import dataclass
@dataclass
class A:
    x: int
A(1)
sys.setrecursionlimit(5000)
def f(n):
    return n and f(n - 1)
f(3000)
async def g():
    return 1
assert asyncio.run(g()) == 1
signal.alarm(0)  # it runs in the main thread
with tempfile.NamedTemporaryFile('w') as file:
    file.write('x')
try:
    input()
except EOFError:
    pass
else:
    assert False
t = threading.Thread(target=print)
t.start()
t.join()
open('/dev/null', 'w').write('x')
x = bytearray(200 << 20)
print('ä' * 1000)\r\nx = 'ä'\r\nassert len(x) == 1
if __name__ == '__main__':  # not as in a script, but as in the original metric
    assert False"""


@both
def test_what_a_program_may_do_and_how_its_end_is_told(guarded):
    for program in ("", PASSES):
        assert sandbox.run(program, guarded=guarded) == (True, "passed")
    assert failed("import sys\nsys.exit(3)", guarded=guarded) == "status 3"
    assert failed("import ctypes\nctypes.string_at(0)", guarded=guarded) == "killed by signal 11"


def test_a_program_fails_with_the_last_line_of_its_error():
    why = {
        "assert 1 + 1 == 3, 'sum'": "AssertionError: sum",
        "{}['x']": "KeyError: 'x'",
        "def f(:": "SyntaxError: invalid syntax",
        "raise Exception('x' * 1000)": "Exception: " + "x" * 189,
        "import sys\nsys.exit('sorry')": "sorry",
        "with open('x', 'wb') as f:\n    for _ in range(100):\n        f.write(bytes(1 << 20))": ".*File too large",
        "\udc80": "UnicodeEncodeError.*",  # half a character: no UTF-8
        "\0": ".*null bytes",
        "import sys\nwhile True:\n    sys.stderr.write('spam ' * 100000)": ".*spam spam.*",  # endless
    }
    if sys.platform != "darwin":  # which has no limit on the address space
        why["x = []\nwhile True:\n    x.append(bytearray(1 << 20))"] = "MemoryError"
    for program, (passed, said) in zip(why, sandbox.check(why, megabytes=256, guarded=GUARDED)):
        assert not passed and len(said) <= 200 and re.fullmatch(why[program], said), (program, said)


def test_a_system_without_limits(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "win32")
    with pytest.raises(ValueError, match="run it on Linux, macOS or WSL"):
        sandbox.run("pass")


# ---- limits, and many programs at once ----


@both
def test_whatever_does_not_end_is_ended_and_five_at_once_take_the_time_of_one(guarded):
    programs = [
        "while True:\n    pass",
        "import time\ntime.sleep(100)",
        "while True:\n    print('x' * 10000)",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",  # after its last line
    ]
    start = time.monotonic()
    ran = sandbox.check(programs, workers=5, seconds=1.25, guarded=guarded)
    assert ran == [(False, "timed out after 1.25 s")] * 5
    assert time.monotonic() - start < 5


def test_check_keeps_the_order():
    programs = [f"import time\ntime.sleep({0.4 - i / 5})\nassert False, {i}" for i in range(3)] + ["pass"]
    want = [(False, f"AssertionError: {i}") for i in range(3)] + [(True, "passed")]
    assert sandbox.check(programs, workers=4, guarded=GUARDED) == want
    assert sandbox.check(programs[2:], guarded=GUARDED) == want[2:] and sandbox.check([]) == []


@linux
@both
def test_the_kernel_limits_time_memory_and_files(guarded):
    """The wall clock comes first; were it gone, the kernel would end the program."""
    hard = "import resource\nfor kind, most in {'CPU': 4, 'CORE': 0, 'AS': 1 << 30, 'FSIZE': 64 << 20}.items():\n"
    hard += "    assert resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) == (most, most), kind"
    assert sandbox.run(hard, seconds=2.5, megabytes=1024, guarded=guarded) == (True, "passed")


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc")
@both
def test_what_its_processes_hold_together_is_limited(guarded):
    program = """import ctypes, os, time
read, write = os.pipe()
for _ in range(6):
    if ctypes.CDLL(None).fork() == 0:
        held = bytearray(b'x') * (100 << 20)
        os.write(write, b'x')
        time.sleep(100)
while len(os.read(read, 1)) and (count := globals().get('count', 0) + 1) < 6:
    pass
time.sleep(0.5)"""
    assert sandbox.run(program, megabytes=1024, guarded=guarded) == (True, "passed")
    assert failed(program, megabytes=400, guarded=guarded) == "took more than 400 MB in all its processes"


# ---- what it may not touch ----


@both
def test_home_is_its_own_empty_and_deleted_and_the_environment_bare(guarded, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    why = failed(
        "import importlib.util, os, tempfile\nassert os.listdir() == []\nopen('left', 'w').write('x')\n"
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == tempfile.gettempdir() == os.getcwd()\n"
        "os.makedirs('a/b')\nopen('a/b/c', 'w')\nos.remove('left')\n"
        "assert not importlib.util.find_spec('inside')\n"  # it does not see where inside.py lies
        "raise Exception(os.getcwd(), *os.environ)",
        guarded=guarded,
    )
    home, *names = re.findall(r"[^',() ]+", why.removeprefix("Exception: "))
    assert home == sandbox.HOME if guarded else Path(home).name.startswith("sandbox-") and not Path(home).exists()
    assert set(names) - {"LC_CTYPE", "PWD"} == {"HOME", "OMP_NUM_THREADS", "PATH", "TMPDIR"}


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.symlink('.', 'loop')\nos.mkdir('c')\nopen('c/x', 'w')\nos.chmod('c', 0)\n"
        "for _ in range(1100):\n    os.mkdir('d')\n    os.chdir('d')",
        "import os\nfor i in range(10**9):\n    open(str(i), 'w')",
    ],
)
def test_home_is_deleted_whatever_it_holds(program, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    sandbox.run(program, seconds=1, guarded=False)
    assert not list(tmp_path.iterdir())


@bubblewrap
def test_a_user_without_rights_and_the_first_process():
    """No other uid, no right that could be had, no new ones by programs that give some, and no file of ours open."""
    program = """import ctypes, os
libc = ctypes.CDLL(None)
assert os.getresuid() == (65534,) * 3 and os.getgroups() in ([], [65534]) and os.getpid() == 1
assert libc.prctl(39, 0, 0, 0, 0) == 1 and not any(libc.prctl(23, right, 0, 0, 0) > 0 for right in range(64))
found = []
for fd in range(128):
    try:
        found.append(os.fstat(fd) and fd)
    except OSError:
        pass
assert found == [0, 1, 2, 3], found  # the last one is for the receipt"""
    assert sandbox.run(program) == (True, "passed")


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def gone(marker):
    """Whether no process has `marker` in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if marker in path.read_text().split("\0"):
                return False
    return True


# Programs that get at what lies outside, and say "got out" where only they can tell. What stands outside: Outside.
NEW_USER, NEW_MOUNTS = 0x10000000, 0x20000
ATTACKS = {
    "write by ctypes": "libc.write(libc.creat(new.encode(), 0o644), b'x', 1)",
    "rename by ctypes": "libc.rename(kept.encode(), new.encode())",
    "delete by ctypes": "libc.unlink(kept.encode())",
    "write by dir_fd": "os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=os.open(directory, os.O_RDONLY))",
    "rename by dir_fd": "d = os.open(directory, os.O_RDONLY)\nos.rename('kept', 'new', src_dir_fd=d, dst_dir_fd=d)",
    "delete by dir_fd": "os.unlink('kept', dir_fd=os.open(directory, os.O_RDONLY))",
    "write by sqlite3": "import sqlite3\nsqlite3.connect(new).execute('create table t(x)')",
    "another program, by _posixsubprocess": "import subprocess\nsys.audit = print\nsubprocess.run(['rm', kept])",
    "read /etc/shadow": "open('/etc/shadow').readline()\nraise Exception('got out')",
    "read the project": "open(project + '/README.md').readline()\nraise Exception('got out')",
    "read homes and data": """for top in ('/root', '/home', '/var', '/srv', '/mnt', '/media', '/run', '/boot'):
    for where, _, names in os.walk(top):
        if names and not where.startswith((sys.prefix, sys.base_prefix)):
            raise Exception('got out: ' + where)""",
    "fork 600 times by ctypes": """for _ in range(600):
    child = libc.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    assert child > 0
raise Exception('got out')""",
    "write /dev/shm": "libc.creat(('/dev/shm/' + marker).encode(), 0o644)",
    "fill /tmp": """for i in range(9):
    open(str(i), 'wb').write(bytes(60 << 20))
raise Exception('got out')""",
    "memory without a process": "os.write(os.memfd_create('x'), bytes(60 << 20))\nraise Exception('got out')",
    "memory of System V": "assert libc.shmget(0, 60 << 20, 0o1600) >= 0\nraise Exception('got out')",
    "the network": """import struct
address = struct.pack('=H2s4s8x', 2, port.to_bytes(2, 'big'), bytes([127, 0, 0, 1]))
libc.connect(libc.socket(2, 1, 0), address, 16)""",
    "an abstract socket": """address = b'\\1\\0\\0' + marker.encode()
libc.connect(libc.socket(1, 1, 0), address, len(address))""",
    "a socket with a name": """address = b'\\1\\0' + directory.encode() + b'/socket\\0'
libc.connect(libc.socket(1, 1, 0), address, len(address))""",
    "a daemon": """if libc.fork() == 0:
    os.setsid()
    if libc.fork() == 0:
        libc.execl(b'/bin/sh', b'sh', b'-c', b'sleep 6; : > "$1"', marker.encode(), new.encode(), None)
    os._exit(0)
time.sleep(0.3)""",
    "look into another process": "raise Exception('got out: ' + open(f'/proc/{pid}/environ').read())",
    "trace another process": "assert libc.ptrace(0x4206, pid, 0, 0) == 0\nraise Exception('got out')",
    "kill another process": "libc.kill(pid, 9)",
    "user namespaces": f"assert libc.unshare({NEW_USER}) == 0\nraise Exception('got out')",
    "mount": f"libc.unshare({NEW_USER | NEW_MOUNTS})\nassert libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0\n"
    "raise Exception('got out')",
    "the kernel's settings": "assert libc.open(b'/proc/sys/kernel/core_pattern', os.O_RDWR) >= 0\n"
    "raise Exception('got out')",
    "the kernel's settings in /sys": "path = b'/sys/kernel/mm/transparent_hugepage/enabled'\n"
    "assert libc.open(path, os.O_RDWR) >= 0\nraise Exception('got out')",
    "the rights of devices": "os.chmod('/dev/null', 0o666)\nraise Exception('got out')",
    "keys of the session": """search, read = 10, 11
key = libc.syscall(keyctl, search, -3, b'user', marker.encode(), 0)
assert key > 0 and libc.syscall(keyctl, read, key, ctypes.create_string_buffer(99), 99) == 6
raise Exception('got out')""",
}
HEADER = "import ctypes, os, sys, time\nlibc = ctypes.CDLL(None)\n"
ADD_KEY, KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(os.uname().machine, (0, 0))


@contextmanager
def outside():
    """What stands outside, as what the programs know of it; and a function that says whether one of them got there."""
    with ExitStack() as stack:
        directory, marker = stack.enter_context(tempfile.TemporaryDirectory()), f"marker-{time.time_ns()}"
        os.chmod(directory, 0o777)
        kept, shm = Path(directory, "kept"), Path("/dev/shm", marker)
        kept.write_text("precious")
        kept.chmod(0o666)
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        for name in ("\0" + marker, f"{directory}/socket"):
            servers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            servers[-1].bind(name)
            servers[-1].listen()
        os.chmod(f"{directory}/socket", 0o777)
        victim = stack.enter_context(subprocess.Popen(["sleep", "100"]))
        stack.callback(victim.kill)
        if ADD_KEY:
            ctypes.CDLL(None).syscall(ADD_KEY, b"user", marker.encode(), b"secret", 6, -3)
        known = dict(directory=directory, kept=str(kept), new=f"{directory}/new", marker=marker, project=str(ROOT))
        known |= dict(pid=victim.pid, port=servers[0].getsockname()[1], keyctl=KEYCTL)

        def got_out(why):
            found = ["said so"] if "got out" in why else []
            found += ["files"] if sorted(os.listdir(directory)) != ["kept", "socket"] else []
            found += ["contents"] if not kept.exists() or kept.read_text() != "precious" else []
            found += ["/dev/shm"] if shm.exists() else []
            shm.unlink(missing_ok=True)
            found += [f"connection {i}" for i, s in enumerate(servers) if select.select([s], [], [], 0.1)[0]]
            found += ["killed"] if victim.poll() is not None else []
            return found + (["still runs"] if not wait_for(lambda: gone(marker), 1) else [])

        yield known, got_out


def attack(name, run):
    """What the attack got at, where `run` guards it, and what was said of the program."""
    with outside() as (known, got_out):
        said = "".join(f"{key} = {value!r}\n" for key, value in known.items())
        passed, why = run(HEADER + said + ATTACKS[name])
        return got_out(why), why


@bubblewrap
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_out(name):
    found, why = attack(name, sandbox.run)
    assert not found, why


@root
@pytest.mark.parametrize("name", ATTACKS)
def test_without_a_guard_each_of_them_does(name):
    """They are real ones, which root's rights let through. None of them does harm."""
    found, why = attack(name, functools.partial(sandbox.run, megabytes=1 << 16, guarded=False))
    if not found and (name.startswith("keys") or "/sys" in name):
        pytest.skip("this kernel has none of it")
    assert found, why


@bubblewrap
def test_nothing_can_be_written_but_in_tmp_and_shm():
    """Neither where bubblewrap has made directories, in memory without a limit."""
    program = """import os
for top in ('/', '/dev', '/etc', '/usr', os.path.dirname(os.__file__), {root!r}, os.path.dirname({root!r})):
    if os.path.isdir(top) and not top.startswith('/tmp'):
        try:
            open(top + '/x', 'w')
        except OSError as e:
            assert e.errno == 30, e  # a read-only file system
        else:
            raise Exception(top)
try:
    for i in range(9):
        open(f'/dev/shm/{{i}}', 'wb').write(bytes(60 << 20))
except OSError as e:
    assert e.errno == 28  # no space
else:
    raise Exception('/dev/shm')"""
    assert sandbox.run(program.format(root=str(ROOT))) == (True, "passed")


@linux
@both
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_program_does_not_outlive_us(guarded, kill, tmp_path):
    """Killed evaluations leave nothing running, and those that can clean up leave nothing at all."""
    marker = str(float(f"1000.{time.time_ns()}"))
    outer = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nanodlm import sandbox\n"
    outer += f"sandbox.run('import time; time.sleep(100)', seconds={marker}, guarded={guarded})"
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", outer], **streams, env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        assert wait_for(lambda: not gone(marker), 10)
        time.sleep(0.5)
    finally:
        process.send_signal(kill)
        process.wait(60)
    assert wait_for(lambda: gone(marker), 10)
    assert kill == signal.SIGKILL or not list(tmp_path.iterdir())


# ---- as somebody else, and where there is no boundary ----

ORDINARY = """import os, sys, types
sys.modules['tqdm'] = types.SimpleNamespace(tqdm=None)  # the system's Python has none
sys.path[:0] = [{root!r}, {root!r} + '/tests']
from nanodlm import sandbox
print(sandbox.missing())
print(sandbox.run('import os; assert os.getpid() == 1 and os.getuid() == 65534'))
print(sandbox.run({fork!r})[1])
print(sandbox.run("import os; os.mkdir('d'); open('d/x', 'w'); os.chmod('d', 0); os.chmod('.', 0)", guarded=False))
print(os.listdir({tmp!r}))"""


@root
@bubblewrap
def test_ordinary_user():
    python = "/usr/bin/python3"  # the environment may be closed to others
    with tempfile.TemporaryDirectory() as tmp:
        os.chmod(tmp, 0o777)
        keys = dict(user=1234, group=1234, extra_groups=[], cwd="/", env={"TMPDIR": tmp}, capture_output=True)
        new = f"import sys; open({__file__!r}); sys.exit(sys.version_info < (3, 11))"
        if not os.path.exists(python) or subprocess.run([python, "-c", new], **keys).returncode:
            pytest.skip("no Python here that another user may run, or the project is closed to others")
        fork = HEADER + ATTACKS["fork 600 times by ctypes"]
        code = ORDINARY.format(root=str(ROOT), fork=fork, tmp=tmp)
        out = subprocess.run([python, "-B", "-c", code], **keys, text=True)
        assert out.stdout.splitlines() == ["", "(True, 'passed')", "AssertionError", "(True, 'passed')", "[]"], out


MISSING = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nanodlm import sandbox\n"


@bubblewrap
def test_a_kernel_that_refuses():
    """The limit on namespaces is itself one of a namespace, so that we can lower ours without anybody noticing."""
    code = f"""{MISSING}import ctypes, os
uid = os.getuid()
assert ctypes.CDLL(None).unshare({NEW_USER}) == 0
open("/proc/self/uid_map", "w").write(f"1234 {{uid}} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
print(sandbox.missing())
try:
    sandbox.run("")
except sandbox.Refused as e:
    print("refused")"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said, refused = out.stdout.splitlines() or pytest.fail(out.stderr)
    assert re.fullmatch(r"model-written code runs inside bubblewrap, which does not work here \(bwrap: .*\): .*", said)
    assert "must allow user namespaces; --run_code=unguarded does" in said and refused == "refused"


@linux
def test_without_bubblewrap(tmp_path):
    code = f"{MISSING}print(sandbox.missing())"
    out = subprocess.run([sys.executable, "-c", code], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert "which is not installed: install it (Debian, Ubuntu: apt install bubblewrap; " in out.stdout, out.stderr


# ---- leaving early, and pretending not to ----

FDS = "for fd in range(64):\n    try:\n        {}\n    except OSError:\n        pass\n"
LEAVE = "import os\nos._exit(0)\n"
# Whatever looks like a token might be the token: hand it in, once.
HAND_IN = """import gc, os, re, sys
from contextlib import suppress
given = set()
def hand_in(x):
    if isinstance(x, bytes) and re.match(b'[0-9a-f]{32}', x) and x[:32] not in given:
        given.add(x[:32])
        for fd in range(64):
            with suppress(OSError):
                os.write(fd, x[:32])
def look(x):
    hand_in(x)
    for cell in getattr(x, '__closure__', None) or ():
        hand_in(cell.cell_contents)
def search(frame):
    while frame:
        for x in [*frame.f_locals.values(), *frame.f_globals.values()]:
            look(x)
        frame = frame.f_back
"""
EVERYWHERE = """search(sys._getframe())
for refused in (gc.get_objects, lambda: gc.get_referrers(1), sys._current_frames):
    try:
        for x in refused():
            look(x)
    except PermissionError as e:
        t = e.__traceback__
        while t:
            search(t.tb_frame)
            t = t.tb_next
for fd in range(64):
    with suppress(OSError):
        os.lseek(fd, 0, 0)
        hand_in(os.read(fd, 100))
seen, more = set(), [sys.modules, sys._getframe(), hand_in]
while more:
    x = more.pop()
    if id(x) not in seen:
        seen.add(id(x))
        hand_in(x)
        more += gc.get_referents(x)
"""
# Whoever is told of each call looks into its frame.
FOLLOW = """for follow in (sys.settrace, sys.setprofile):
    follow(lambda frame, *_: search(frame))
    sys.audit('sandbox.ended')
    follow(None)
"""


@both
def test_only_the_last_line_passes(guarded):
    # Given a token, the search passes it on.
    works = HAND_IN + "r, w = os.pipe()\ntoken = b'0a' * 16\nsearch(sys._getframe())\n"
    why = failed(works + "raise Exception(os.read(r, 64).decode())", guarded=guarded)
    assert why == "Exception: " + "0a" * 16
    programs = [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        LEAVE,
        "import atexit, os\natexit.register(os._exit, 0)\n1 / 0",
        "import os\n" + FDS.format("os.write(fd, b'0' * 32)") + LEAVE,
        "import os\n" + FDS.format("os.close(fd)") + "raise SystemExit",
        "import sys\nsys.audit('sandbox.ended')\n" + LEAVE,
        "import sys, threading\nt = threading.Thread(target=sys.audit, args=('sandbox.ended',))\nt.start()\nt.join()\n"
        + LEAVE,
        "import _thread, sys, time\n_thread.start_new_thread(sys.audit, ('sandbox.ended',))\ntime.sleep(0.1)\n" + LEAVE,
        "import sys, types\nf = sys._getframe().f_back\nsys._getframe = lambda *n: types.SimpleNamespace(f_back=f)\n"
        "sys.audit('sandbox.ended')\n" + LEAVE,
        HAND_IN + EVERYWHERE + LEAVE,
        HAND_IN + FOLLOW + LEAVE,
        "import __main__\n__main__.main(1.0, 4096)\n" + LEAVE,
        "import sys\nsys.audit = print",
        "import sys\nsys.addaudithook(lambda event, args: 1 / 0)",
    ]
    sabotage = 2  # these come to their end, but cannot say so
    marked = [p + "\nassert False, 'a test'" for p in programs[:-sabotage]] + programs[-sabotage:]
    for program, (passed, why) in zip(marked, sandbox.check(marked, guarded=guarded)):
        assert not passed and "a test" not in why, program


# ---- the metric ----


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert sandbox.pass_at_k(n, c, k) == float(Fraction(sum(map(any, subsets)), len(subsets)))
    n, c, k = 10**5, 3, 100
    none = Fraction(1)
    for i in range(n - c + 1, n + 1):  # the product of the paper's code
        none *= 1 - Fraction(k, i)
    assert sandbox.pass_at_k(n, c, k) == float(1 - none)
    for n, k in ((1, 10), (0, 1), (3, 0)):
        with pytest.raises(ValueError, match=f"pass@{k} needs at least {k} programs for each problem, not {n}"):
            sandbox.pass_at_k(n, 0, k)


ADD, CHECK = "def add(a, b):\n    return a {} b\n", "def check(f):\n    assert f(2, 3) == 5\ncheck(add)"


def test_metric():
    predictions = [[ADD.format(op) for op in "+-*"], [ADD.format("-"), ADD.format("+").strip()]]
    score, results = sandbox.CodeEval(guarded=GUARDED, seconds=5).compute([CHECK, CHECK], predictions, k=[1, 2, 3])
    assert score == {"pass@1": pytest.approx((1 / 3 + 1 / 2) / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    right = {"passed": True, "result": "passed"}, {"passed": False, "result": "AssertionError"}
    names = {0: [(0, 0), (1, 1), (2, 1)], 1: [(0, 1), (1, 0)]}  # candidate, and whether it is wrong
    assert results == {
        i: [(j, right[wrong] | {"task_id": i, "completion_id": j}) for j, wrong in ran] for i, ran in names.items()
    }
    assert sandbox.CodeEval(guarded=GUARDED).compute(references=[CHECK], predictions=[[ADD.format("+")]])[0] == {
        "pass@1": 1.0
    }
    with pytest.raises(ValueError, match="2 tests and 1 lists of candidates"):
        sandbox.CodeEval(guarded=GUARDED).compute([CHECK, CHECK], [[ADD]])


def test_human_eval():
    """All canonical solutions pass, and what does nothing does not."""
    path = ROOT.parent / "shared/data/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        problems = [json.loads(line) for line in lines]
    references = [f"{p['test']}\ncheck({p['entry_point']})" for p in problems]
    predictions = [[p["prompt"] + p["canonical_solution"], p["prompt"] + "    pass\n"] for p in problems]
    score, results = sandbox.CodeEval(guarded=GUARDED, seconds=30).compute(references, predictions)
    assert score == {"pass@1": 0.5} and len(problems) == 164
    assert [[r["passed"] for _, r in rs] for rs in results.values()] == [[True, False]] * 164


# ---- lm-eval ----


def lm_eval_module(task):
    """lm-eval's own module of a task, imported from its file as lm-eval does."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None:
        pytest.skip("lm-eval is not installed")
    path = Path(spec.submodule_search_locations[0]) / f"tasks/{task}/utils.py"
    spec = importlib.util.spec_from_file_location(f"{task}_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def evaluate(monkeypatch):
    """A stand-in for the module that would ask the hub, and takes ten seconds to import."""
    module = SimpleNamespace(load=lambda *args, **keys: ("original", args, keys))
    monkeypatch.setitem(sys.modules, "evaluate", module)
    return module


def test_lm_eval_runs_its_tasks_with_it(evaluate):
    with sandbox.installed("true" if GUARDED else "unguarded", seconds=5):
        humaneval, mbpp = lm_eval_module("humaneval"), lm_eval_module("mbpp")
    assert isinstance(humaneval.compute_, sandbox.CodeEval) and humaneval.compute_.limits == {
        "guarded": GUARDED,
        "seconds": 5,
    }
    answers = [["    return a + b\n", "    return a\n"]]
    predictions = humaneval.build_predictions(answers, [{"prompt": "def add(a, b):\n"}])
    assert humaneval.pass_at_k([CHECK], predictions, k=[1]) == {"pass@1": 0.5}
    assert mbpp.pass_at_1("assert add(2, 3) == 5", [ADD.format("+")]) == 1.0
    assert mbpp.pass_at_1(["assert add(2, 3) == 5"], [[ADD.format("-")]]) == 0.0


def test_without_the_flag_nothing_runs(evaluate, monkeypatch):
    monkeypatch.setattr(sandbox, "run", None)
    with sandbox.installed("false"):
        for task in ("humaneval", "mbpp"):
            with pytest.raises(ValueError, match="the model wrote: allow it with --run_code"):
                lm_eval_module(task)


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_other_metrics_are_the_originals_and_load_is_put_back(evaluate, allowed):
    original = evaluate.load
    with pytest.raises(ZeroDivisionError), sandbox.installed(allowed=allowed):
        assert evaluate.load is not original
        assert evaluate.load("accuracy", "x", keep=1) == ("original", ("accuracy", "x"), {"keep": 1})
        raise ZeroDivisionError
    assert evaluate.load is original
