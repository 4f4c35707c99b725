"""lm-eval's tasks (github.com/EleutherAI/lm-evaluation-harness) for every checkpoint: the library makes the prompts,
extracts the answers and scores them; here is the model that it asks.

    python eval.py --checkpoint=… --tasks=gsm8k,arc_easy --limit=100
    python eval.py --checkpoint=… --tasks="gsm8k num_fewshot=8 max_new_tokens=256 cache=dual"
    torchrun --nproc_per_node=8 eval.py config/eval_llada_base.py

A task may bring settings of its own, which go before those of the recipe: everything in Options, every option of
generate and of log_likelihood. lm-eval runs in the first process alone; all processes share the requests. A request's
random numbers come from its content, or from its document, so that any number of processes and any batch size give the
same answers (but for rounding: in bfloat16 a near tie may fall otherwise in another batch). What is answered is kept in
a file, and a run that was killed goes on where it was.

1 the model that lm-eval asks · 2 answering on all processes · 3 tasks and their settings · 4 a row of the results
"""

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import math
import shlex
import sys
import time
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import torch
import torch.distributed as dist
from lm_eval.api.model import LM
from tqdm import tqdm

import configurator
import execute
import hub
import mdlm
import presets
import pretrained
from data import common


@dataclass
class Options:
    """What a task may say for itself, besides how it is decoded and what its likelihoods are."""

    label: str = ""  # what tables call the row; default: the task's name
    metric: str = ""  # the task's score, as lm-eval names it: acc_norm, or exact_match,flexible-extract; default: first
    published: float | None = None  # the published score, as tables print it
    published_speed: float | None = None  # and its tokens per second
    num_fewshot: int | None = None  # examples in front of a question; default: as many as the task says
    limit: int = 0  # only so many documents of each task; 0: all
    apply_chat_template: bool = False  # questions become a user's turns, by the checkpoint's chat template
    fewshot_as_multiturn: bool = True  # … examples become turns before them, instead of text in the same turn
    system: str = ""  # … after this system prompt
    preset: str = ""  # generation's options from config/presets, or none; default: the model's own
    prefix: str = ""  # text in front of every prompt, as Dream's <|beginoftext|>
    until: tuple[str, ...] | None = None  # strings that end an answer; default: the task's
    max_length: int = 0  # tokens of prompt and answer; longer prompts lose their beginning; 0: the model's context
    fewshot_seed: int = 1234  # of the choice of examples, where a task draws them


# ------------------------------------------------------------------------------------------------------------------
# 1 · the model that lm-eval asks


