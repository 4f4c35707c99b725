"""Model-written programs, run for real: what passes, what stops the others, and what none of them can reach."""

import gzip
import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from nanodlm import sandbox

pytestmark = pytest.mark.skipif(sandbox.resource is None, reason="this system has no resource limits")
ROOT = Path(__file__).resolve().parent.parent
# Asked of the kernel, not of sandbox.py; users, network and processes.
ASK = [sys.executable, "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x70000000))"]
GRANTED = sys.platform == "linux" and subprocess.run(ASK).returncode == 0
needs_namespaces = pytest.mark.skipif(not GRANTED, reason="this kernel grants no namespaces")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
both = pytest.mark.parametrize("namespaces", [pytest.param(True, marks=needs_namespaces), False])


def failed(program, **limits):
    """Why a program failed, which it must."""
    passed, why = sandbox.run(program, **limits)
    assert not passed, program
    return why


# ---- passing and failing ----


@both
@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert 1 + 1 == 2",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)",
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and f(n - 1)\nf(3000)",
        "import asyncio\nasync def f():\n    return 1\nassert asyncio.run(f()) == 1",
        "import signal\nsignal.alarm(0)",  # it runs in the main thread
        "import tempfile\nwith tempfile.NamedTemporaryFile('w') as f:\n    f.write('x')",
        "try:\n    input()\nexcept EOFError:\n    pass\nelse:\n    assert False",
        "print('ä' * 1000)\r\nx = 'ä'\r\nassert len(x) == 1",
        "if __name__ == '__main__':\n    assert False",  # as in the original metric
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "open('/dev/null', 'w').write('x')",
        "x = bytearray(200 << 20)",
    ],
)
def test_passes(program, namespaces):
    assert sandbox.run(program, namespaces=namespaces) == (True, "passed")


@both
@pytest.mark.parametrize(
    "program, why",
    [
        ("assert 1 + 1 == 3, 'sum'", "AssertionError: sum"),
        ("assert False", "AssertionError"),
        ("{}['x']", "KeyError: 'x'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise Exception('x' * 1000)", "Exception: " + "x" * 189),
        ("import sys\nsys.exit(3)", "status 3"),
        ("import sys\nsys.exit('sorry')", "sorry"),
        ("import ctypes\nctypes.string_at(0)", "killed by signal 11"),
        ("\udc80", None),  # half a character: no UTF-8
        ("\0", None),
    ],
)
def test_fails(program, why, namespaces):
    said = failed(program, namespaces=namespaces)
    assert said == why or why is None and "Error" in said


def test_no_resource_module(monkeypatch):
    monkeypatch.setattr(sandbox, "resource", None)
    with pytest.raises(RuntimeError, match="run it on Linux, macOS or WSL"):
        sandbox.run("pass")


# ---- limits ----


@both
@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(100)",
        "while True:\n    print('x' * 10000)",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",  # after its last line
    ],
)
def test_time(program, namespaces):
    start = time.monotonic()
    assert failed(program, seconds=0.5, namespaces=namespaces) == "timed out after 0.5 s"
    assert time.monotonic() - start < 5


@linux
@both
def test_cpu_time_is_limited_too(namespaces):
    """The wall clock comes first; were it gone, the kernel would end the program."""
    hard = "import resource\nfor kind, most in {'CPU': 4, 'CORE': 0, 'AS': 1 << 30}.items():\n"
    hard += "    assert resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) == (most, most), kind"
    assert sandbox.run(hard, seconds=2.5, megabytes=1024, namespaces=namespaces)[0]


@both
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no limit on the address space")
def test_memory(namespaces):
    bomb = "x = []\nwhile True:\n    x.append(bytearray(1 << 20))"
    assert failed(bomb, megabytes=256, namespaces=namespaces) == "MemoryError"
    fits = "x = bytearray(100 << 20)"
    assert sandbox.run(fits, megabytes=256, namespaces=namespaces)[0]
    assert not sandbox.run(fits, megabytes=100, namespaces=namespaces)[0]


