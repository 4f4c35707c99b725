"""Results of eval.py as tables and plots.

python eval.py --table results/*.json         markdown; warns where compared rows were made with different settings
python eval.py --plot results/*.json          accuracy against the number of forwards, as accuracy.png
"""

import contextlib
import importlib.metadata
import io
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanodlm.files import ROOT

# What is compared only where it is the same, or else with a warning: (name, where a row keeps it).
COMPARABLE = {
    "metric": ("metric",),
    "documents": ("documents",),
    "num_fewshot": ("shots",),
    "version of the task": ("task_versions",),
    "version of lm-eval": ("lm_eval",),
    "apply_chat_template": ("task_settings", "apply_chat_template"),
    "fewshot_as_multiturn": ("task_settings", "fewshot_as_multiturn"),
    "system": ("task_settings", "system"),
    "max_length": ("task_settings", "max_length"),
    "method": ("likelihood_options", "method"),
    "mc_samples": ("likelihood_options", "mc_samples"),
    "dtype": ("settings", "dtype"),
}


MEASURES = {"task", "likelihood", "sample_entropy", "frontier", "accuracy"}  # of which a row has one


def read(files, show):
    """The rows of results files, those of tasks and those of data sets; exits where show() cannot show one's."""
    if not files:
        sys.exit("name the files: python eval.py --table results/*.json")
    tasks, others = [], []
    for file in files:
        try:
            found = [{**r, "file": str(file)} for r in json.loads(Path(file).read_text(encoding="utf-8"))]
            if any(not MEASURES & r.keys() for r in found):
                raise ValueError("a row of it has no measure")
            parts = [r for r in found if "task" in r], [r for r in found if "task" not in r]
            with contextlib.redirect_stdout(io.StringIO()):  # now, and not behind half a table
                show(*parts)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            sys.exit(f"{file} is no results file of eval.py: {type(e).__name__}: {e}")
        tasks, others = tasks + parts[0], others + parts[1]
    return tasks, others


def table(rows):
    """Markdown: a line for every task, its score beside the published one, and the settings that made it."""
    if not rows:
        return
    speed = any(r["counts"]["tokens"] for r in rows)
    head = ["checkpoint", "task", "metric", "score", "published", "difference", "documents", "settings", "forwards"]
    head += ["tokens", "tokens per forward", "tokens/s", "published"] if speed else []
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for r in rows:
        n, whole = r["documents"]
        line = [r["checkpoint"], r["label"], r["metric"].removesuffix(",none"), with_error(r["score"], r["error"])]
        line += ["" if r["published"] is None else f"{r['published']:g}", difference(r)]
        line += [f"{n:,}" if n == whole else f"{n:,} of {whole:,}", describe(r), f"{r['counts']['forwards']:,}"]
        if speed:
            c, there = r["counts"], r["counts"]["tokens"]
            line += (
                [f"{there:,}", f"{c['tokens_per_forward']:.2f}", f"{c['tokens_per_s']:.1f}"] if there else ["", "", ""]
            )
            line += ["" if r["published_speed"] is None else f"{r['published_speed']:g}"]
        print(f"| {' | '.join(line)} |")
    for line in warnings(rows):
        print(f"warning: {line}")


def data_table(results):
    """Markdown: a line per checkpoint and measure, of rows about data sets."""
    for dataset, policy in dict.fromkeys((r["dataset"], r["policy"]) for r in results if "policy" in r):
        print(f"{dataset}: {policy}")
    if any("likelihood" in r for r in results):
        print("| checkpoint | parameters | measure | nats per token | bits per byte | perplexity | windows |")
        print("|---|---|---|---|---|---|---|")
    mixed = len({slack(r) for r in results if "likelihood" in r}) > 1
    for r in results:
        for kind, x in r.get("likelihood", {}).items():
            kind += ", a bound" if mixed and kind == "NELBO" else ""
            nats = with_error(x["nats_per_token"], x["nats_error"], 4)
            bits = with_error(x["bits_per_byte"], x["bits_error"], 4)
            name, n, perplexity = r["checkpoint"], f"{r['parameters']:,}", with_error(x["perplexity"], None)
            print(f"| {name} | {n} | {kind} | {nats} | {bits} | {perplexity} | {x['windows']} |")
    if mixed:
        print(
            "\nA bound lies above the exact value, how far depends on algorithm and block size: of two rows, the higher"
        )
        print("bound may be the better model's. Exact values of the same windows compare (--chain_rule).")
    for r in results:
        if e := r.get("sample_entropy"):
            o = r["sampling"]
            how = [f"{e['tokens']} tokens", f"{e['forwards_per_sample']:.0f} forwards", f"T={o['temperature']:g}"]
            how += [f"top_p={o.get('top_p', 1):g}", e["dtype"]]
            print(f"{r['checkpoint']}: sample entropy {with_error(e['nats'], e['error'], 3)} nats ({', '.join(how)})")
            if "judge" in e:
                perplexity = with_error(e["perplexity"], e["perplexity_error"])
                print(f"    perplexity {perplexity} under {e['judge']}", end="")
                print(f", MAUVE {e['mauve']:.3f}" if "mauve" in e else "")
        if a := r.get("accuracy"):
            print(f"{r['checkpoint']}: {a['solved']:.2%} ± {a['error']:.2%} of puzzles solved, ", end="")
            print(f"{a['forwards_per_puzzle']:.1f} forwards each")