class Harness(LM):
    def __init__(self, checkpoint, algorithm, answers):
        super().__init__()
        self.checkpoint, self.algorithm, self.answers = checkpoint, algorithm, answers
        self.tokenizer, self.config = checkpoint.tokenizer, checkpoint.model.config
        self.manager = None  # Tasks; given by evaluate()

    def use(self, options, likelihood, sampling):
        """The settings of the next task: Options, LikelihoodOptions, and a function from what the task says about
        generation (a dict) to SampleOptions."""
        self.options, self.likelihood, self.sampling = options, likelihood, sampling
        self.counts, self.used = Counter(), []
        # An autoregressive model without begin-of-text is given an end-of-text instead, and never predicts its first
        # token, so that one more fits. The others need nothing in front. Dream counts an end-of-text behind an answer,
        # and never hides it.
        self.alone = self.algorithm.CAUSAL and self.tokenizer.mask_id is None
        self.length = min(options.max_length or math.inf, self.config.seq_len) + int(self.alone)
        self.begin = list(self.tokenizer.frame[0]) if not options.apply_chat_template else []
        self.first = self.encode("") or ([self.tokenizer.eos_id] if self.alone else [])  # stands before a text alone
        self.behind = [self.tokenizer.eos_id] if getattr(likelihood, "method", "") == "dream" else []

    def encode(self, text):
        """Ids of a prompt. A template's text has its special tokens; elsewhere they stand in front, as in training."""
        try:
            ids = self.tokenizer.encode(self.options.prefix + text)
        except ValueError as e:
            sys.exit(f"a prompt does not fit the checkpoint's vocabulary: {e}")
        return [*self.begin, *(i for i in ids if i != self.tokenizer.mask_id)]  # which would be a hole to fill

    def encode_pair(self, context, continuation):
        """(ids of the prompt, of the answer), as lm-eval's own models cut them: spaces between belong to the answer."""
        whole, prompt = self.encode(context + continuation), self.encode(context.rstrip())
        return prompt or self.first, whole[len(prompt) :]

    def fit(self, pairs):
        """Pairs of ids no longer than the context: a prompt loses its beginning, an answer only where it must."""
        room = self.length - self.alone  # a model that never predicts the first token keeps one of the prompt's
        pairs = [(p, t[-room:]) for p, t in pairs]
        return [(p[max(0, len(p) + len(t) - self.length) :], t) for p, t in pairs]

    def score(self, pairs, questions=None):
        """log p(answer | prompt) in nats for each pair of ids; questions: what each is an answer to."""
        pairs = [(p, [*t, *self.behind]) for p, t in pairs]
        self.counts["truncated"] += sum(len(p) + len(t) > self.length for p, t in pairs)
        return [a["logp"] for a in self.ask("likelihood", self.likelihood, self.fit(pairs), questions)]

    def loglikelihood(self, requests):
        """[(nats, whether greedy decoding gives this answer: only where the task's score needs it)]."""
        pairs = [self.encode_pair(*r.args) for r in requests]
        wanted = [i for i, r in enumerate(requests) if self.wants_greedy(r)]
        greedy = self.algorithm.SampleOptions(max_new_tokens=0, temperature=0.0)
        found = self.ask("greedy", greedy, self.fit([pairs[i] for i in wanted]))
        same = {i: a["same"] for i, a in zip(wanted, found)}
        scores = self.score(pairs, [f"{r.task_name} {r.doc_id}" for r in requests])
        return [(logp, same.get(i, False)) for i, logp in enumerate(scores)]

    def wants_greedy(self, request):
        task = self.manager and self.manager.loaded["tasks"].get(request.task_name)
        if task is None or task.OUTPUT_TYPE == "loglikelihood":
            return True
        return "exact_match" in getattr(task, "_metric_fn_list", ())

    def loglikelihood_rolling(self, requests):
        """[nats] of whole texts, cut into windows as long as the context; the last one is given what stands before."""
        before, size = len(self.encode("")), self.length - len(self.first) - len(self.behind)
        cut = [common.windows(self.encode(r.args[0])[before:], size, self.first) for r in requests]
        logp = iter(self.score([pair for pairs in cut for pair in pairs]))
        return [sum(next(logp) for _ in pairs) for pairs in cut]

    def generate_until(self, requests):
        """[text], up to the first of the strings that end an answer."""
        out, groups = [None] * len(requests), {}
        for i, r in enumerate(requests):
            groups.setdefault(json.dumps(r.args[1], sort_keys=True), []).append(i)
        for said, mine in groups.items():
            said = json.loads(said)
            until = said.get("until") or [] if self.options.until is None else self.options.until
            stops = [until] if isinstance(until, str) else list(until)
            stops += [self.tokenizer.stop_text] if self.options.apply_chat_template else []
            stops = tuple(dict.fromkeys(s for s in stops if s))
            o = self.sampling(said)
            context = self.length - self.alone  # as lm-eval's own models have it
            if o.max_new_tokens >= context:
                fit = f"the {context} tokens of the context"
                sys.exit(f"max_new_tokens={o.max_new_tokens} leaves no room for a prompt in {fit}; give fewer")
            if asdict(o) not in self.used:
                self.used.append(asdict(o))
            prompts = [self.encode(requests[i].args[0]) or self.first for i in mine]
            room = context - o.max_new_tokens
            self.counts["truncated"] += sum(len(p) > room for p in prompts)
            prompts = [p[-room:] for p in prompts]
            for i, a in zip(mine, self.ask("text", o, [(p, stops) for p in prompts])):
                out[i] = functools.reduce(lambda text, stop: text.split(stop)[0], stops, a["text"])
        return out

    def ask(self, kind, options, requests, questions=None):
        found = self.answers(kind, options, requests, questions)
        for a in {id(a): a for a in found}.values():  # what was asked twice was computed once
            self.counts.update({f"{kind} {k}": v for k, v in a.items() if k in ("forwards", "tokens", "seconds")})
        return found

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """Messages as text, up to where the assistant answers, or goes on with what the last message begins."""
        messages, begun = (chat_history, "") if add_generation_prompt else (chat_history[:-1], chat_history[-1])
        try:
            return self.tokenizer.template(messages, True) + (begun and begun["content"])
        except Exception as e:  # a template may refuse a role, in its own words
            sys.exit(f"the checkpoint's chat template refuses this conversation: {e}")

    @property
    def tokenizer_name(self):
        return str(self.checkpoint.path)