@both
def test_file_size(namespaces):
    huge = "with open('x', 'wb') as f:\n    for _ in range(100):\n        f.write(bytes(1 << 20))"
    assert "File too large" in failed(huge, namespaces=namespaces)
    assert sandbox.run(huge.replace("100", "10"), namespaces=namespaces)[0]


def test_endless_stderr_is_bounded():
    why = failed("import sys\nwhile True:\n    sys.stderr.write('spam ' * 100000)")
    assert "spam spam" in why and len(why) <= 200


# ---- what it may not touch ----


@both
def test_home_is_empty_and_deleted(namespaces):
    why = failed(
        "import os, tempfile\nassert os.listdir() == []\nopen('left', 'w').write('x')\n"
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == tempfile.gettempdir() == os.getcwd()\n"
        "os.makedirs('a/b')\nopen('a/b/c', 'w')\nos.remove('left')\nraise Exception(os.getcwd())",
        namespaces=namespaces,
    )
    home = why.removeprefix("Exception: ")
    assert Path(home).name.startswith("execute-") and not Path(home).exists()


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        "import os\nos.mkdir('d')\nopen('d/x', 'w')\nos.chmod('d', 0)\nos.chmod('.', 0)",
        "import os\nos.symlink('.', 'loop')",
        "import os\nfor i in range(10**9):\n    open(str(i), 'w')",
    ],
)
def test_home_is_deleted_whatever_it_holds(program, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    sandbox.run(program, seconds=1)
    assert not list(tmp_path.iterdir())


def test_home_is_deleted_when_we_are_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(sandbox.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run("while True:\n    pass")
    assert started[0].returncode == -9 and not list(tmp_path.iterdir())


def test_files_elsewhere_stay(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("precious")
    for change in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"os.open({str(kept)!r}, os.O_RDWR)",
        f"os.remove({str(kept)!r})",
        f"os.unlink({os.fsencode(kept)!r})",
        f"os.rename({str(kept)!r}, 'mine')",
        f"os.rename('mine', {str(kept)!r})",
        f"os.truncate({str(kept)!r}, 0)",
        f"shutil.rmtree({str(tmp_path)!r})",
        f"pathlib.Path({str(tmp_path / 'new')!r}).mkdir()",
        f"os.chdir({str(tmp_path)!r})\nopen('kept', 'w')",
        f"os.chdir({str(tmp_path)!r})\nos.remove('kept')",
    ):
        why = failed("import os, shutil, pathlib\nopen('mine', 'w').close()\n" + change, namespaces=False)
        assert why.startswith(f"PermissionError: model-written code may not change {tmp_path}"), change
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]
    assert sandbox.run(f"assert open({str(kept)!r}).read() == 'precious'", namespaces=False)[0]


@both
def test_environment(namespaces, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    why = failed("import os\nraise Exception(sorted(os.environ))", namespaces=namespaces)
    assert set(re.findall(r"\w+", why)) - {"Exception", "LC_CTYPE"} == {"HOME", "OMP_NUM_THREADS", "PATH", "TMPDIR"}
    assert sandbox.run("import sys\nassert not any('main' in p for p in sys.path[:1])", namespaces=namespaces)[0]


@needs_namespaces
def test_environment_of_other_processes():
    assert Path(f"/proc/{os.getpid()}/environ").read_bytes()
    assert "Permission denied" in failed(f"open('/proc/{os.getpid()}/environ').read()")


# ---- network ----


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def reached(server):
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


# The C library's connect: no audit event tells of it.
BY_C = """import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
port = ({port}).to_bytes(2, 'big')
address = struct.pack('=H2s4s8x', 2, port, bytes([127, 0, 0, 1]))
if libc.connect(libc.socket(2, 1, 0), address, 16):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"""


@needs_namespaces
def test_no_network_in_the_namespace(listener):
    program = BY_C.format(port=listener.getsockname()[1])
    assert "Network is unreachable" in failed(program)
    assert not reached(listener)


@linux
def test_namespaces_are_what_stops_c(listener):
    """The test above can fail, and the docstring is honest about the hook alone."""
    program = BY_C.format(port=listener.getsockname()[1])
    assert sandbox.run(program, namespaces=False) == (True, "passed")
    assert reached(listener)


def test_no_network_through_the_hook(listener):
    port = listener.getsockname()[1]
    for call, event in {
        f"socket.create_connection(('127.0.0.1', {port}))": "socket.getaddrinfo",
        f"socket.socket().connect(('127.0.0.1', {port}))": "socket.connect",
        f"socket.socket().connect_ex(('127.0.0.1', {port}))": "socket.connect",
        f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))": "socket.sendto",
        f"socket.socket(type=socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('127.0.0.1', {port}))": "socket.sendmsg",
        "socket.socket().bind(('127.0.0.1', 0))": "socket.bind",
        "socket.getaddrinfo('localhost', 80)": "socket.getaddrinfo",
        "socket.gethostbyname('localhost')": "socket.gethostbyname",
        "socket.gethostbyname_ex('localhost')": "socket.gethostbyname",
        "socket.gethostbyaddr('127.0.0.1')": "socket.gethostbyaddr",
        "socket.getnameinfo(('127.0.0.1', 80), 0)": "socket.getnameinfo",
    }.items():
        why = failed("import socket\n" + call, namespaces=False)
        assert why == f"PermissionError: model-written code may not call {event}"
    assert not reached(listener)