def slack(r):
    """What decides how far from the exact value the bound of a row about a data set lies; None: the value is exact."""
    return None if "exact" in r["likelihood"] else (r["algorithm"], r.get("block_size"))


def with_error(value, error, digits=2):
    """A mean, and its standard error where it has one: a single value has none. JSON has no word but null for a mean
    that is no number, or infinite."""
    value = math.nan if value is None else value
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def difference(r):
    """Ours minus the published score, where there is one, and in our standard errors."""
    if r["published"] is None:
        return ""
    d = r["score"] - r["published"]
    return f"{d:+.2f}" + (f" ({d / r['error']:+.1f} SE)" if r["error"] else "")


def describe(r):
    """The settings that made a row, in few words."""
    shots = sorted(set(r["shots"].values()))
    words = [f"{shots[0] if len(shots) == 1 else shots}-shot"] if shots else []
    words += ["chat"] if r["task_settings"]["apply_chat_template"] else []
    for o in r["sampling"]:
        words += [f"{o['max_new_tokens']} tokens", f"T={o['temperature']:g}"]
        words += [f"{o['steps'] or o['max_new_tokens']} steps"] if o.get("quota") == "steps" else []
        words += (
            [f"{o['quota']} {o[o['quota']]:g}"] if o.get("quota") in ("threshold", "factor", "entropy_bound") else []
        )
        words += [f"blocks of {o['block_size']}"] if o.get("block_size") else []
        words += [f"{o['cache']} cache"] if o.get("cache", "none") not in ("none", "kept") else []
        words += [f"guidance {o['cfg_scale']:g}"] if o.get("cfg_scale") else []
    if not r["sampling"]:
        o = r["likelihood_options"]
        sampled = o.get("method") in ("nelbo", "llada", "dream")
        words += [f"{o['method']}, {o['mc_samples']} masks" if sampled else o.get("method", "exact")]
        words += [f"guidance {o['cfg_scale']:g}"] if o.get("cfg_scale") else []
    return ", ".join(words)


def warnings(rows):
    """Sentences about rows that do not compare: of one task with different settings, or with other settings than the
    published score that stands beside them."""
    for r in rows:
        if r["published"] is not None:
            yield from (f"{r['checkpoint']}, {r['label']}: {what}" for what in r["overridden"])
            if r["documents"][0] < r["documents"][1]:
                yield f"{r['checkpoint']}, {r['label']}: the published score is that of all documents"
        if r["counts"]["truncated"]:
            yield f"{r['checkpoint']}, {r['label']}: {r['counts']['truncated']} prompts lost their beginning"
    for i, b in enumerate(rows):
        a = next(r for r in rows if r["task"] == b["task"])
        if a is rows[i]:
            continue
        for name, path in COMPARABLE.items():
            x, y = (find(r, path) for r in (a, b))
            if x != y and None not in (x, y):
                places = [a["file"], b["file"]] if a["file"] != b["file"] else [f"the row {r['label']}" for r in (a, b)]
                yield f"{b['task']}: {name} is {short(x)} in {places[0]}, and {short(y)} in {places[1]}"


def find(r, path):
    for key in path:
        r = (r or {}).get(key)
    return r


def short(value):
    """A number per part of a group as one, where they are all the same."""
    if isinstance(value, dict):
        value = sorted(set(map(str, value.values())))
        return ", ".join(value)
    return " of ".join(map(str, value)) if isinstance(value, list) else value


def plot(rows, path):
    """Scores against forwards per document, a line for each checkpoint and task."""
    from matplotlib.figure import Figure  # without pyplot, whose backend may be a notebook's

    if not rows:
        sys.exit("these files have no results of tasks to plot; make some with eval.py --tasks")
    lines = {}
    for r in rows:
        x = r["counts"]["forwards"] / max(1, r["documents"][0])
        lines.setdefault((r["checkpoint"], r["task"], r["metric"]), []).append((x, r["score"], r["error"] or 0.0))
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for (checkpoint, task, metric), points in lines.items():
        x, y, error = zip(*sorted(points))
        name = f"{checkpoint}, {task} ({metric.removesuffix(',none')})"
        axes.errorbar(x, y, error, marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="forwards per document", ylabel="score ± standard error")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def environment(device):
    """What a result depends on besides its settings."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        git = ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "git": git,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{
            name.replace("-", "_"): importlib.metadata.version(name) for name in ("transformers", "datasets", "lm-eval")
        },
        "machine": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{platform.machine()} {'GPU' if device == 'mps' else 'CPU'}",
        "threads": torch.get_num_threads(),
    }
