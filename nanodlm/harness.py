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

1 the model that lm-eval asks · 2 answering on all processes · 3 its index of tasks (their settings: tasks.py)
"""

import contextlib
import hashlib
import json
import math
import sys
import time
import zlib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from nanodlm import corpus, files, hub, lora, sandbox
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers
from nanodlm.files import ROOT

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
        self.tokenizer = tokenizers.with_thoughts(self.checkpoint.tokenizer, options.thoughts)
        self.counts, self.used = Counter(), []
        # An autoregressive model without begin-of-text is given an end-of-text instead, and never predicts its first
        # token, so that one more fits. The others need nothing in front. Dream counts an end-of-text behind an answer,
        # and never hides it; iLLaDA shows one (seen_end).
        self.alone = self.algorithm.CAUSAL and self.tokenizer.mask_id is None
        self.length = min(options.max_length or math.inf, self.config.seq_len) + int(self.alone)
        self.begin = list(self.tokenizer.frame[0]) if not options.apply_chat_template else []
        # Begin-of-text and a prefix, before a text alone and before every prompt.
        self.first = self.front = self.encode("")
        if self.alone and not self.first:
            self.first = [tokenizers.end_of_text(self.tokenizer, "a text without begin-of-text")]
        if options.apply_chat_template and self.tokenizer.template:
            system = [{"role": "system", "content": options.system}] if options.system else []
            a, b = (self.encode(self.apply_chat_template([*system, {"role": "user", "content": x}])) for x in "ab")
            self.front = a[: texts.common(a, b)]  # what a template begins with
        why = ("method=dream",) if getattr(likelihood, "method", "") == "dream" else ()
        why += ("seen_end=True",) if getattr(likelihood, "seen_end", False) else ()
        self.behind = [tokenizers.end_of_text(self.tokenizer, w) for w in why]

    def encode(self, text):
        """Ids of a prompt. A template's text has its special tokens, and marks where contents spell one (text.py);
        elsewhere they stand in front, as in training, and a task's text is read as the library reads it: some tasks
        write control tokens themselves, and published scores are of that."""
        ids = tokenizers.encode(self.tokenizer, self.options.prefix + text, "a prompt")
        return [*self.begin, *(i for i in ids if i != self.tokenizer.mask_id)]  # which would be a hole to fill

    def encode_pair(self, context, continuation):
        """(ids of the prompt, of the answer), as lm-eval's own models cut them: spaces between belong to the answer.
        So does a token in which the two meet, which they take for the prompt's. ValueError where nothing is left."""
        if self.options.apply_chat_template:
            continuation = self.tokenizer.escape(continuation)
        prompt, answer = texts.split(self.encode(context.rstrip()), self.encode(context + continuation))
        if not answer:
            raise ValueError(f"the answer {continuation!r} has no token of its own behind {context[-40:]!r}")
        return prompt or self.first, answer

    def fit(self, pairs):
        """Pairs of ids no longer than the context: a prompt loses its beginning, an answer only where it must."""
        room = self.length - self.alone  # a model that never predicts the first token keeps one of the prompt's
        pairs = [(p, t[-room:]) for p, t in pairs]
        return [(self.shorten(p, self.length - len(t)), t) for p, t in pairs]

    def shorten(self, prompt, room):
        """The prompt's ids without as many of the first ones as do not fit, but with what stands in front of all."""
        front = self.front if len(self.front) < room and prompt[: len(self.front)] == self.front else []
        return prompt if len(prompt) <= room else front + prompt[len(prompt) - room + len(front) :]

    def score(self, pairs, questions=None):
        """log p(answer | prompt) in nats for each pair of ids; questions: what each is an answer to."""
        pairs = [(p, [*t, *self.behind]) for p, t in pairs]
        self.counts["truncated"] += sum(len(p) + len(t) > self.length for p, t in pairs)
        return [a["logp"] for a in self.ask("likelihood", self.likelihood, self.fit(pairs), questions)]

    def loglikelihood(self, requests):
        """[(nats, whether greedy decoding gives this answer: only where the task's score needs it)]."""
        try:
            pairs = [self.encode_pair(*(request := r).args) for r in requests]
        except ValueError as e:
            sys.exit(f"the task {request.task_name}, document {request.doc_id}: {e}; it cannot be scored")
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
        cut = [corpus.windows(self.encode(r.args[0])[before:], size, self.first) for r in requests]
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
            room = self.room(o)
            if asdict(o) not in self.used:
                self.used.append(asdict(o))
            prompts = [self.encode(requests[i].args[0]) or self.first for i in mine]
            self.counts["truncated"] += sum(len(p) > room for p in prompts)
            prompts = [self.shorten(p, room) for p in prompts]
            for i, a in zip(mine, self.ask("text", o, [(p, stops) for p in prompts])):
                out[i] = a["text"]
        return out

    def room(self, options):
        """How many tokens of a prompt fit beside those that are asked for; exits where none does."""
        context = self.length - self.alone  # as lm-eval's own models have it
        if options.max_new_tokens >= context:
            fit = f"the {context} tokens of the context"
            sys.exit(f"max_new_tokens={options.max_new_tokens} leaves no room for a prompt in {fit}; give fewer")
        return context - options.max_new_tokens

    def ask(self, kind, options, requests, questions=None):
        found = self.answers(kind, options, requests, questions)
        for a in {id(a): a for a in found}.values():  # what was asked twice was computed once
            self.counts.update({f"{kind} {k}": v for k, v in a.items() if k in ("forwards", "tokens", "seconds")})
        return found

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """Messages as text, up to where the assistant answers, or goes on with what the last message begins."""
        messages, begun = (chat_history, "") if add_generation_prompt else (chat_history[:-1], chat_history[-1])
        try:
            return self.tokenizer.template(messages, True) + (begun and self.tokenizer.escape(begun["content"]))
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
        name = [str(checkpoint.path), lora.digest(checkpoint.model, True), str(dtype), algorithm.__name__]
        t = checkpoint.tokenizer
        name += [t.spec, t.eos_id, t.mask_id, t.stop_ids, t.stop_text, t.frame, t.thoughts, sorted(t.controls)]
        rooms = (
            "alignments attention choice decode families fast_bd3lm fast_mdlm fast_udlm gemma harness int8 likelihood"
        )
        rooms = [
            f"nanodlm/{room}.py" for room in f"{rooms} noise text tokenizer wrapped".split()
        ]  # what decides may be edited
        sources = (
            algorithm.__file__,
            *(ROOT / f for f in ("model.py", "mdlm.py", "bd3lm.py", "udlm.py", "editflow.py", "ar.py", *rooms)),
        )
        name += [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources]
        self.name = hashlib.sha256(json.dumps(name).encode()).hexdigest()
        for file in sorted(filter(Path.is_file, self.directory.glob("[0-9]*.jsonl"))) if directory else ():
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
                f.write("".join(f"\n{files.to_json(pair)}" for pair in new.items()))  # a torn line spoils no other

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
        ends = dict(eos_id=tokenizer.stop_ids or None, until=texts.until(tokenizer, stops) if stops else None)
        out = algorithm.generate(model, prompts, options, **keys, **ends)
        made = [x[len(job[2]) :].tolist() for x, job in zip(out.tokens, batch)]
        said = [texts.answer(tokenizer, job[2], ids, stops)[0] for job, ids in zip(batch, made)]
        said = [text.removeprefix(" ") if tokenizer.joins else text for text in said]  # a space that no token holds
        return [{"text": t, "tokens": len(m), "forwards": n} for t, m, n in zip(said, made, out.num_forwards)]


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
# 3 · its index of tasks