# ---- other processes ----


@pytest.mark.parametrize(
    "call",
    [
        "os.fork()",
        "os.system('true')",
        "os.popen('true')",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "subprocess.run(['true'])",
        "os.kill(os.getppid(), 0)",
        "os.killpg(0, 9)",
        "multiprocessing.get_context('fork').Process(target=print).start()",
    ],
)
def test_no_other_processes(call):
    why = failed("import multiprocessing, os, subprocess\n" + call, namespaces=False)
    assert why.startswith("PermissionError: model-written code may not call ")


def alive(marker):
    """Whether a process has `marker` in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_text().split("\0"):
                return True
        except OSError:
            pass
    return False


@linux
@pytest.mark.parametrize(
    "shell, namespaces",
    [("", False), pytest.param("", True, marks=needs_namespaces), pytest.param("setsid", True, marks=needs_namespaces)],
)
@pytest.mark.parametrize("end", ["", "assert False", "import time; time.sleep(100)"])
def test_children_that_get_past_the_hook_are_gone(shell, namespaces, end):
    """The C library's system(): no audit event tells of it. In the namespace not even a session of its own helps."""
    marker = f"{time.time_ns() % 10**9 + 10**9}"
    program = f"import ctypes, glob, time\nctypes.CDLL(None).system(b'{shell} sleep {marker} &')\ntime.sleep(0.2)\n"
    program += "seen = [open(p).read() for p in glob.glob('/proc/[0-9]*/cmdline')]\n"
    program += f"if not any('sleep\\x00{marker}' in s for s in seen):\n    raise Exception('no child')\n{end}"
    passed, why = sandbox.run(program, seconds=1.5 if "100" in end else 20, namespaces=namespaces)
    assert passed == (end == "") and "no child" not in why
    until = time.monotonic() + 2
    while alive(marker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(marker)


@linux
@both
def test_a_program_does_not_outlive_us(namespaces, tmp_path):
    """Killed evaluations leave nothing running."""
    marker = f"{time.time_ns()}"
    outer = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nanodlm import sandbox\n"
    program = "import time; open('ready', 'w'); time.sleep(100)"
    outer += f"sandbox.run({program!r}, seconds=1000.{marker}, namespaces={namespaces})"
    process = subprocess.Popen([sys.executable, "-c", outer], env={"TMPDIR": str(tmp_path)})
    marker = str(float(f"1000.{marker}"))
    try:
        until = time.monotonic() + 10
        while not list(tmp_path.glob("execute-*/ready")) and time.monotonic() < until:
            time.sleep(0.02)
        assert alive(marker)
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 2
    while alive(marker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(marker)


# ---- as somebody else, and where the kernel refuses ----

FORK_BOMB = """import ctypes, time
fork = ctypes.CDLL(None).fork
while (child := fork()) > 0:
    pass
if child == 0:
    time.sleep(100)
raise Exception('refused')"""
ORDINARY = """import os, sys
sys.path.insert(0, {root!r})
from nanodlm import sandbox
print(sandbox.run("import os; assert os.getpid() == 1"))
print(sandbox.run({by_c!r}))
print(sandbox.run("import os; os.mkdir('d'); open('d/x', 'w'); os.chmod('d', 0)"))
print(sandbox.run({fork_bomb!r}))
print(any(p.startswith("execute-") for p in os.listdir({tmp!r})))"""


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ordinary_user(listener):
    python = "/usr/bin/python3"  # the environment may be closed to others
    tmp = sandbox.tempfile.mkdtemp()
    try:
        os.chmod(tmp, 0o777)
        keys = dict(user=65534, group=65534, extra_groups=[], cwd="/", env={"TMPDIR": tmp}, capture_output=True)
        new = "import sys; sys.exit(sys.version_info < (3, 10))"
        if not os.path.exists(python) or subprocess.run([python, "-c", new], **keys).returncode:
            pytest.skip("no Python here that another user may run")
        by_c = BY_C.format(port=listener.getsockname()[1])
        code = ORDINARY.format(root=str(ROOT), by_c=by_c, fork_bomb=FORK_BOMB, tmp=tmp)
        out = subprocess.run([python, "-B", "-c", code], **keys, text=True)
        assert out.stdout.splitlines() == [
            "(True, 'passed')",
            "(False, 'OSError: [Errno 101] Network is unreachable')",
            "(True, 'passed')",
            "(False, 'Exception: refused')",
            "False",
        ], out.stderr
    finally:
        os.rmdir(tmp)


@needs_namespaces
def test_a_kernel_that_refuses():
    """The limit on namespaces is itself one of a namespace, so that we can lower ours without anybody noticing."""
    code = f"""import ctypes, os, sys
sys.path.insert(0, {str(ROOT)!r})
uid = os.getuid()
assert ctypes.CDLL(None).unshare(sandbox.CLONE_NEWUSER) == 0
open("/proc/self/uid_map", "w").write(f"0 {{uid}} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
print(sandbox.run("import os; assert os.getpid() > 1"))
print(sandbox.run("import socket; socket.socket().connect(('127.0.0.1', 1))"))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.splitlines() == [
        "(True, 'passed')",
        "(False, 'PermissionError: model-written code may not call socket.connect')",
    ], out.stderr


# ---- leaving early, and pretending not to ----

FDS = "for fd in range(64):\n    try:\n        {}\n    except OSError:\n        pass\n"
LEAVE = "import os\nos._exit(0)\n"
# Whatever looks like a token might be the token: hand it in.
HAND_IN = """import os, re
def hand_in(x):
    if isinstance(x, bytes) and re.match(b'[0-9a-f]{32}', x):
        for fd in range(64):
            try:
                os.write(fd, x[:32])
            except OSError:
                pass
def search(frame):
    while frame:
        for x in [*frame.f_locals.values(), *frame.f_globals.values()]:
            hand_in(x)
            for cell in getattr(x, '__closure__', None) or ():
                hand_in(cell.cell_contents)
        frame = frame.f_back
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import sys\nsys.exit()",
        "raise SystemExit",
        "exit()",
        LEAVE,
        "import atexit, os\natexit.register(os._exit, 0)\n1 / 0",
        FDS.format("os.write(fd, b'0' * 32)").join(["import os\n", LEAVE]),
        FDS.format("os.close(fd)").join(["import os\n", "raise SystemExit"]),
        "import sys\nsys.audit('execute.ended')\n" + LEAVE,
        "import sys, threading\nt = threading.Thread(target=sys.audit, args=('execute.ended',))\nt.start()\nt.join()\n"
        + LEAVE,
        "import _thread, sys, time\n_thread.start_new_thread(sys.audit, ('execute.ended',))\ntime.sleep(0.1)\n" + LEAVE,
        "import sys, types\nf = sys._getframe().f_back\nsys._getframe = lambda *n: types.SimpleNamespace(f_back=f)\n"
        "sys.audit('execute.ended')\n" + LEAVE,
        HAND_IN + "import sys\nsearch(sys._getframe())\n" + LEAVE,
        HAND_IN + "try:\n    os.system('true')\nexcept PermissionError as e:\n    t = e.__traceback__\n"
        "    while t:\n        search(t.tb_frame)\n        t = t.tb_next\n" + LEAVE,
        HAND_IN + FDS.format("os.lseek(fd, 0, 0)\n        hand_in(os.read(fd, 100))") + LEAVE,
        HAND_IN + "import sys\ntry:\n    sys.stdin.buffer.seek(0)\nexcept OSError:\n    pass\n"
        "hand_in(sys.stdin.buffer.read())\n" + LEAVE,
        HAND_IN + "import gc\ntry:\n    for x in gc.get_objects():\n        hand_in(x)\n"
        "        for cell in getattr(x, '__closure__', None) or ():\n            hand_in(cell.cell_contents)\n"
        "except PermissionError:\n    pass\n" + LEAVE,
        "import __main__\n__main__.inside(1.0, 4096, False)\n" + LEAVE,
    ],
)
def test_only_the_last_line_passes(program):
    why = failed(program + "\nassert False, 'a test'")
    assert "a test" not in why


