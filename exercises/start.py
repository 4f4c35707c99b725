"""Make your own copies of the exercises, in exercises/mine/, which git ignores: `git pull` never meets your work.

python exercises/start.py      what is there already stays as it is
"""

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from nanodlm import console  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=HERE / "mine", help="another directory")
    to = parser.parse_args().to
    check_directory(to, "to")
    to.mkdir(parents=True, exist_ok=True)
    lessons = [*sorted((HERE / "lessons").glob("[0-9]*.py")), HERE / "recipe.py"]
    new = [p for p in lessons if not (to / p.name).exists() and not (to / p.name).with_suffix(".ipynb").exists()]
    for lesson in new:
        shutil.copyfile(lesson, to / lesson.name)
    print(f"{len(new)} files copied to {to}; {len(lessons) - len(new)} were there and stay as they are.")
    print(f"Open {lessons[0].name} there in an editor, write what is missing, and run: python exercises/grade.py 1")


if __name__ == "__main__":
    console.run(main)
