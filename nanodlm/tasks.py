"""lm-eval's tasks, each with settings of its own, and a row of results for each.

lm-eval and `datasets` take seconds to import, for which --help and a wrong setting need not wait: only the functions
that run tasks import them."""

import contextlib
import difflib
import functools
import json
import logging
import math
import re
import shlex
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from nanodlm import configurator, hub, presets, sandbox
from nanodlm.bounds import Amount, Seed, Text, Whole, check
from nanodlm.files import ROOT


@dataclass
class Options:
    """What a task may say for itself, besides how it is decoded and what its likelihoods are."""

    label: str = ""  # what tables call the row; default: the task's name
    metric: str = ""  # the task's score, as lm-eval names it: acc_norm, or exact_match,flexible-extract; default: first
    published: Amount | None = None  # the published score, as tables print it
    published_speed: Amount | None = None  # and its tokens per second
    num_fewshot: Whole | None = None  # examples in front of a question; default: as many as the task says
    limit: Whole = 0  # only so many documents of each task; 0: all
    apply_chat_template: bool = False  # questions become a user's turns, by the checkpoint's chat template
    fewshot_as_multiturn: bool = True  # … examples become turns before them, instead of text in the same turn
    system: Text = ""  # … after this system prompt
    preset: str = ""  # generation's options from config/presets, or none; default: the model's own
    thoughts: Literal["auto", "think", "empty"] = "auto"  # of the chat template: ask for a thought, or for none
    prefix: Text = ""  # text in front of every prompt, as Dream's <|beginoftext|>
    until: tuple[Text, ...] | None = None  # strings that end an answer; default: the task's
    max_length: Whole = 0  # tokens of prompt and answer; longer prompts lose their beginning; 0: the model's context
    fewshot_seed: Seed = 1234  # of the choice of examples, where a task draws them

    def __post_init__(self):
        check(self)