def test_the_search_would_find_a_token():
    """HAND_IN works: given a token, it passes it on."""
    program = HAND_IN + "import sys\nr, w = os.pipe()\ntoken = b'0a' * 16\nsearch(sys._getframe())\n"
    assert failed(program + "raise Exception(os.read(r, 32).decode())") == "Exception: " + "0a" * 16


@pytest.mark.parametrize("change", ["sys.audit = print", "sys.addaudithook(lambda event, args: 1 / 0)"])
def test_sabotage_is_no_pass(change):
    assert not sandbox.run("import sys\n" + change)[0]


# ---- many ----


def test_check_keeps_the_order():
    programs = [f"import time\ntime.sleep({0.3 - i / 10})\nassert False, {i}" for i in range(3)] + ["pass"]
    want = [(False, f"AssertionError: {i}") for i in range(3)] + [(True, "passed")]
    assert sandbox.check(programs, workers=4) == want
    assert sandbox.check(programs, workers=1) == want
    assert sandbox.check([]) == []
    assert sandbox.check(["while True: pass"], seconds=0.5) == [(False, "timed out after 0.5 s")]


def test_check_is_parallel():
    start = time.monotonic()
    assert all(passed for passed, _ in sandbox.check(["import time\ntime.sleep(1)"] * 4, workers=4))
    assert time.monotonic() - start < 3.9