# ------------------------------------------------------------------------------------------------------------------
# 2 · answering on all processes


class Answers:
    """Call it in the first process with requests, while the others serve(): answers, from the file where they were
    computed before. An answer is a dict with what was asked for, forwards, tokens and seconds."""

    def __init__(self, checkpoint, algorithm, batch_size, directory=None, rank=0, world=1):
        self.checkpoint, self.algorithm, self.batch_size = checkpoint, algorithm, batch_size
        self.directory, self.rank, self.world = directory and Path(directory), rank, world
        self.device = next(checkpoint.model.parameters()).device
        self.known = {}
        dtype = next(checkpoint.model.parameters()).dtype
        name = [str(checkpoint.path), pretrained.digest(checkpoint.model, True), str(dtype), algorithm.__name__]
        sources = algorithm.__file__, mdlm.__file__, common.ROOT / "model.py"  # which may be edited before it goes on
        name += [Path(source).read_text(encoding="utf-8") for source in sources]
        self.name = hashlib.sha256(json.dumps(name).encode()).hexdigest()
        for file in sorted(self.directory.glob("*.jsonl")) if directory else ():
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the line in which a killed run ended
                    key, answer = json.loads(line)
                    impossible = {"logp": -math.inf} if answer.get("logp", 0) is None else {}  # JSON has no infinity
                    self.known[key] = answer | impossible

    def __call__(self, kind, options, requests, questions=None):
        """requests: [(ids of the prompt, ids of the answer, or the strings that end one)] -> [answer]."""
        facts = {k: v for k, v in asdict(options).items() if k != "batch_size"}
        jobs, times = {}, Counter()
        keys = []
        for i, (prompt, rest) in enumerate(requests):
            content = json.dumps([kind, prompt, rest])
            times[content] += kind == "text"  # a task may ask the same several times, to be answered differently
            # Answers to one question share their masks, so that their differences have less noise than they have; but
            # published estimators drew them independently.
            shared = questions and getattr(options, "method", "") == "nelbo"
            number = zlib.crc32((questions[i] if shared else f"{content} {times[content]}").encode()) >> 8
            told = f"{self.name} {json.dumps(facts)} {content} {times[content]} {number}"
            keys.append(hashlib.sha256(told.encode()).hexdigest()[:32])
            jobs[keys[-1]] = (keys[-1], number, prompt, rest)
        todo = [job for key, job in jobs.items() if key not in self.known]
        # Long ones first; those with the same prompt side by side, as they may share canvases.
        todo.sort(key=lambda job: (kind == "greedy" and -len(job[3]), -len(job[2]), job[2], len(job[3])))
        batches = list(self.batches(kind, options, todo))
        progress = (len(jobs) - len(todo), len(jobs))
        shares = [(kind, options, batches[i :: self.world], progress) for i in range(self.world)]
        self.known |= self.work(*self.share(shares))
        return [self.known[key] for key in keys]

    def batches(self, kind, options, jobs):
        """Requests that are computed, and kept, together: `batch_size` texts to write; of likelihoods, enough for some
        full batches of canvases, as a short answer has few that differ."""
        batch, size = [], 0
        for job in jobs:
            ways = 1
            if kind == "likelihood" and getattr(options, "method", "") in ("nelbo", "llada", "dream"):
                ways = min(options.mc_samples, 2 ** min(len(job[3]), 20) - 1)
            other = batch and kind == "greedy" and len(job[3]) != len(batch[0][3])  # which may not fit the context
            if other or batch and size + ways > self.batch_size * (4 if kind == "likelihood" else 1):
                yield batch
                batch, size = [], 0
            batch, size = [*batch, job], size + ways
        if batch:
            yield batch

    def serve(self):
        """What all processes but the first do until it is done."""
        while (job := self.share(None)) is not None:
            self.work(*job)

    def done(self):
        """Send the other processes home."""
        self.share([None] * self.world)

    def share(self, jobs):
        """What this process is given of the first one's jobs, of which there is one for each."""
        if self.world == 1:
            return jobs[0]
        box = [None]
        dist.scatter_object_list(box, jobs)
        return box[0]

    def work(self, kind, options, batches, progress):
        """{key: answer} of this process's batches; of all in the first one."""
        found, (before, total) = {}, progress
        keys = dict(desc=kind, total=total, initial=before, disable=self.rank > 0 or None, leave=False)
        with tqdm(**keys) as bar:
            for batch in batches:
                start = time.time()
                try:
                    answers = self.compute(kind, options, batch)
                except ValueError as e:  # a method or an option that this algorithm does not have
                    sys.exit(str(e))
                seconds = (time.time() - start) / len(batch)
                new = {job[0]: {**a, "seconds": seconds} for job, a in zip(batch, answers)}
                self.keep(new)
                found |= new
                bar.update(len(batch) * self.world)
        if self.world > 1:
            parts = [None] * self.world
            dist.gather_object(found, parts if not self.rank else None)
            found = {k: v for part in parts if part for k, v in part.items()}
        return found

    def keep(self, new):
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.directory / f"{self.rank}.jsonl", "a", encoding="utf-8") as f:
                f.write("".join(f"\n{common.to_json(pair)}" for pair in new.items()))  # a torn line spoils no other

    def compute(self, kind, options, batch):
        """One answer for each (key, number, prompt, rest)."""
        model, algorithm, tokenizer = self.checkpoint.model, self.algorithm, self.checkpoint.tokenizer
        numbers = torch.tensor([job[1] for job in batch])
        prompts = [torch.tensor(job[2], dtype=torch.int64, device=self.device) for job in batch]
        rest, keys = [job[3] for job in batch], dict(mask_id=tokenizer.mask_id, numbers=numbers)
        if kind == "likelihood":
            targets = [torch.tensor(ids, dtype=torch.int64, device=self.device) for ids in rest]
            with counted(model) as forwards:
                logp = algorithm.log_likelihood(model, prompts, targets, options, **keys).tolist()
            return [{"logp": x, "forwards": forwards[0] / len(batch)} for x in logp]
        if kind == "greedy":
            if algorithm.CAUSAL:  # the longest: each begins as a shorter one would
                options = replace(options, max_new_tokens=max(map(len, rest)))
            else:
                prompts = [
                    torch.nn.functional.pad(p, (0, len(t)), value=tokenizer.mask_id) for p, t in zip(prompts, rest)
                ]
            out = algorithm.generate(model, prompts, options, **keys)
            made = [x[len(job[2]) :][: len(job[3])].tolist() for x, job in zip(out.tokens, batch)]
            return [{"same": m == list(t), "forwards": n} for m, t, n in zip(made, rest, out.num_forwards)]
        stops = rest[0]  # the same for all

        def until(ids):
            text = tokenizer.decode(ids.tolist())
            return any(stop in text for stop in stops)

        ends = dict(eos_id=tokenizer.stop_ids or None, until=until if stops else None)
        out = algorithm.generate(model, prompts, options, **keys, **ends)
        made = [x[len(job[2]) :].tolist() for x, job in zip(out.tokens, batch)]
        texts = [tokenizer.decode(ids) for ids in made]
        return [{"text": t, "tokens": len(m), "forwards": n} for t, m, n in zip(texts, made, out.num_forwards)]


