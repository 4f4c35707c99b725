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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

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
def test_what_a_program_may_do_and_how_its_end_is_told(namespaces):
    for program in ("", PASSES):
        assert sandbox.run(program, namespaces=namespaces) == (True, "passed")
    assert failed("import sys\nsys.exit(3)", namespaces=namespaces) == "status 3"
    assert failed("import ctypes\nctypes.string_at(0)", namespaces=namespaces) == "killed by signal 11"


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
    for program, (passed, said) in zip(why, sandbox.check(why, megabytes=256)):
        assert not passed and len(said) <= 200 and re.fullmatch(why[program], said), (program, said)


def test_no_resource_module(monkeypatch):
    monkeypatch.setattr(sandbox, "resource", None)
    with pytest.raises(RuntimeError, match="run it on Linux, macOS or WSL"):
        sandbox.run("pass")


# ---- limits, and many programs at once ----


@both
def test_whatever_does_not_end_is_ended_and_five_at_once_take_the_time_of_one(namespaces):
    programs = [
        "while True:\n    pass",
        "import time\ntime.sleep(100)",
        "while True:\n    print('x' * 10000)",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",  # after its last line
    ]
    start = time.monotonic()
    ran = sandbox.check(programs, workers=5, seconds=1.25, namespaces=namespaces)
    assert ran == [(False, "timed out after 1.25 s")] * 5
    assert time.monotonic() - start < 5


def test_check_keeps_the_order():
    programs = [f"import time\ntime.sleep({0.4 - i / 5})\nassert False, {i}" for i in range(3)] + ["pass"]
    want = [(False, f"AssertionError: {i}") for i in range(3)] + [(True, "passed")]
    assert sandbox.check(programs, workers=4) == want
    assert sandbox.check(programs[2:]) == want[2:] and sandbox.check([]) == []


@linux
@both
def test_the_kernel_limits_time_memory_and_files(namespaces):
    """The wall clock comes first; were it gone, the kernel would end the program."""
    hard = "import resource\nfor kind, most in {'CPU': 4, 'CORE': 0, 'AS': 1 << 30, 'FSIZE': 64 << 20}.items():\n"
    hard += "    assert resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) == (most, most), kind"
    assert sandbox.run(hard, seconds=2.5, megabytes=1024, namespaces=namespaces) == (True, "passed")


# ---- what it may not touch ----


