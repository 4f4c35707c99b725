"""The course for the rooms where it is taught.

python exercises/export.py notebooks  --repository=https://…     exercises/notebooks/*.ipynb, which Colab opens
python exercises/export.py gradescope                            gradescope.zip, an autograder of all exercises
python exercises/export.py gradescope --only 1-4                 … of a chapter
"""

import argparse
import io
import os
import re
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import grade  # noqa: E402

from nanodlm import console  # noqa: E402
from nanodlm.files import check_directory, replace_file  # noqa: E402

FIRST = """\
import os
import sys

REPOSITORY = "{repository}"  # where the project is cloned from
if "google.colab" in sys.modules and not os.path.isdir("nanodlm-course"):
    !git clone --quiet --depth=1 {{REPOSITORY}} nanodlm-course && pip install --quiet psutil
if os.path.isdir("nanodlm-course"):
    %cd nanodlm-course
sys.path += ["exercises", ".", "..", "../.."]"""
LAST = """\
if __name__ == "__main__":
    import grade

    grade.here({number}, globals())"""


def notebook(number, repository):
    """A lesson as a notebook: before it a cell that sets up Colab, behind it one that grades."""
    import jupytext
    from nbformat.v4 import new_code_cell, new_markdown_cell

    book = jupytext.read(grade.LESSONS[number])
    said = new_markdown_cell("First run this cell. On Colab it fetches the project; elsewhere it only finds it.")
    asked = new_markdown_cell("## Does it hold?")
    cells = [said, new_code_cell(FIRST.format(repository=repository)), *book.cells]
    book.cells = [*cells, asked, new_code_cell(LAST.format(number=number))]
    for i, cell in enumerate(book.cells):
        cell["id"] = f"{number}-{i}"  # the same every time
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return jupytext.writes(book, fmt="ipynb")


def notebooks(to, repository):
    check_directory(to, "to")
    to.mkdir(parents=True, exist_ok=True)
    for number, lesson in grade.LESSONS.items():
        replace_file(to / lesson.with_suffix(".ipynb").name, notebook(number, repository).encode())
    print(f"{len(grade.LESSONS)} notebooks: {to}")


# What grading imports, of which requirements.txt has the versions.
PACKAGES = ("torch", "numpy", "psutil", "tqdm")
SETUP = """\
#!/usr/bin/env bash
set -e
apt-get update
apt-get install --yes python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install {packages}
"""
RUN = """\
#!/usr/bin/env bash
# What is graded is in submission/, the project in source/. (AUTOGRADER and PYTHON are for trying it elsewhere.)
cd "${{AUTOGRADER:-/autograder}}/source"
"${{PYTHON:-/autograder/venv/bin/python}}" exercises/grade.py {numbers} --of=../submission \\
    --gradescope=../results/results.json
"""


def gradescope(to, numbers):
    """A zip with setup.sh, run_autograder and the parts of the project that grade."""
    pinned = [re.search(rf"^{name}==\S+", (ROOT / "requirements.txt").read_text("utf-8"), re.M)[0] for name in PACKAGES]
    files = [*ROOT.glob("*.py"), *(ROOT / "nanodlm").glob("*.*"), *(ROOT / "tests/book").glob("*.py")]
    files += [*HERE.glob("*.py"), *HERE.glob("lessons/*.py"), *HERE.glob("graders/*.py"), *HERE.glob("one_file/*.py")]
    files += [ROOT / "data/sudoku/prepare.py", *(ROOT / "config").glob("*.py")]
    texts = {str(p.relative_to(ROOT)): p.read_bytes() for p in sorted(files)}
    texts["setup.sh"] = SETUP.format(packages=" ".join(pinned)).encode()
    texts["run_autograder"] = RUN.format(numbers=" ".join(map(str, numbers))).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            entry = zipfile.ZipInfo(name)  # of a fixed date, so that the same project gives the same zip
            entry.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
            archive.writestr(entry, text)
    replace_file(to, content.getvalue())
    print(f"{to}: upload it as the autograder; students submit their files, such as {grade.LESSONS[1].name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["notebooks", "gradescope"])
    parser.add_argument("--to", type=Path, help="exercises/notebooks, or gradescope.zip, where nothing is said")
    parser.add_argument("--repository", default=os.environ.get("REPOSITORY", "https://…"), help="for Colab's git clone")
    parser.add_argument(
        "--only", type=grade.span, nargs="+", default=[], metavar="N", help="grade these exercises alone"
    )
    args = parser.parse_args()
    numbers = grade.chosen(args.only)
    if args.what == "notebooks":
        return notebooks(args.to or HERE / "notebooks", args.repository)
    try:
        gradescope(args.to or Path("gradescope.zip"), numbers)
    except OSError as e:
        sys.exit(f"to={args.to} could not be written: {e}")


if __name__ == "__main__":
    console.run(main)