@contextlib.contextmanager
def counted(model):
    """Count the sequences that go through the network: [number]."""
    count, plain = [0], model.hidden

    def hidden(ids, *args, **keys):
        count[0] += len(ids)
        return plain(ids, *args, **keys)

    model.hidden = hidden
    try:
        yield count
    finally:
        del model.hidden  # the class's own again


# ------------------------------------------------------------------------------------------------------------------
# 3 · tasks and their settings


def read_task(entry):
    """(name, {key: (value, where)}) of "gsm8k num_fewshot=5 max_new_tokens=256"."""
    name, *words = shlex.split(entry)
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

    def part(c):
        return {k: v for k, v in own.items() if k in {f.name for f in fields(c)}}

    theirs, published = checkpoint.facts.get("preset"), ("llada", "dream", "illada")
    method = {"method": (theirs, "its preset")} if algorithm is mdlm and theirs in published else {}
    for key in ("method", "preset"):
        if theirs in published and own.get(key, (theirs,))[0] in {*published} - {theirs}:
            print(f"warning: {key}={own[key][0]} is another family's; the checkpoint's authors have {theirs}")
    likelihood = method | part(algorithm.LikelihoodOptions) | {"batch_size": (s.batch_size, "")}
    likelihood = configurator.fill(likelihood, algorithm.LikelihoodOptions, quiet=True)
    options, decoding = configurator.fill(part(Options), Options, quiet=True), part(algorithm.SampleOptions)

    def sampling(task):
        draws = task.get("do_sample", task.get("temperature", 0) != 0)
        said = {k: task[k] for k in ("temperature", "top_p", "top_k") if k in task} if draws else {"temperature": 0.0}
        length = [task[k] for k in ("max_gen_toks", "max_new_tokens", "max_tokens") if k in task]
        said |= {"max_new_tokens": length[0]} if length else {}
        _, settled = presets.settle(checkpoint, algorithm, decoding, options.preset)
        said = {k: (v, "the task") for k, v in said.items() if hasattr(algorithm.SampleOptions, k)}
        return configurator.fill(settled | said | decoding, algorithm.SampleOptions, quiet=True)

    line = {k: v for k, v in decoding.items() if v[1] == "the command line"}  # a recipe's may become idle beside it
    presets.refuse_idle(sampling({"do_sample": True}), line)  # before anything is computed
    return options, likelihood, sampling