@both
def test_home_is_its_own_empty_and_deleted_and_the_environment_bare(namespaces, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    why = failed(
        "import importlib.util, os, tempfile\nassert os.listdir() == []\nopen('left', 'w').write('x')\n"
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == tempfile.gettempdir() == os.getcwd()\n"
        "os.makedirs('a/b')\nopen('a/b/c', 'w')\nos.remove('left')\n"
        "assert not importlib.util.find_spec('sandbox')\n"  # it does not see where sandbox.py lies
        "raise Exception(os.getcwd(), *os.environ)",
        namespaces=namespaces,
    )
    home, *names = re.findall(r"[^',() ]+", why.removeprefix("Exception: "))
    assert Path(home).name.startswith("execute-") and not Path(home).exists()
    assert set(names) - {"LC_CTYPE"} == {"HOME", "OMP_NUM_THREADS", "PATH", "TMPDIR"}


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


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def reached(server):
    with suppress(TimeoutError):
        server.accept()[0].close()
        return True


TRY = """import ctypes, gc, multiprocessing, os, pathlib, pty, shutil, signal, socket, subprocess, sys, threading
open('mine', 'w').close()
directory, address = {directory!r}, ('127.0.0.1', {port})
kept, new, tcp, udp = directory + '/kept', directory + '/new', socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
for attempt in {attempts!r}:
    try:
        eval(attempt)
    except PermissionError as e:
        assert str(e).startswith({said!r}), (attempt, str(e))
    else:
        raise Exception(attempt + ' was allowed')"""
CHANGE = """open(kept,'w') open(kept,'a') os.open(kept,os.O_RDWR) os.remove(kept) os.unlink(os.fsencode(kept))
os.rename(kept,'mine') os.rename('mine',kept) os.truncate(kept,0) os.chmod(kept,0) os.chown(kept,0,0)
os.link(kept,'other') os.symlink('mine',new) os.rmdir(directory) shutil.rmtree(directory) pathlib.Path(new).mkdir()
os.open(kept,os.O_WRONLY) os.open(new,os.O_CREAT) os.chdir(directory)or(open('kept','w'))
os.chdir(directory)or(os.remove('kept'))""".split()
CALL = """tcp.connect(address) tcp.connect_ex(address) tcp.bind(('127.0.0.1',0)) udp.sendto(b'x',address)
udp.sendmsg([b'x'],[],0,address) socket.create_connection(address) socket.getaddrinfo('localhost',80)
socket.gethostbyname('localhost') socket.gethostbyname_ex('localhost') socket.gethostbyaddr('127.0.0.1')
socket.getnameinfo(address,0) os.fork() os.forkpty() os.system('true') os.popen('true') pty.spawn('true')
os.execv('/bin/true',['true']) os.posix_spawn('/bin/true',['true'],{}) subprocess.run(['true'])
multiprocessing.get_context('fork').Process(target=print).start() os.kill(os.getppid(),0) os.killpg(0,9)
signal.pthread_kill(threading.get_ident(),0) gc.get_objects() gc.get_referrers(1) sys._current_frames()""".split()


def test_the_hook_refuses_the_network_other_processes_and_changes_to_files_elsewhere(tmp_path, listener):
    (tmp_path / "kept").write_text("precious")
    given = dict(directory=str(tmp_path), port=listener.getsockname()[1])
    for attempts, said in ((CHANGE, f"change {tmp_path}"), (CALL, "call ")):
        program = TRY.format(attempts=attempts, said=f"model-written code may not {said}", **given)
        assert sandbox.run(program, namespaces=False) == (True, "passed")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"] and not reached(listener)
    assert sandbox.run(f"assert open('{tmp_path}/kept').read() == 'precious'", namespaces=False)[0]


# The C library's connect: no audit event tells of it.
BY_C = """import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
port = ({port}).to_bytes(2, 'big')
address = struct.pack('=H2s4s8x', 2, port, bytes([127, 0, 0, 1]))
if libc.connect(libc.socket(2, 1, 0), address, 16):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"""


@needs_namespaces
def test_in_the_namespace_are_no_network_and_no_other_processes(listener):
    """And without one C gets through, of which the docstring is honest."""
    program = BY_C.format(port=listener.getsockname()[1])
    assert "Network is unreachable" in failed(program)
    assert not reached(listener)
    assert sandbox.run(program, namespaces=False) == (True, "passed")
    assert reached(listener)
    assert "Permission denied" in failed(f"open('/proc/{os.getpid()}/environ').read()")


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


CHILD = """import contextlib, ctypes, glob, time
def read(path):
    with contextlib.suppress(OSError):
        return open(path).read()
    return ''
ctypes.CDLL(None).system(b'{} sleep {} &')
time.sleep(0.3)
if not any('sleep\\x00{}' in read(path) for path in glob.glob('/proc/[0-9]*/cmdline')):
    raise Exception('no child')
"""


@linux
def test_children_that_get_past_the_hook_are_gone():
    """The C library's system(): no audit event tells of it. In the namespace not even a session of its own helps."""
    ways = [("", False)] + [("", True), ("setsid", True)] * GRANTED
    said = {"": "passed", "assert False": "AssertionError", "time.sleep(100)": "timed out after 2.5 s"}

    def one(i, shell, namespaces, end):
        marker = f"{time.time_ns() % 10**9 + (i + 1) * 10**9}"
        program = CHILD.format(shell, marker, marker) + end
        ran = sandbox.run(program, seconds=2.5 if "100" in end else 20, namespaces=namespaces)
        return *ran, wait_for(lambda: gone(marker), 2)

    runs = [(*way, end) for way in ways for end in said]
    with ThreadPoolExecutor(len(runs)) as pool:
        for (*way, end), ran in zip(runs, pool.map(lambda i: one(i, *runs[i]), range(len(runs)))):
            assert ran == (end == "", said[end], True), (way, end)


@linux
@both
def test_a_program_does_not_outlive_us(namespaces, tmp_path):
    """Killed evaluations leave nothing running."""
    marker = str(float(f"1000.{time.time_ns()}"))
    outer = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nanodlm import sandbox\n"
    program = "import time; open('ready', 'w'); time.sleep(100)"
    outer += f"sandbox.run({program!r}, seconds={marker}, namespaces={namespaces})"
    process = subprocess.Popen([sys.executable, "-c", outer], env={"TMPDIR": str(tmp_path)})
    try:
        assert wait_for(lambda: list(tmp_path.glob("execute-*/ready")), 10) and not gone(marker)
    finally:
        process.kill()
        process.wait()
    assert wait_for(lambda: gone(marker), 2)


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
print(sandbox.run("import os; os.mkdir('d'); open('d/x', 'w'); os.chmod('d', 0); os.chmod('.', 0)"))
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
from nanodlm import sandbox
uid = os.getuid()
assert ctypes.CDLL(None).unshare(sandbox.CLONE_NEWUSER) == 0
open("/proc/self/uid_map", "w").write(f"0 {{uid}} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
print(sandbox.run("import os, resource as r; assert os.getpid() > 1 and r.getrlimit(r.RLIMIT_NPROC)[0] != 256"))
print(sandbox.run("import socket; socket.socket().connect(('127.0.0.1', 1))"))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused = "(False, 'PermissionError: model-written code may not call socket.connect')"
    assert out.stdout.splitlines() == ["(True, 'passed')", refused], out.stderr


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
try:
    os.system('true')
except PermissionError as e:
    t = e.__traceback__
    while t:
        search(t.tb_frame)
        t = t.tb_next
for fd in range(64):
    with suppress(OSError):
        os.lseek(fd, 0, 0)
        hand_in(os.read(fd, 100))
with suppress(PermissionError):
    for x in gc.get_objects():
        look(x)
"""


def test_only_the_last_line_passes():
    # Given a token, the search passes it on.
    works = HAND_IN + "r, w = os.pipe()\ntoken = b'0a' * 16\nsearch(sys._getframe())\n"
    assert failed(works + "raise Exception(os.read(r, 64).decode())") == "Exception: " + "0a" * 16
    programs = [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        LEAVE,
        "import atexit, os\natexit.register(os._exit, 0)\n1 / 0",
        "import os\n" + FDS.format("os.write(fd, b'0' * 32)") + LEAVE,
        "import os\n" + FDS.format("os.close(fd)") + "raise SystemExit",
        "import sys\nsys.audit('execute.ended')\n" + LEAVE,
        "import sys, threading\nt = threading.Thread(target=sys.audit, args=('execute.ended',))\nt.start()\nt.join()\n"
        + LEAVE,
        "import _thread, sys, time\n_thread.start_new_thread(sys.audit, ('execute.ended',))\ntime.sleep(0.1)\n" + LEAVE,
        "import sys, types\nf = sys._getframe().f_back\nsys._getframe = lambda *n: types.SimpleNamespace(f_back=f)\n"
        "sys.audit('execute.ended')\n" + LEAVE,
        HAND_IN + EVERYWHERE + LEAVE,
        "import __main__\n__main__.inside(1.0, 4096, False)\n" + LEAVE,
        "import sys\nsys.audit = print",
        "import sys\nsys.addaudithook(lambda event, args: 1 / 0)",
    ]
    sabotage = 2  # these come to their end, but cannot say so
    marked = [p + "\nassert False, 'a test'" for p in programs[:-sabotage]] + programs[-sabotage:]
    for program, (passed, why) in zip(marked, sandbox.check(marked)):
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
    score, results = sandbox.CodeEval(seconds=5).compute([CHECK, CHECK], predictions, k=[1, 2, 3])
    assert score == {"pass@1": pytest.approx((1 / 3 + 1 / 2) / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    right = {"passed": True, "result": "passed"}, {"passed": False, "result": "AssertionError"}
    names = {0: [(0, 0), (1, 1), (2, 1)], 1: [(0, 1), (1, 0)]}  # candidate, and whether it is wrong
    assert results == {
        i: [(j, right[wrong] | {"task_id": i, "completion_id": j}) for j, wrong in ran] for i, ran in names.items()
    }
    assert sandbox.CodeEval().compute(references=[CHECK], predictions=[[ADD.format("+")]])[0] == {"pass@1": 1.0}
    with pytest.raises(ValueError, match="2 tests and 1 lists of candidates"):
        sandbox.CodeEval().compute([CHECK, CHECK], [[ADD]])


def test_human_eval():
    path = ROOT.parent / "shared/data/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        problems = [json.loads(line) for line in itertools.islice(lines, 5)]
    references = [f"{p['test']}\ncheck({p['entry_point']})" for p in problems]
    predictions = [[p["prompt"] + p["canonical_solution"], p["prompt"] + "    pass\n"] for p in problems]
    score, results = sandbox.CodeEval(workers=2).compute(references, predictions)
    assert score == {"pass@1": 0.5}
    assert [[r["passed"] for _, r in rs] for rs in results.values()] == [[True, False]] * 5


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
    with sandbox.installed(allowed=True, seconds=5):
        humaneval, mbpp = lm_eval_module("humaneval"), lm_eval_module("mbpp")
    assert isinstance(humaneval.compute_, sandbox.CodeEval) and humaneval.compute_.limits == {"seconds": 5}
    answers = [["    return a + b\n", "    return a\n"]]
    predictions = humaneval.build_predictions(answers, [{"prompt": "def add(a, b):\n"}])
    assert humaneval.pass_at_k([CHECK], predictions, k=[1]) == {"pass@1": 0.5}
    assert mbpp.pass_at_1("assert add(2, 3) == 5", [ADD.format("+")]) == 1.0
    assert mbpp.pass_at_1(["assert add(2, 3) == 5"], [[ADD.format("-")]]) == 0.0


def test_without_the_flag_nothing_runs(evaluate, monkeypatch):
    monkeypatch.setattr(sandbox, "run", None)
    with sandbox.installed(allowed=False):
        for task in ("humaneval", "mbpp"):
            with pytest.raises(ValueError, match="the model wrote: allow it with --run_code"):
                lm_eval_module(task)


@pytest.mark.parametrize("allowed", [True, False])
def test_other_metrics_are_the_originals_and_load_is_put_back(evaluate, allowed):
    original = evaluate.load
    with pytest.raises(ZeroDivisionError), sandbox.installed(allowed=allowed):
        assert evaluate.load is not original
        assert evaluate.load("accuracy", "x", keep=1) == ("original", ("accuracy", "x"), {"keep": 1})
        raise ZeroDivisionError
    assert evaluate.load is original
