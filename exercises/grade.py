"""Grade the exercises in exercises/mine/: a line for each claim, and where one does not hold what was expected, what
came, and where to look.

    python exercises/grade.py              all of them; what has not changed since it was graded is not graded again
    python exercises/grade.py 5 7-9        these
    python exercises/grade.py --watch      again and again, whenever a file is saved
    python exercises/grade.py --json --of=class/ada       for a program that grades a class
    python exercises/grade.py --gradescope=results.json   as Gradescope reads it
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import student  # noqa: E402

from nanodlm import console  # noqa: E402
from nanodlm.files import replace_file  # noqa: E402

SECONDS = 60  # that grading an exercise may take
LESSONS = {int(p.name[:2]): p for p in sorted((HERE / "lessons").glob("[0-9]*.py"))}
MARKS = {"passed": "✔", "missing": "○"}
# A file is graded in a process of its own, forked from one that has read torch, which takes seconds, and nothing of any
# student's. (Windows cannot fork, and Apple's libraries may not like it: there each reads it anew.)
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PROCESSES.set_forkserver_preload(["torch"])


def title(number):
    """The heading of a lesson, such as 'Corruption: hide each token with probability t'."""
    return re.search(r"^# # \d+ · (.*)$", LESSONS[number].read_text("utf-8"), re.M)[1]


def mine(directory, number):
    """A student's file for a lesson: its name with .py or .ipynb, the newer one if there are both; or None."""
    found = [p for p in (directory / LESSONS[number].with_suffix(s).name for s in (".py", ".ipynb")) if p.is_file()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def fingerprint(path, lesson):
    """Changes where a student's file does, or what it is graded by."""
    parts = [path, HERE / "graders" / lesson.name, *(HERE / name for name in ("student.py", "checks.py", "tiny.py"))]
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in parts)).hexdigest()[:16]


def all_claims(lesson, state, came):
    """The lesson's claims, none of which could be tried."""
    return [student.result(claim, state, came=came) for _, claim in student.claims(HERE / "graders" / lesson.name)]


def wait(process, seconds):
    """Let a process work for so many seconds of its own, or stand still for some times as long (a busy machine is
    nobody's fault), and end it, with whatever it has started. Returns why it was stopped, or nothing."""
    begin, worked = time.time(), 0.0
    while process.is_alive() and worked < seconds and time.time() - begin < 4 * seconds:
        with contextlib.suppress(psutil.Error):
            worked = sum(psutil.Process(process.pid).cpu_times()[:2])
        process.join(0.1)
    if not process.is_alive():
        return ""
    with contextlib.suppress(AttributeError, ProcessLookupError):  # Windows has no groups; it has none yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    return f"stopped after {seconds} s: an endless loop?"


def grade(path, lesson, seconds=SECONDS):
    """(a result for each claim, see student.result; what the student's file printed). In a process of its own, that is
    stopped after so many seconds: then the claims that it did not come to have failed."""
    if path is None:
        return all_claims(lesson, "missing", "not begun"), ""
    if path.suffix == ".py" and path.read_bytes() == lesson.read_bytes():
        return all_claims(lesson, "missing", "not written yet"), ""
    grader = HERE / "graders" / lesson.name
    with tempfile.TemporaryDirectory() as place:
        out, said = Path(place) / "results", Path(place) / "said"
        process = PROCESSES.Process(target=student.alone, args=(said, path.resolve(), lesson, grader, out))
        process.start()
        try:
            ended = wait(process, seconds)
        finally:
            wait(process, 0)
        lines = out.read_text("utf-8").splitlines() if out.exists() else []
        text = said.read_bytes()[-100_000:].decode("utf-8", "replace")
    found = [json.loads(line) for line in lines]
    if found and "unreadable" in found[-1]:
        return all_claims(lesson, "broken", found[-1]["unreadable"]), text
    left = all_claims(lesson, "broken", "not reached")[len(found) :]
    if left:
        last = text.strip().splitlines()[-1:] or [f"exit status {process.exitcode}"]
        left[0]["came"] = ended or f"the process ended: {last[0]}"
    return found + left, text


# ---- what is kept ----------------------------------------------------------------------------------------------------


def read_progress(directory):
    """{name of a lesson: {"fingerprint", "results"}} of what was graded before; nothing where that cannot be read."""
    try:
        kept = json.loads((directory / "progress.json").read_text("utf-8"))
        return kept if isinstance(kept, dict) else {}
    except (OSError, ValueError):
        return {}


def graded(directory, number, kept, again=True):
    """(results, what was printed) of a lesson, from what is kept if nothing has changed."""
    path, lesson = mine(directory, number), LESSONS[number]
    mark = path and fingerprint(path, lesson)
    before = kept.get(lesson.stem, {})
    if not again and mark and before.get("fingerprint") == mark:
        return before["results"], ""
    results, text = grade(path, lesson)
    if mark:
        kept[lesson.stem] = {"fingerprint": mark, "results": results}
        try:
            replace_file(directory / "progress.json", json.dumps(kept, indent=1).encode())
        except OSError:  # a directory that may only be read is graded all the same
            pass
    return results, text


# ---- what is shown ---------------------------------------------------------------------------------------------------


