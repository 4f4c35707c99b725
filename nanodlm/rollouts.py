"""What policy gradients (grpo.py) are trained on: prompts of any data, and the answers that a run writes to them.

An iteration's rows are groups of answers, row r the (r % group)-th to prompt r // group, whoever writes it. Answers are
functions of the seed, the iteration and the weights; those that several updates look at are part of what is saved. So
a run is the same on one process or several, stopped and resumed or not.
"""

import contextlib
import functools
import math
import sys
from types import SimpleNamespace

import torch

from nanodlm import algorithms, batches, lora, noise, optim, parallel, rewards, runs, stages, text
from nanodlm.guard import still
from nanodlm.likelihood import mean_and_error

TRIES = 1000  # prompts in a row that are too long


class Rollouts:
    """What a loop is given (batches.py): prompts from `base`, batches.Windows of rows or batches.Chats; and all else
    that is asked of data, which is theirs."""

    def __init__(self, s, base, options, algorithm):
        self.base, self.s, self.o, self.grpo = base, s, options, algorithm
        self.chat, self.source, self.start, self.whole = hasattr(base, "alone"), SimpleNamespace(state=None), None, None
        self.rewards, self.facts, self.lengthy = rewards.named(options.rewards), [], 0
        if self.chat and base.options.packing:
            sys.exit("packing puts several conversations into a row, and an answer is written to one: leave it out")
        if not self.chat and not base.prompt_len:
            sys.exit(
                f"algorithm={s.algorithm} needs prompts: rows with a prompt_len, as data/sudoku's, or conversations"
            )
        if not options.max_new_tokens and self.chat:
            sys.exit("max_new_tokens says how long an answer to a conversation may be; give it, as max_new_tokens=256")
        self.new = options.max_new_tokens or base.seq_len - base.prompt_len
        if self.new + (0 if self.chat else base.prompt_len) > base.seq_len:
            sys.exit(f"max_new_tokens={self.new}, with its prompt, exceeds seq_len={base.seq_len}")

    def __getattr__(self, name):
        if name == "base":  # not there yet
            raise AttributeError(name)
        return getattr(self.base, name)

    def meet(self, run):
        """Called once by the run (runs.Run), before its first iteration."""
        self.run, o = run, self.o
        if run.rows % o.group:
            sys.exit(
                f"an iteration has {run.rows} rows (processes x batch_size x gradient_accumulation_steps), which "
                f"groups of {o.group} do not fill: change one of them, or group"
            )
        if o.kl and not run.s.lora_r:
            sys.exit("kl is the divergence from the network without its adapters: give lora_r, or leave it out")
        for first, at in run.stages:
            if (at.group, at.updates) != (o.group, o.updates):
                sys.exit(f"stages: group and updates are the same for all of a run, not others from {first} on")

    # ---- what the loop asks

    def next(self, it, first, count, total):
        """Rows first…first+count of the `total` of iteration `it`: their numbers, and a function that has the answers
        written. It is asked for later, when the weights are those of that iteration."""
        rows = torch.arange(first, first + count)
        return rows, {"answers": functools.partial(self.answers, it, rows)}, total, total * self.seq_len

    def amount(self, rows):
        return f"{rows // self.o.group} prompts with {self.o.group} answers each"

    def rows_per_pass(self):
        return self.base.rows_per_pass() * self.o.group * self.o.updates

    def state(self, it):
        """Where the data stand before iteration `it`, and the answers that it will look at again."""
        source = self.base.source.state if self.chat else None
        if self.start is None or it % self.o.updates == 0 or it - it % self.o.updates != self.start:
            return source, None
        names = ("x0", "hole", "scored", "real", "when", "number", "advantage", "old", "base")
        return source, {"start": self.start} | {name: getattr(self.whole, name) for name in names}

    def resume(self):
        """Go on from what runs.resume has put into self.source."""
        state, self.source.state = self.source.state, None
        if state and self.chat:
            self.base.source.state = tuple(state[0])
        if state and state[1]:
            self.start = state[1].pop("start")
            self.whole = self.grpo.Answers(**state[1])

    # ---- answers

    def answers(self, it, rows):
        """The Answers (grpo.py) of some rows of iteration `it`, on the device."""
        if self.source.state:
            self.resume()
        start = it - it % self.o.updates
        if self.start != start:
            self.write(start)
        mine = {name: x if x is None else x[rows] for name, x in vars(self.whole).items() if torch.is_tensor(x)}
        for name in ("old", "base"):  # of each update
            mine[name] = mine[name][:, it - start] if name in mine else None
        found = self.grpo.Answers(**mine, seed=self.seed_of(it), note=self.note).to(self.run.device)
        return found

    def seed_of(self, it):
        return noise.fold(self.s.seed, 19, it)

    def prompts(self, start, count):
        """`count` pairs (prompt, int64 ids; the answer that the data have, a text), the same in all processes."""
        if not self.chat:
            return [self.split(x) for x in self.base.next(start, 0, count, count)[0]]
        found, tries = [], 0
        while len(found) < count:
            for row in self.base.source.next(count - len(found)):
                pair = self.split_chat(row)
                found, tries = (found + [pair], 0) if pair else (found, tries + 1)
            if tries > TRIES:
                sys.exit(
                    f"{TRIES} prompts in a row leave no room for max_new_tokens={self.new} in {self.seq_len} tokens"
                )
        return found

    def split(self, x):
        prompt, rest = x[: self.prompt_len], x[self.prompt_len :]
        return prompt, text.continuation(self.tokenizer, prompt.tolist(), rest.tolist())

    def split_chat(self, row):
        """(prompt, the last answer) of a conversation; None where there is no room for another answer."""
        ids, learn = map(torch.from_numpy, batches.read(row[0][1]))
        begin = int((learn[1:] & ~learn[:-1]).nonzero()[-1, 0]) + 1 if (learn[1:] & ~learn[:-1]).any() else 0
        if not begin or begin + self.new > self.seq_len:
            self.lengthy += 1
            return None
        return ids[:begin].long(), text.continuation(self.tokenizer, ids[:begin].tolist(), ids[begin:].tolist())

    def generate(self, prompts, numbers, seed, options):
        """What the network writes to prompts, a list of int64 (L,), and the step in which each token came, likewise."""
        o, run = options, self.run
        engine = algorithms.engine(self.grpo.network_is(run.raw.config))
        keys = dict(max_new_tokens=self.new, steps=o.steps, temperature=o.temperature, block_size=o.answer_block)
        told = engine.SampleOptions(**keys, seed=seed % 2**40)
        out = engine.generate(run.raw, prompts, told, mask_id=self.tokenizer.mask_id, numbers=numbers, trace=True)
        when = [torch.zeros(len(x), dtype=torch.int64) for x in out.tokens]
        for row, events in zip(when, out.trace):
            step, position = torch.tensor([e[:2] for e in events], dtype=torch.int64).view(-1, 2).T
            row[position] = step
        return [x.cpu() for x in out.tokens], when

    def end(self, ids):
        """(tokens of an answer up to its end-of-text, that included; whether it has one)."""
        ends = [i for i in (self.tokenizer.eos_id, *self.tokenizer.stop_ids) if i is not None]
        at = torch.isin(ids, torch.tensor(ends, dtype=torch.int64)).nonzero()[:, 0]
        return (int(at[0]) + 1, True) if len(at) else (len(ids), False)

    def judged(self, pairs, tokens):
        """[(tokens up to the end, whether it ends, reward, what went wrong)] of answers."""
        found = []
        for (prompt, truth), ids in zip(pairs, tokens):
            n, ends = self.end(ids[len(prompt) :])
            answer = text.continuation(
                self.tokenizer, prompt.tolist(), ids[len(prompt) : len(prompt) + n - ends].tolist()
            )
            asked = self.tokenizer.decode(prompt.tolist())
            value, why = rewards.total(self.rewards, asked, answer, truth, self.o.reward_seconds)
            where = f"{why} on the answer {answer[:80]!r} to {asked[-200:]!r}" if why else ""
            found.append((n, ends, value, where))
        return found

    def write(self, start):
        """Have the rows of an iteration written, each process its share; judge them, and compare them."""
        run, o, seed = self.run, stages.at(self.run, start), self.seed_of(start)
        said = self.told()  # of the answers before
        pairs = [pair for pair in self.prompts(start, run.rows // o.group) for _ in range(o.group)]
        B, steps = run.s.batch_size, run.s.gradient_accumulation_steps
        parts = [torch.arange((m * run.world + run.rank) * B, (m * run.world + run.rank + 1) * B) for m in range(steps)]
        mine = []
        with parallel.undivided(run.raw):
            for rows in parts:
                asked = [pairs[i] for i in rows.tolist()]
                tokens, when = self.generate([p for p, _ in asked], rows, seed, o)
                mine += zip(rows.tolist(), tokens, when, self.judged(asked, tokens))
        rows = sorted((row for part in parallel.gather(mine) for row in part), key=lambda row: row[0])
        failed = [judged[3] for *_, judged in rows if judged[3]]
        if failed:
            self.complain(failed)
        values = torch.tensor([judged[2] for *_, judged in rows], dtype=torch.float64).view(-1, o.group)
        self.whole = self.table(rows, pairs, self.grpo.advantages(values, o.deviation).flatten().float())
        self.start = start
        if o.updates > 1 or o.kl:
            found = parallel.gather([(part, *self.looked_at(part, start, o)) for part in parts])
            of, old, base = (torch.cat(x) for x in zip(*(one for its in found for one in its)))
            self.whole.old, self.whole.base = old[of.argsort()], base[of.argsort()] if o.kl else None
        good = values[~values.isnan()]
        said |= {"reward": good.mean().item() if len(good) else math.nan, "failed": len(failed)}
        said["equal_groups"] = (values.amax(1) == values.amin(1)).double().mean().item()  # which teach nothing
        said["answer_tokens"] = sum(judged[0] for *_, judged in rows) / len(rows)
        if self.chat:
            said["endless"] = sum(not judged[1] for *_, judged in rows) / len(rows)
        run.log(start + 1, **said)

    def complain(self, failed):
        """Say which rewards failed; and save and end the run, if that is what is asked for."""
        run, count = self.run, f" ({len(failed)} rewards of this iteration failed)" if len(failed) > 1 else ""
        run.say(f"warning: {failed[0]}{count}")
        if self.o.reward_fails == "stop":
            ok = runs.save(run, "last", stages.at(run, run.place.iter))
            kept = f"{run.out}/last is as it was before this iteration" if ok else "it could not be saved"
            go_on = (
                "mend the reward and go on with --init_from=resume, or leave such answers out: reward_fails=leave_out"
            )
            sys.exit(f"{failed[0]}; {kept}: {go_on}" if run.rank == 0 else 1)

    def table(self, rows, pairs, advantage):
        """The Answers of all rows of an iteration, on the host."""
        width = max(len(tokens) for _, tokens, *_ in rows)
        x0, when = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
        begin, end, length = torch.zeros(3, len(rows), 1, dtype=torch.int64).unbind()
        for i, tokens, step, judged in rows:
            x0[i, : len(tokens)], when[i, : len(tokens)] = tokens, step
            begin[i], length[i] = len(pairs[i][0]), len(tokens)
            end[i] = begin[i] + judged[0]
        at = torch.arange(width)
        hole = (at >= begin) & (at < length)
        return self.grpo.Answers(x0, hole, hole & (at < end), at < length, when, torch.arange(len(rows)), advantage)

    def looked_at(self, rows, start, o):
        """log pi of these rows, (rows, updates, L), as each of the updates will look at them, by the network as it is;
        and without its adapters, if that is asked for."""
        run, mask_id, found, base = self.run, self.tokenizer.mask_id, [], []
        fields = {name: x[rows] for name, x in vars(self.whole).items() if torch.is_tensor(x)}
        with still(run.raw):
            for k in range(o.updates):
                a = self.grpo.Answers(**fields, seed=self.seed_of(start + k)).to(run.device)
                found.append(self.grpo.log_pi(run.raw, a, o, mask_id).cpu())
                with lora.left_out(run.raw) if o.kl else contextlib.nullcontext():
                    base.append(self.grpo.log_pi(run.raw, a, o, mask_id).cpu() if o.kl else found[-1])
        return torch.stack(found, 1), torch.stack(base, 1)

    # ---- what is told

    def note(self, **facts):
        """What the loss has seen, {name: (B, L)}, the tokens that count among it."""
        tokens = facts.pop("tokens")
        sums = {k: torch.where(tokens, v, 0.0).sum() for k, v in facts.items()}
        self.facts.append(sums | {"tokens": tokens.sum()})

    def told(self):
        """Means over the tokens of what was noted since this was last asked for, in all processes."""
        if not self.facts:
            return {}
        sums = {k: sum(f[k].double().cpu() for f in self.facts) for k in self.facts[0]}
        self.facts = []
        total = parallel.total(torch.stack(list(sums.values())))
        return {k: (v / total[-1]).item() for k, v in zip(sums, total) if k != "tokens"}


def held_out(run):
    """{"val_reward", "val_reward_error"}: the mean reward of one answer to each held-out prompt, always with the same
    random numbers; nothing where a run has no rewards. All processes call it together."""
    data = run.data
    if not isinstance(data, Rollouts):
        return {}
    o, held = stages.at(run, run.place.iter), data.base.held
    pairs = [data.split_chat(row) if data.chat else data.split(torch.from_numpy(row.astype("int64"))) for row in held]
    pairs, values, B = [p for p in pairs if p], [], run.s.batch_size
    with optim.averaged(run.trained, run.average), run.autocast, parallel.undivided(run.raw):
        for first in range(run.rank * B, len(pairs), run.world * B):
            mine = pairs[first : first + B]
            tokens, _ = data.generate([p for p, _ in mine], torch.arange(first, first + len(mine)), 0, o)
            values += [judged[2] for judged in data.judged(mine, tokens)]
    values = torch.tensor([v for part in parallel.gather(values) for v in part if math.isfinite(v)])
    if not len(values):
        return {}
    mean, error = mean_and_error(values)
    run.say(f"iteration {run.place.iter}: reward {mean:.4f} ± {error or 0:.4f} of {len(values)} held-out prompts")
    return {"val_reward": mean, "val_reward_error": error}


def of(s, data, options, algorithm):
    """The data of a run: as they are, or where an algorithm writes for itself, Rollouts of them."""
    return Rollouts(s, data, options, algorithm) if hasattr(algorithm, "advantages") else data