class Tasks(lm_eval.tasks.TaskManager):
    """lm-eval's index of tasks, which remembers what was loaded last, and refuses what cannot or may not run."""

    def load(self, names):
        # A task's module may hold a random generator, as GPQA's, which shuffles choices: each time it begins anew.
        for name in [n for n, m in sys.modules.items() if n.startswith("lm_eval.tasks.") and hasattr(m, "__mtime__")]:
            del sys.modules[name]
        try:
            self.loaded = super().load(names)
        except execute.Refused as e:
            sys.exit(str(e))
        except ImportError as e:
            sys.exit(f"{' '.join(names)} needs what is not installed: {pretrained.first_line(e)}")
        for name, task in self.loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) and not sandboxed(task):
                sys.exit(f"the task {name} runs code that the model wrote in a way of its own, without our sandbox")
        return self.loaded


def sandboxed(task):
    """Whether what a task's own metrics run goes through execute.py."""
    functions = [getattr(f, "__self__", f) for f in task._metric_fn_list.values()]
    return any(isinstance(x, execute.CodeEval) for f in functions for x in getattr(f, "__globals__", {}).values())


@functools.cache
def task_manager(include_path):
    """The index of tasks: lm-eval's, those in tasks/, and those of a directory."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name in ("add_env_info", "get_git_commit_hash"):  # seconds for each task; eval.py's environment() says it once
        setattr(lm_eval.evaluator, name, lambda *_: None)
    if include_path and not Path(include_path).is_dir():
        sys.exit(f"include_path={include_path} is no directory of task files (YAML)")
    ours = Path(__file__).resolve().parent / "tasks"
    return Tasks(include_path=[str(path) for path in (ours, include_path) if path])


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
                sys.exit(f"the data set {path} cannot be read: {pretrained.first_line(e)}")
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


# ------------------------------------------------------------------------------------------------------------------
# 4 · a row of the results


def evaluate(model, name, manager):
    """lm-eval's results for one task or group, as a dict, with the metrics of every part, and each document's."""
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


def rows(values, recipe, s, path, checkpoint, algorithm, classes, rank, world, store):
    """The results of every task of s.tasks for one checkpoint, dicts; none in any process but the first."""
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
    with local_copies(s.local_data), execute.installed(s.run_code):
        for name in [*dict.fromkeys(name for name, *_ in ready)][1:]:  # what is refused is refused now, not in hours
            manager.load([name])
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