def show(number, path, results, text, short):
    """Print a lesson's claims; short: only a line where all or none of them hold."""
    passed = sum(r["state"] == "passed" for r in results)
    head = f"{number:2} · {title(number)}"
    if short and passed == len(results) or all(r["state"] == "missing" for r in results):
        what = "✔" if passed else f"○ {results[0]['came']}"
        print(f"{head[:70]:72}{what}{f' {passed} of {len(results)}' if passed else ''}")
        return
    print(f"{head}   ({passed} of {len(results)}, {os.path.relpath(path)})")
    if len({r["came"] for r in results}) == 1 and results[0]["state"] == "broken":
        print(f"   ✘ {results[0]['came']}")
        return
    reached = [r for r in results if r["came"] != "not reached"]
    for r in reached:
        print(f"   {MARKS.get(r['state'], '✘')} {r['claim']}")
        for name in ("expected", "came", "hint"):
            if r[name]:
                print(f"       {name:9}{console.visible(r[name])}")
    if sum(r["state"] in ("wrong", "broken") for r in reached) > 1:
        print("   begin with the first ✘: those below may follow from it")
    if len(reached) < len(results):
        print(f"   ✘ … and {len(results) - len(reached)} that were not reached")
    if text.strip() and not short:
        print("   your file printed:")
        print("".join(f"     {console.visible(line)}\n" for line in text.strip().splitlines()[-20:]), end="")


def summary(found):
    claims = [r for results in found.values() for r in results]
    whole = sum(all(r["state"] == "passed" for r in results) for results in found.values())
    passed = sum(r["state"] == "passed" for r in claims)
    return {"exercises": whole, "of_exercises": len(found), "claims": passed, "of_claims": len(claims)}


def as_json(found):
    """What grade.py --json prints."""
    exercises = [{"exercise": n, "title": title(n), "claims": results} for n, results in found.items()]
    return summary(found) | {"results": exercises}


def as_gradescope(found):
    """Gradescope's results.json: a test for each exercise, as many points as it has claims."""
    tests = []
    for n, results in found.items():
        passed = sum(r["state"] == "passed" for r in results)
        lines = []
        for r in results:
            lines.append(f"{MARKS.get(r['state'], '✘')} {r['claim']}")
            lines += [f"    {name}: {console.visible(r[name])}" for name in ("expected", "came", "hint") if r[name]]
        tests.append(
            {
                "name": f"{n} · {title(n)}",
                "number": str(n),
                "score": passed,
                "max_score": len(results),
                "status": "passed" if passed == len(results) else "failed",
                "output": "\n".join(lines),
                "visibility": "visible",
            }
        )
    return {"tests": tests, "stdout_visibility": "hidden", "visibility": "visible"}


def here(number, names):
    """Grade what a notebook has defined, in its own process: names is its globals()."""
    my, lesson = types.SimpleNamespace(**names), LESSONS[number]
    try:
        student.check_functions(my, lesson)
        results = list(student.results(my, HERE / "graders" / lesson.name))
    except student.Unreadable as e:
        results = all_claims(lesson, "broken", str(e))
    show(number, "this notebook", results, "", short=False)


def watch(directory, numbers):
    """Grade a lesson whenever its file is saved."""
    kept, seen = read_progress(directory), {}
    print(f"watching {directory}; Ctrl-C ends", flush=True)
    while True:
        for number in numbers:
            path = mine(directory, number)
            time_saved = path and path.stat().st_mtime
            if number in seen and time_saved != seen[number]:
                print(f"\n{time.strftime('%H:%M:%S')}")
                show(number, path, *graded(directory, number, kept), short=False)
                sys.stdout.flush()
            seen[number] = time_saved
        time.sleep(0.3)


def span(word):
    """The numbers that a word of the command line stands for: 5, or 5-8."""
    first, _, last = word.partition("-")
    return range(int(first), int(last or first) + 1)


def chosen(spans):
    """The numbers in these spans, in order, or all; exits where there is no such exercise."""
    numbers = sorted({n for numbers in spans for n in numbers})
    if unknown := sorted(set(numbers) - LESSONS.keys()):
        sys.exit(f"there is no exercise {unknown[0]}; they have the numbers 1 to {max(LESSONS)}")
    return numbers or list(LESSONS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "numbers",
        nargs="*",
        type=span,
        metavar="N",
        help=f"exercises, such as 5 or 5-8; none: all of 1 to {max(LESSONS)}",
    )
    parser.add_argument("--of", type=Path, default=HERE / "mine", help="the directory of the files to grade")
    parser.add_argument("--watch", action="store_true", help="grade a file whenever it is saved")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--gradescope", type=Path, metavar="FILE", help="write Gradescope's results.json there")
    args = parser.parse_args()
    numbers = chosen(args.numbers)
    if not args.of.is_dir():
        sys.exit(f"there is no directory {args.of}; python exercises/start.py makes exercises/mine")
    if args.watch:
        return watch(args.of, numbers)
    kept, found = read_progress(args.of), {}
    quiet = args.json or args.gradescope
    for number in numbers:
        results, text = graded(args.of, number, kept, again=bool(quiet or args.numbers))
        found[number] = results
        if not quiet:
            show(number, mine(args.of, number), results, text, short=not args.numbers)
            sys.stdout.flush()
    if args.json:
        print(json.dumps(as_json(found), indent=1))
    if args.gradescope:
        try:
            replace_file(args.gradescope, json.dumps(as_gradescope(found), indent=1).encode())
        except OSError as e:
            sys.exit(f"gradescope={args.gradescope} could not be written: {e}")
    if not quiet:
        s = summary(found)
        more = ". python exercises/grade.py NUMBER shows one in full." if not args.numbers else ""
        print(f"{s['exercises']} of {s['of_exercises']} exercises, {s['claims']} of {s['of_claims']} claims{more}")


if __name__ == "__main__":
    console.run(main)
