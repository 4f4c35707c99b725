"""The capstone: a language model trained by your own functions, around the project's network and nothing else.

    python exercises/capstone.py                              about 3 minutes on 2 cores
    python exercises/capstone.py --name=ada                   … with your name on the leaderboard
    python exercises/capstone.py --board class/*/capstone     a class's models, measured again, as leaderboard.md

Corruption is yours (lessons 2 and 7), the loss and the bound (5), the sampler (13), and the recipe in
exercises/mine/recipe.py, with which you compete. The text is Python's help, by characters. In exercises/mine/capstone/
you find the model, its result and page.html, which shows it write.
"""

import argparse
import json
import math
import sys
import time
import types
from pathlib import Path

import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import grade  # noqa: E402
import student  # noqa: E402
from one_file import diffusion  # noqa: E402

import mdlm  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import console, device, noise, replay  # noqa: E402
from nanodlm import tokenizer as tokenizers  # noqa: E402
from nanodlm.files import check_directory, check_file, replace_file  # noqa: E402

BUDGET = 15e12  # floating-point operations of training, forward and backward
NEEDED = {2: ("draw_count", "hide", "weight"), 5: ("nll", "estimate"), 7: ("stratified",), 13: ("decode",)}
RECIPE = ("n_layer", "n_head", "n_embd", "seq_len", "batch_size", "learning_rate", "warmup_iters", "seed", "loss")
HELD_OUT, CHARACTERS = 0.1, 32768  # the end of the text is for validation, of which so many characters are measured


def functions(directory):
    """The student's functions of all the lessons that are needed; exits where one is not there yet."""
    my = types.SimpleNamespace()
    for number, names in NEEDED.items():
        results, _ = grade.graded(directory, number, grade.read_progress(directory), again=False)
        for r in results:
            if r["state"] in ("missing", "broken"):
                sys.exit(f"the capstone needs exercise {number} ({', '.join(names)}): {r['came']}")
            if r["state"] == "wrong":
                sys.exit(f"the capstone needs exercise {number}, of which this does not hold yet: {r['claim']}")
        module = student.load(grade.mine(directory, number), grade.LESSONS[number])
        for name in names:
            setattr(my, name, getattr(module, name))
    return my


def recipe_of(directory):
    path = directory / "recipe.py"
    if not path.is_file():
        sys.exit(f"there is no {path}; python exercises/start.py copies it")
    try:
        names = {"__name__": "recipe"}
        exec(compile(path.read_text("utf-8"), str(path), "exec"), names)
        recipe = types.SimpleNamespace(**names, path=path)
        if lacking := [name for name in RECIPE if name not in names]:
            raise ValueError(f"{lacking[0]} is not there; exercises/recipe.py has it")
        if recipe.seq_len > CHARACTERS:
            raise ValueError(f"seq_len={recipe.seq_len} is more than the {CHARACTERS} characters that are measured")
        shape = {name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd", "seq_len")}
        return recipe, Config(vocab_size=1, **shape)
    except (Exception, SystemExit) as e:
        sys.exit(f"{path}: {student.last_line(e, path)}{student.words(e)}")


def text():
    """(a tokenizer of characters; the ids of the text for training, and of that for validation)."""
    content = diffusion.read("")
    tokenizer = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(content)))})
    ids = torch.tensor(tokenizer.encode(content))
    cut = int(len(ids) * (1 - HELD_OUT))
    return tokenizer, ids[:cut], ids[cut:]


def windows(ids, length):
    """The characters that are measured, in rows of this length: int64 (N, length)."""
    n = CHARACTERS // length
    return ids[: n * length].view(n, length)


def train(my, recipe, config, ids, mask_id, budget):
    """A network, trained by recipe.loss until the budget is spent."""
    torch.manual_seed(recipe.seed)
    model = Transformer(config)
    B, L = recipe.batch_size, config.seq_len
    iters = int(budget / device.flops_per_token(model, L) / (B * L))
    if iters < 1:
        sys.exit("one iteration of this recipe costs more than the budget: make the network or the batch smaller")
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    bar = tqdm(range(iters), desc="training", mininterval=1)
    for i in bar:
        warm = min(1, (i + 1) / max(1, recipe.warmup_iters))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(warm, 1.5 * (iters - i) / iters)
        begin = (noise.uniform(recipe.seed, 8, i, torch.arange(B)) * (len(ids) - L)).long()
        x0 = ids[begin[:, None] + torch.arange(L)]

        def uniform(which, *shape, i=i):
            return noise.uniform(recipe.seed, 9, i, which, torch.arange(math.prod(shape))).view(shape)

        try:
            value = recipe.loss(my, model, x0, uniform, mask_id)
            finite = torch.isfinite(value).item()
        except Exception as e:  # it is the student's
            sys.exit(f"the loss of the recipe: {student.last_line(e, recipe.path)}{student.words(e)}")
        if not finite:
            sys.exit(f"the loss is {value.item()} in iteration {i}: a smaller learning_rate, or look at your loss")
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % 20 == 0:
            bar.set_postfix_str(f"loss {value.item():.3f}")
    return model.eval(), iters


def bits(nats, length):
    """(mean, standard error) in bits per character, of nats per row (N,)."""
    b = nats.double() / math.log(2) / length
    return b.mean().item(), (b.std() / len(b) ** 0.5).item()


def score(model, ids, mask_id, draws=4):
    """The project's bound in bits per character, and its standard error: what is compared."""
    x0 = windows(ids, model.config.seq_len)
    total = [
        mdlm.nelbo(model, part, mask_id=mask_id, samples=draws, first=64 * i) for i, part in enumerate(x0.split(64))
    ]
    return bits(torch.cat(total), x0.shape[1])