# ---- the metric ----


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert sandbox.pass_at_k(n, c, k) == float(Fraction(sum(map(any, subsets)), len(subsets)))


def test_pass_at_k_of_large_numbers():
    n, c, k = 10**5, 3, 100
    none = Fraction(1)
    for i in range(n - c + 1, n + 1):  # the product of the paper's code
        none *= 1 - Fraction(k, i)
    assert sandbox.pass_at_k(n, c, k) == float(1 - none)


@pytest.mark.parametrize("n, k", [(1, 10), (0, 1), (3, 0)])
def test_pass_at_k_needs_enough(n, k):
    with pytest.raises(ValueError, match=f"pass@{k} needs at least {k} programs for each problem, not {n}"):
        sandbox.pass_at_k(n, 0, k)


ADD, CHECK = "def add(a, b):\n    return a {} b\n", "def check(f):\n    assert f(2, 3) == 5\ncheck(add)"


def test_metric():
    predictions = [[ADD.format(op) for op in "+-*"], [ADD.format("-"), ADD.format("+").strip()]]
    score, results = sandbox.CodeEval(seconds=5).compute([CHECK, CHECK], predictions, k=[1, 2, 3])
    assert score == {"pass@1": pytest.approx((1 / 3 + 1 / 2) / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    wrong = {"passed": False, "result": "AssertionError"}
    right = {"passed": True, "result": "passed"}
    assert results == {
        0: [
            (0, right | {"task_id": 0, "completion_id": 0}),
            (1, wrong | {"task_id": 0, "completion_id": 1}),
            (2, wrong | {"task_id": 0, "completion_id": 2}),
        ],
        1: [(0, wrong | {"task_id": 1, "completion_id": 0}), (1, right | {"task_id": 1, "completion_id": 1})],
    }
    assert sandbox.CodeEval().compute(references=[CHECK], predictions=[[ADD.format("+")]])[0] == {"pass@1": 1.0}
    with pytest.raises(ValueError, match="2 tests and 1 lists of candidates"):
        sandbox.CodeEval().compute([CHECK, CHECK], [[ADD]])


def test_human_eval():
    path = ROOT.parent / "shared/data/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        problems = [json.loads(line) for line in itertools.islice(lines, 20)]
    references = [f"{p['test']}\ncheck({p['entry_point']})" for p in problems]
    predictions = [[p["prompt"] + p["canonical_solution"], p["prompt"] + "    pass\n"] for p in problems]
    score, results = sandbox.CodeEval(workers=2).compute(references, predictions)
    assert score == {"pass@1": 0.5}
    assert [[r["passed"] for _, r in rs] for rs in results.values()] == [[True, False]] * 20


# ---- lm-eval ----


def lm_eval_module(task):
    """lm-eval's own module of a task, imported from its file as lm-eval does."""
    pytest.importorskip("evaluate")
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
    """The real module with a stand-in for what would ask the hub."""
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate, "load", lambda *args, **keys: ("original", args, keys))
    return evaluate


def test_lm_eval_runs_its_tasks_with_it(evaluate):
    with sandbox.installed(allowed=True, seconds=5):
        humaneval, mbpp = lm_eval_module("humaneval"), lm_eval_module("mbpp")
    assert isinstance(humaneval.compute_, sandbox.CodeEval) and humaneval.compute_.limits == {"seconds": 5}
    predictions = humaneval.build_predictions(
        [["    return a + b\n", "    return a\n"]], [{"prompt": "def add(a, b):\n"}]
    )
    assert humaneval.pass_at_k([CHECK], predictions, k=[1]) == {"pass@1": 0.5}
    assert mbpp.pass_at_1("assert add(2, 3) == 5", [ADD.format("+")]) == 1.0
    assert mbpp.pass_at_1(["assert add(2, 3) == 5"], [[ADD.format("-")]]) == 0.0


def test_without_the_flag_nothing_runs(evaluate, monkeypatch):
    monkeypatch.setattr(sandbox, "run", None)
    with sandbox.installed(allowed=False):
        for task in ("humaneval", "mbpp"):
            with pytest.raises(ValueError, match="the model wrote: allow it with --run_code"):
                lm_eval_module(task)
        assert evaluate.load("exact_match", "x", y=1) == ("original", ("exact_match", "x"), {"y": 1})


@pytest.mark.parametrize("allowed", [True, False])
def test_load_is_put_back(evaluate, allowed):
    original = evaluate.load
    with sandbox.installed(allowed=allowed):
        assert evaluate.load is not original
        assert evaluate.load("accuracy", keep=1) == ("original", ("accuracy",), {"keep": 1})
    assert evaluate.load is original
    with pytest.raises(ZeroDivisionError), sandbox.installed(allowed=allowed):
        raise ZeroDivisionError
    assert evaluate.load is original