class Tasks(TaskManager):
    """lm-eval's index of tasks, which remembers what was loaded last, and refuses what cannot or may not run."""

    def load(self, names):
        # A task's module may hold a random generator, as GPQA's, which shuffles choices: each time it begins anew.
        for name in [n for n, m in sys.modules.items() if n.startswith("lm_eval.tasks.") and hasattr(m, "__mtime__")]:
            del sys.modules[name]
        try:
            self.loaded = super().load(names)
        except sandbox.Refused as e:
            sys.exit(f"{' '.join(names)}: {e}")
        except ImportError as e:
            sys.exit(f"{' '.join(names)} needs what is not installed: {hub.first_line(e)}")
        except Exception as e:  # whatever lm-eval, or a task's own code, makes of its YAML
            sys.exit(f"{' '.join(names)} cannot be loaded: {type(e).__name__}: {hub.first_line(e)}")
        for name, task in self.loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) and not sandboxed(task):
                sys.exit(f"the task {name} runs code that the model wrote in a way of its own, without our sandbox")
        return self.loaded


def sandboxed(task):
    """Whether what a task's own metrics run goes through sandbox.py."""
    functions = [getattr(f, "__self__", f) for f in task._metric_fn_list.values()]
    return any(isinstance(x, sandbox.CodeEval) for f in functions for x in getattr(f, "__globals__", {}).values())