@torch.no_grad()
def own_score(my, model, ids, mask_id, draws=4):
    """The same by the student's own estimate, with times and masks of its own."""
    x0 = windows(ids, model.config.seq_len)
    total = torch.zeros(len(x0), dtype=torch.float64)
    row = torch.arange(len(x0))
    for j in range(draws):
        t = my.stratified(noise.uniform(10, j, row).argsort(), noise.uniform(11, j, row))
        u = noise.uniform(12, j, row[:, None], torch.arange(x0.shape[1]))
        parts = zip(x0.split(64), t.split(64), u.split(64))
        total += torch.cat([my.estimate(model, x, time, v, mask_id) for x, time, v in parts])
    return bits(total / draws, x0.shape[1])


@torch.no_grad()
def write(my, model, mask_id, seed=0):
    """What the student's sampler writes into an empty canvas: the canvas, and an Output with its trace."""
    L, asked = model.config.seq_len, []

    def watched(canvases):
        logits = model(canvases)
        asked.append((canvases[0].clone(), logits[0].index_fill(1, torch.tensor([mask_id]), -torch.inf).softmax(1)))
        return logits

    canvas = torch.full((L,), mask_id)
    uniform = lambda step, which: noise.uniform(seed, step, which, torch.arange(L))  # noqa: E731
    tokens = my.decode(watched, canvas.clone(), L, uniform, mask_id)
    after, trace = [x for x, _ in asked[1:]] + [tokens], []
    for step, ((x, p), now) in enumerate(zip(asked, after)):
        new = ((x == mask_id) & (now != mask_id)).nonzero()[:, 0].tolist()
        trace += [(step, i, int(now[i]), float(p[i, now[i]])) for i in new]
    return canvas, mdlm.Output([tokens], [len(asked)], [trace])


def run(directory, name, budget):
    """Train, measure, write: one capstone."""
    my, (recipe, config) = functions(directory), recipe_of(directory)
    out = directory / "capstone"
    check_directory(out, "of")
    tokenizer, ids, held = text()
    shape = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
    config = Config(tokenizer.vocab_size, config.seq_len, **shape)
    begin = time.time()
    model, iters = train(my, recipe, config, ids, tokenizer.mask_id, budget)
    seconds = time.time() - begin
    print(f"{model.num_params():,} parameters, {iters} iterations in {seconds:.0f} s")
    mean, error = score(model, held, tokenizer.mask_id)
    own, own_error = own_score(my, model, held, tokenizer.mask_id)
    print(f"NELBO, bits per character of text that it has not seen: {mean:.3f} +- {error:.3f} by the project")
    print(f"                                                        {own:.3f} +- {own_error:.3f} by yourself")
    canvas, output = write(my, model, tokenizer.mask_id)
    print(f"It writes: {console.visible(tokenizer.decode(output.tokens[0].tolist()))}")
    weights = dict(model.named_parameters())
    ckpt.save(out, weights, config, tokenizer, None, "mdlm", {})
    result = {
        "name": name,
        "bits_per_character": mean,
        "error": error,
        "budget": budget,
        "parameters": model.num_params(),
    }
    result |= {"iterations": iters, "seconds": round(seconds), "date": time.strftime("%Y-%m-%d")}
    replace_file(out / "result.json", json.dumps(result, indent=1).encode())
    replay.write_html(out / "page.html", [canvas], output, tokenizer, f"{name}: {mean:.2f} bits per character")
    print(f"model, result and page.html, which shows it write: {out}")


def board(places):
    """Measure the capstones in these directories again, and write them in order to leaderboard.md."""
    check_file("leaderboard.md", "leaderboard")
    rows, (_, _, held) = [], text()
    for place in places:
        try:
            result = json.loads((place / "result.json").read_text("utf-8"))
            found = ckpt.load(str(place))
            mean, error = score(found.model, held, found.tokenizer.mask_id)
            name, budget = (str(result[key]) for key in ("name", "budget"))
            if float(budget) != BUDGET:
                name += f" (of another budget, {float(budget):.0e})"
            rows.append(
                (mean, error, console.visible(name).replace("|", "/"), found.model.num_params(), result["date"])
            )
        except (OSError, ValueError, KeyError, TypeError, SystemExit) as e:
            print(f"{place} holds no capstone: {e}", file=sys.stderr)
    head = "| | name | bits per character | parameters | date |\n|---|---|---|---|---|\n"
    lines = [f"| {i} | {n} | {m:.3f} ± {e:.3f} | {p:,} | {d} |\n" for i, (m, e, n, p, d) in enumerate(sorted(rows), 1)]
    table = head + "".join(lines)
    print(table, end="")
    replace_file(Path("leaderboard.md"), f"Budget: {BUDGET:.1e} floating-point operations.\n\n{table}".encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="you", help="a name for the leaderboard")
    parser.add_argument("--of", type=Path, default=HERE / "mine", help="the directory of the exercises")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"of training, in operations ({BUDGET:.0e})")
    parser.add_argument("--board", type=Path, nargs="+", metavar="DIRECTORY", help="capstones to compare")
    args = parser.parse_args()
    if args.board:
        return board(args.board)
    if not args.of.is_dir():
        sys.exit(f"there is no directory {args.of}; python exercises/start.py makes exercises/mine")
    run(args.of, args.name, args.budget)


if __name__ == "__main__":
    console.run(main)
