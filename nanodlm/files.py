"""Files that are whole or not there, and strict JSON."""

import json
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project


def replace_file(path, content):
    """Write beside the file, then rename: a reader sees the old file or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def read_json(path):
    """The object that a JSON file holds, a dict; exits in one sentence where it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        sys.exit(f"{path} cannot be read: {e}")
    except RecursionError:
        sys.exit(f"{path} cannot be read: it is nested too deeply")
    if not isinstance(found, dict):
        sys.exit(f"{path} cannot be read: it holds a {type(found).__name__}, not keys and values")
    return found


def to_json(value, **keys):
    """Strict JSON: what is no number, or infinite, becomes null, which every reader understands."""

    def strict(x):
        if isinstance(x, dict):
            return {k: strict(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [strict(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(strict(value), allow_nan=False, **keys)