def read_task(entry):
    """(name, {key: (value, where)}) of "gsm8k num_fewshot=5 max_new_tokens=256"."""
    lexer = shlex.shlex(entry, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""  # a backslash is the text's own
    try:
        name, *words = lexer
    except ValueError as e:  # a quotation mark without the second one
        sys.exit(f"the task {entry!r} cannot be read: {e}")
    for word in words:
        if "=" not in word:
            sys.exit(f"the task {entry!r} has the word {word!r}, which is no key=value")
    said = configurator.read([f"--{word}" for word in words])
    return name, {k: (v, f"the task {name}") for k, (v, _) in said.items()}


def settle(values, entry, classes, recipe=None):
    """(name, values, overridden) of one task: a recipe's settings, those of its task, those of the command line, which
    may have been told otherwise than the recipe's file says (recipe, which values no longer hold). Of tasks named on
    the command line their own go last."""
    name, own = read_task(entry)
    for f in fields(classes[0]):
        if f.name in own:
            sys.exit(f"{f.name} is a setting of a whole run, which the task {name} cannot have for itself")
    line = {k: v for k, v in values.items() if v[1] == "the command line"}
    recipe = (recipe or {k: v for k, v in values.items() if k not in line}) | own
    if "tasks" in line:
        return name, values | own, []
    known = {f.name: f for c in classes for f in fields(c)}
    overridden = []
    for key in [k for k in line if k in known and k not in NEUTRAL]:
        pair = line[key], recipe.get(key, (known[key].default, "the default"))
        now, before = (configurator.convert(value, known[key].type, key, where) for value, where in pair)
        overridden += [f"{key}={now!r}, where the recipe has {before!r}"] if now != before else []
    return name, recipe | line, overridden


# What changes no score.
NEUTRAL = ("out", "only", "batch_size", "device", "run_code", "local_data", "include_path", "label", "tasks")


def settings_of(own, s, checkpoint, algorithm, classes):
    """(Options, LikelihoodOptions, function from what a task says about generation to SampleOptions), from a task's
    values {key: (value, where)}. Scores are estimated as a model's authors do, where nothing else is said; answers are
    decoded by the preset, then what the task says, then what we say."""
    configurator.fill(own, *classes, quiet=True)  # refuses what none of them has

    theirs, published = checkpoint.facts.get("preset"), ("llada", "dream", "illada")
    methods = get_args(get_type_hints(algorithm.LikelihoodOptions).get("method"))
    method = {"method": (theirs, "its preset")} if theirs in methods else {}
    if methods and theirs in published and not method:
        print(f"warning: the checkpoint's authors score by method={theirs}, which {algorithm.__name__} does not have")
    for key in ("method", "preset"):
        if theirs in published and own.get(key, (theirs,))[0] in {*published} - {theirs}:
            print(f"warning: {key}={own[key][0]} is another family's; the checkpoint's authors have {theirs}")
    batch = {"batch_size": (s.batch_size, "")} if hasattr(algorithm.LikelihoodOptions, "batch_size") else {}
    likelihood = method | presets.part(own, algorithm.LikelihoodOptions) | batch
    likelihood = configurator.fill(likelihood, algorithm.LikelihoodOptions, quiet=True)
    options = configurator.fill(presets.part(own, Options), Options, quiet=True)
    decoding = presets.part(own, algorithm.SampleOptions)

    def sampling(task):
        draws = task.get("do_sample", task.get("temperature", 0) != 0)
        said = {k: task[k] for k in ("temperature", "top_p", "top_k") if k in task} if draws else {"temperature": 0.0}
        length = [task[k] for k in ("max_gen_toks", "max_new_tokens", "max_tokens") if k in task]
        said |= {"max_new_tokens": length[0]} if length else {}
        _, settled = presets.settle(checkpoint, algorithm, decoding, options.preset)
        said = {k: (v, "the task") for k, v in said.items() if hasattr(algorithm.SampleOptions, k)}
        return configurator.fill(settled | said | decoding, algorithm.SampleOptions, quiet=True)

    line = {k: v for k, v in own.items() if v[1] == "the command line"}  # a recipe's may become idle beside it
    for decided in (sampling({"do_sample": True}), likelihood):  # before anything is computed
        presets.refuse_idle(decided, line, checkpoint.model.config)
    return options, likelihood, sampling


@contextlib.contextmanager
def code_runs(allowed):
    """sandbox.installed; what it refuses is one sentence."""
    try:
        with sandbox.installed(allowed):
            yield
    except sandbox.Refused as e:
        sys.exit(str(e))


@functools.cache
def task_manager(include_path):
    """The index of tasks: lm-eval's, those in tasks/, and those of a directory."""
    import lm_eval.evaluator

    from nanodlm.harness import Tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name in ("add_env_info", "get_git_commit_hash"):  # seconds for each task; eval.py's environment() says it once
        setattr(lm_eval.evaluator, name, lambda *_: None)
    if include_path and not Path(include_path).is_dir():
        sys.exit(f"include_path={include_path} is no directory of task files (YAML)")
    return Tasks(include_path=[str(path) for path in (ROOT / "tasks", include_path) if path])


def check_names(names, manager):
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3, 0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            sys.exit(f"lm-eval has no task {name!r}{hint}" + ("" if hint else "; --include_path adds your own"))


@contextlib.contextmanager
def local_copies(directory):
    """Data sets come from directory/org/name where that exists, as `hf download --local-dir` makes it, or with a file
    for each split; where there is no such copy and no network, one sentence says what to do."""
    import datasets

    plain = datasets.load_dataset

    def load(path, name=None, **keys):
        copy = Path(directory) / path if directory else None
        if copy is not None and copy.is_dir():
            keys.pop("revision", None)
            configs = "configs:" in (copy / "README.md").read_text() if (copy / "README.md").is_file() else False
            path, name = str(copy), name if configs else None
        if "data_files" in keys or Path(path).is_dir():
            try:
                return plain(path, name, **keys)
            except Exception as e:
                sys.exit(f"the data set {path} cannot be read: {hub.first_line(e)}")
        revision, place = keys.get("revision"), directory or "DIR"
        bring = f"`hf download {path} --repo-type=dataset --local-dir={place}/{path}`"
        instead = f"bring a copy, {bring}, and say --local_data={place}"
        wanted = f"{path}@{revision}" if revision else path
        return hub.dataset(wanted, lambda: plain(path, name, **keys), instead)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = plain


def evaluate(model, name, manager):
    """lm-eval's results for one task or group, as a dict, with the metrics of every part, and each document's."""
    import lm_eval.evaluator

    o = model.options
    start, model.manager = time.time(), manager
    out = lm_eval.evaluator.simple_evaluate(
        model=model,
        tasks=[name],
        num_fewshot=o.num_fewshot,
        limit=o.limit or None,
        system_instruction=o.system or None,
        apply_chat_template=o.apply_chat_template,
        fewshot_as_multiturn=o.fewshot_as_multiturn,
        task_manager=manager,
        confirm_run_unsafe_code=True,  # Tasks has refused it, if it was not allowed
        fewshot_random_seed=o.fewshot_seed,
    )
    wall = time.time() - start
    keep = ("doc_id", "target", "resps", "filtered_resps", "filter", "doc_hash", "prompt_hash")
    samples = [
        {"task": task, **{k: x[k] for k in keep}, **{m: x[m] for m in x["metrics"]}}
        for task, rows in out["samples"].items()
        for x in rows
    ]
    documents = sum(x["effective"] for x in out["n-samples"].values())
    whole = sum(x["original"] for x in out["n-samples"].values())
    return {
        **headline(out, name, o.metric),
        "metrics": out["results"],
        "documents": [documents, whole],
        "shots": out["n-shot"],
        "task_versions": out["versions"],
        "counts": tally(model.counts, wall),
        "samples": json.loads(json.dumps(samples, default=str)),
    }


def headline(out, name, metric):
    """The score, its standard error and whether it is a percentage: of the task or group, or the mean over the parts of
    one that lm-eval does not sum up, each document counting once."""

    def metrics(part):
        said = {k: v for k, v in out["results"].get(part, {}).items() if "_stderr" not in k and k != "sample_len"}
        return [k for k, v in said.items() if isinstance(v, int | float)]

    parts = [name] if metrics(name) else list(out["n-samples"])
    there = [k for k in metrics(parts[0]) if all(k in metrics(p) for p in parts)]
    if not there:
        sys.exit(f"the parts of {name} have no score in common; name them as tasks: {', '.join(parts)}")
    found = [k for k in there if metric in (k, *k.split(","))]
    if metric and not found:
        print(f"warning: {name} has no metric {metric!r}; it has {', '.join(there)}")
    key = (found or there)[0]
    base, _, rest = key.partition(",")
    n = {p: out["n-samples"].get(p, {"effective": 1})["effective"] for p in parts}
    total = sum(n.values())
    score = sum(out["results"][p][key] * n[p] for p in parts) / total
    errors = [out["results"][p].get(f"{base}_stderr,{rest}", "N/A") for p in parts]
    known = all(isinstance(e, int | float) for e in errors)
    error = math.sqrt(sum((e * n[p]) ** 2 for e, p in zip(errors, parts))) / total if known else None
    better = out["higher_is_better"].get(parts[0], {}).get(base.partition("@")[0], True)
    fraction = score <= 1 and not base.startswith(("bleu", "chrf"))  # which are percentages, as are squad's f1 or rouge
    scale = 100 if better in (True, None) and fraction else 1
    return {"metric": key, "score": score * scale, "error": error and error * scale, "percent": scale == 100}


def tally(counts, wall):
    """Totals of a row: tokens are those that were written, up to and with the end-of-text; a process' own seconds."""
    tokens, seconds = counts["text tokens"], counts["text seconds"]
    forwards = sum(v for k, v in counts.items() if k.endswith("forwards"))
    return {
        "forwards": round(forwards),
        "tokens": tokens,
        "tokens_per_forward": tokens / counts["text forwards"] if tokens else None,
        "tokens_per_s": tokens / seconds if tokens else None,
        "seconds": sum(v for k, v in counts.items() if k.endswith("seconds")),
        "wall_seconds": wall,
        "truncated": counts["truncated"],
    }


def check_fits(model, task):
    """Exit where no answer of a task has room in the context; warn where the model cannot write what its score reads,
    as WordPiece, which writes GSM8K's #### as # # # #."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    model.room(model.sampling(task.config.generation_kwargs or {}))
    try:
        target = next(task.doc_to_target(doc) for doc in task.eval_docs)
        written = model.tokenizer.decode(model.tokenizer.encode(target))
    except Exception:  # a task without documents, or with targets that are no texts, or none of this vocabulary
        return
    for score in task.config.filter_list or ():
        for step in score["filter"]:
            found = re.compile(step.get("regex_pattern", "")).search
            if found(target) and not found(written):
                what = f"{found(target)[0]!r} is written {written[-40:]!r} by its tokenizer"
                print(f"warning: {task.config.task}: {score['name']} cannot be reached by this checkpoint: {what}")


def rows(values, recipe, s, path, checkpoint, algorithm, classes, rank, world, store):
    """The results of every task of s.tasks for one checkpoint, dicts; none in any process but the first."""
    from nanodlm.harness import Answers, Harness

    answers = Answers(checkpoint, algorithm, s.batch_size, store, rank, world)
    if rank:
        answers.serve()
        return []
    model, manager = Harness(checkpoint, algorithm, answers), task_manager(s.include_path)
    entries = [settle(values, entry, classes, recipe) for entry in s.tasks]
    if s.only:
        names = [{name, *own.get("label", ())[:1]} for name, own, _ in entries]
        if missing := sorted(set(s.only).difference(*names)):
            there = ", ".join(dict.fromkeys(n for both in names for n in sorted(both)))
            sys.exit(f"only={missing[0]} is none of the recipe's tasks: {there}")
        entries = [e for e, both in zip(entries, names) if both & set(s.only)]
    check_names([name for name, _, _ in entries], manager)
    ready = [(name, over, *settings_of(own, s, checkpoint, algorithm, classes)) for name, own, over in entries]
    if checkpoint.tokenizer.template is None and any(options.apply_chat_template for _, _, options, *_ in ready):
        sys.exit(f"{checkpoint.path} has no chat template; leave out --apply_chat_template")
    out = []
    with local_copies(s.local_data), code_runs(s.run_code):
        for name in dict.fromkeys(name for name, *_ in ready):  # what is refused is refused now, not in hours
            manager.load([name])
            for task in manager.loaded["tasks"].values():
                for _, _, *settings in (r for r in ready if r[0] == name):
                    model.use(*settings)
                    check_fits(model, task)
        for name, overridden, options, likelihood, sampling in ready:
            print(f"task: {name}", flush=True)
            for what in overridden:
                print(f"warning: {what}: this is not the published setting")
            model.use(options, likelihood, sampling)
            row = {"checkpoint": path, "algorithm": checkpoint.algorithm, "parameters": checkpoint.model.num_params()}
            row |= {"task": name, "label": options.label or name, **evaluate(model, name, manager)}
            row |= {"published": options.published, "published_speed": options.published_speed}
            row |= {"task_settings": asdict(options), "likelihood_options": asdict(likelihood), "sampling": model.used}
            row |= {"overridden": overridden, "settings": asdict(s)}
            out.append(row)
    answers.done()
    return out
