"""Make a diffusion language model of an autoregressive one: GPT-2, Llama, Qwen2, Qwen2.5, Qwen3, and others.

    python convert_ar.py Qwen/Qwen3-0.6B --out=checkpoints/qwen3-0.6b
    python convert_ar.py Qwen/Qwen3-0.6B --out=checkpoints/qwen3-0.6b-bd3lm --algorithm=bd3lm
    python convert_ar.py openai-community/gpt2 --out=checkpoints/gpt2 --shift=true
    torchrun train.py config/qwen3_bd3lm.py

What an autoregressive model knows of language is in its weights; what makes it autoregressive is very little. Four
things change, and no weight but the mask token's:

1 the mask token    gets an id and a row of the embedding. The id is the next free one; where the embedding has no row
                    for it, it grows (to a multiple of 64 rows). The row is the mean of all others: a word that means
                    "some word" (an untrained row may lie anywhere, and reserved rows are often exactly zero)
2 attention         from causal to full. At once, or annealed in training: train.py's anneal_iters lets each pair of a
                    token and a later one see each other more and more often (DiffuLLaMA, arXiv 2410.17891)
3 the shift         output i of an autoregressive model predicts token i + 1. Kept (--shift=true), a mask is filled by
                    the output before it, as in Dream and DiffuLLaMA; dropped, by its own, as in LLaDA: what has to be
                    learnt anew is then where to look, and dLLM, who dropped it, report that keeping it hurt. With
                    bd3lm attention then stays causal: a model that reads masks, too (I-DLM, arXiv 2604.11035)
4 the targets       masked diffusion (mdlm), that of uniform noise (udlm, which reads no mask), or block diffusion
                    (bd3lm), which keeps the order of blocks and the cache

The checkpoint has the family's own names, under an architecture that says what attention it needs (A2D…, as dLLM's
converted models have it; Dream's, for a shifted Qwen2). Whoever puts the causal mask back has the old model: that is
checked here, by logits and by every token's row, on the network as it was read and on the file that was written.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from nanodlm import checkpoint as ckpt
from nanodlm import configurator, console, hub, roles
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Place
from nanodlm.files import check_directory

CONVERTED = {
    "LlamaForCausalLM": ("A2DLlamaLMHeadModel", "a2d-llama"),
    "Qwen2ForCausalLM": ("A2DQwen2LMHeadModel", "a2d-qwen2"),
    "Qwen3ForCausalLM": ("A2DQwen3LMHeadModel", "a2d-qwen3"),
    "GPT2LMHeadModel": ("A2DGPT2LMHeadModel", "a2d-gpt2"),
}
PROBE = "def area(r):\n    return 3.14159 * r ** 2\n\nThe capital of France is Paris, and that of Italy is"


@dataclass
class Settings:
    out: Place = ""  # where the converted checkpoint goes
    algorithm: Literal["mdlm", "bd3lm", "udlm"] = "mdlm"  # what it will be trained and decoded as
    shift: bool = False  # keep predicting token i + 1 at output i
    mask_token: str = "<|mask|>"  # added to the tokenizer where it has no mask; or the name of a reserved token
    mask_init: Literal["mean", "keep"] = "mean"  # the mask's row: the mean of all, or what a reserved row holds
    pickle: bool = False  # also read weights from pytorch_model.bin; no code in it is run
    overwrite: bool = False  # replace what is at out


def tables(model):
    """The names of the matrices that have a row per token: the embedding, and the output head where it is another."""
    hf = getattr(model, "hf", None)
    if hf is None:
        return [n for n in ("embed.weight", "head_weight") if n in dict(model.named_parameters())]
    wanted = {id(hf.get_input_embeddings().weight), id(hf.get_output_embeddings().weight)}
    return [n for n, p in model.named_parameters() if id(p) in wanted]


@torch.no_grad()
def give_row(model, mask_id, used, init):
    """A row for the mask token; `used` ids had one that was trained. Grows the tables where they end before it."""
    rows = old_rows = model.config.vocab_size
    if mask_id >= rows:
        rows = -(-(mask_id + 1) // 64) * 64
        if hasattr(model, "hf"):
            model.hf.resize_token_embeddings(rows, mean_resizing=False)
    for name in tables(model):
        module, _, leaf = name.rpartition(".")
        module = model.get_submodule(module)
        table = getattr(module, leaf)
        mean = table[:used][torch.arange(used) != mask_id].mean(0)
        if rows > len(table):
            table = torch.nn.Parameter(torch.cat([table, mean.expand(rows - len(table), -1)]))
            setattr(module, leaf, table)
        if init == "mean" or mask_id >= old_rows:
            table[mask_id] = mean  # in place: in `transformers`, another module may share the table
    if not hasattr(model, "hf"):
        model.embed.num_embeddings = rows
        bias = model.head_bias
        if bias is not None and rows > len(bias):
            model.head_bias = torch.nn.Parameter(F.pad(bias, (0, rows - len(bias)), value=bias.mean().item()))
    model.config = replace(model.config, vocab_size=rows)
    return rows


def turn(model, causal, shift):
    """The same weights with causal or full attention, shifted outputs or not."""
    model.config = replace(model.config, causal=causal, shift=shift)
    return model


@torch.no_grad()
def probe(model, tokenizer, mask_id, used):
    """(ids (1, T), the tokens to look at, the model's logits for them there); without the mask token, which may have
    been a reserved one with a row of its own."""
    others = [i for i in range(used) if i != mask_id]
    try:
        text = [i for i in tokenizer.encode(PROBE) if i != mask_id]
    except ValueError:  # outside a vocabulary of characters
        text = []
    ids = torch.tensor([[*text, *others][: min(96, model.config.seq_len)]])
    return ids, others, model(ids)[..., others]


@torch.no_grad()
def differences(model, ids, others, before):
    """How the logits of the old tokens differ from what they were: with the causal mask put back, and as it is now."""
    c = model.config
    causal = turn(model, True, False)(ids)[..., others]
    full = turn(model, c.causal, c.shift)(ids)[..., others]
    same = (causal.argmax(-1) == before.argmax(-1)).double().mean().item()
    return (causal - before).abs().max().item(), same, (full - before).abs().max().item()


def convert(
    source, out, algorithm="mdlm", shift=False, mask_token="<|mask|>", mask_init="mean", pickle=False, overwrite=False
):
    """Write the diffusion checkpoint `out` of the autoregressive model `source`: a directory, ours or the hub's, or a
    name on the hub."""
    check_directory(out, "out")
    if Path(out).exists() and not overwrite:
        sys.exit(f"{out} exists already; use another --out, or --overwrite=true")
    path = ckpt.find(source, pickle)
    checkpoint = ckpt.load(path, pickle=pickle, whole=True)
    model, old = checkpoint.model, checkpoint.tokenizer
    if not model.config.causal:
        sys.exit(f"{source} is no autoregressive model, it is decoded by {checkpoint.algorithm}; see convert_bert.py")
    used = old.vocab_size if "architecture" in checkpoint.facts else old.mask_id  # ids that have a trained row
    used = min(used, model.config.vocab_size)
    uniform = algorithm == "udlm"  # whose noise is other tokens: it reads no mask, and no row that nobody trained
    facts = checkpoint.facts | {"converted_from": str(source), "preset": "" if uniform else algorithm}
    facts |= {"fresh_mask": not uniform}
    with tempfile.TemporaryDirectory() as folder:
        if "architecture" in facts:
            content = facts["hf_config"]
            try:
                content = roles.settle(path, Path(folder), content, mask_token)
            except ValueError as e:
                sys.exit(str(e))
            tokenizer, where = tokenizers.load({"kind": "hf"}, Path(folder)), folder
        else:  # a checkpoint of ours, whose vocabulary has the mask already: as its begin-of-text
            tokenizer, where, content = old, path, {}
        ids, others, before = probe(model, old, tokenizer.mask_id, used)
        kept = {name: model.get_parameter(name).clone() for name in tables(model)}
        rows = give_row(model, tokenizer.mask_id, used, mask_init)
        turn(model, False, shift)
        model.config = replace(model.config, noise_ids=used if uniform and used < rows else 0)
        if "architecture" in facts:
            name, kind = CONVERTED.get(facts["architecture"], (facts["architecture"], content.get("model_type")))
            if shift and facts["architecture"] == "Qwen2ForCausalLM":
                name, kind = "DreamModel", "Dream"
            facts["architecture"] = name
            facts["hf_config"] = {**content, "architectures": [name], "model_type": kind, "vocab_size": rows}
        weights = dict(model.named_parameters())
        try:
            put_back, same, changed = differences(model, ids, others, before)
        except (RuntimeError, ValueError) as e:
            sys.exit(f"{source} cannot be converted: it takes no mask of who sees whom ({hub.first_line(e)})")
        row = "the mean of the others" if mask_init == "mean" else "as it was"
        place = ("dropped: a mask is filled by its own output", "kept: a mask is filled by the output before it")[shift]
        print(f"mask row        {tokenizer.mask_id} of {rows}, {row}")
        full = f"full: on a probe of {ids.shape[1]} tokens the logits change by up to {changed:.2f}"
        print(f"attention       {'causal, in blocks, too' if shift and algorithm == 'bd3lm' else full}")
        print(f"shift           {place}")
        print(f"causal again    logits differ by {put_back:.1e}, {same:.0%} of the next tokens are the same")
        if put_back > 1e-3 or changed < 1e-6:
            sys.exit(f"{source} cannot be converted: its attention does not follow the mask it is given")
        if lost := roles.changed_rows(model, kept, tokenizer.mask_id):
            sys.exit(f"{source} cannot be converted: the row of token {lost[0]} would be lost")
        try:
            ckpt.save(out, weights, model.config, tokenizer, where, algorithm, facts)
        except OSError as e:
            sys.exit(str(e))
    again = ckpt.load(out)
    put_back, same, _ = differences(again.model, ids, others, before)
    print(f"read back       causal again, logits differ by {put_back:.1e}, {same:.0%} of the next tokens are the same")
    print(f"wrote {out}: {again.model.num_params():,} parameters, decoded by {again.algorithm}")
    if put_back > 1e-3 or roles.changed_rows(again.model, kept, tokenizer.mask_id):
        sys.exit(f"{out} does not hold what was written")


def main(argv):
    source = argv[0] if argv and not argv[0].startswith("-") else ""
    s = configurator.fill(configurator.read(argv[bool(source) :]), Settings, quiet=True)
    if not source or not s.out:
        sys.exit("python convert_ar.py SOURCE --out=DIRECTORY, where SOURCE is a directory or a name on the hub")
    convert(source, s.out, s.algorithm, s.shift, s.mask_token, s.mask_init, s.pickle, s.overwrite)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
