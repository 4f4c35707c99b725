"""Make a diffusion language model of a masked language model: BERT, RoBERTa, ModernBERT, and others of their kind.

    python convert_bert.py answerdotai/ModernBERT-large --out=checkpoints/modernbert-large
    python convert_bert.py sentence-transformers/all-MiniLM-L6-v2 --out=checkpoints/minilm
    torchrun train.py config/modernbert_chat.py

Why a BERT is one step of a diffusion model. BERT hides 15 % of a text (ModernBERT 30 %; one in five of these tokens is
shown as itself or as another, not as a mask) and learns to say what was there, from both sides:

    loss_BERT = E over masks of a rate fixed at 0.15 [ - sum over hidden i of log p(x_i | x_t) ]

Masked diffusion (mdlm.py) is that sentence with one word changed: the rate is drawn from all of [0, 1], and the sum is
weighted by one over it,

    NELBO     = E over t in [0, 1], masks of rate t   [ - 1/t sum over hidden i of log p(x_i | x_t) ]  >=  - log p(x).

But for those shown, at t = 0.15 the two ask the same, so BERT is the network of one step of the reverse process, the
last one. What it has never seen is a text that is mostly hidden, and that is what the training afterwards is for.
Nothing in the network changes: attention is bidirectional already, the mask token has its row, the head predicts tokens
at the masks' own places (no shift), and no time enters, because the number of masks says what t is.

What is left to settle, and what this file does:

1 the mask token    the tokenizer's own, or the model is no masked language model
2 end-of-text       what ends an answer: the separator, which has ended every text the encoder has read (BERT and
                    ModernBERT have no end-of-text of their own)
3 a chat template   plain text, "User: …", "Assistant: …", where the tokenizer brings none
4 the output head   kept; where only the encoder was released (sentence embedders), BERT's head is built on its
                    embeddings: a fresh dense layer and norm, and the embedding matrix, tied, as the output
5 the checkpoint    in the hub's layout, so that transformers reads it, too; what is ours to remember (how to decode it)
                    stands in config.json under "nanodlm"
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from model import Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, console, roles
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Place, Seed
from nanodlm.families import FAMILIES
from nanodlm.files import check_directory
from nanodlm.weights import empty, header, load_family, quantized, weight_files
from nanodlm.wrapped import is_causal, load_wrapped

# Encoders without a head, or with more than the head of a masked language model, and what they become.
HEADS = {
    "BertModel": "BertForMaskedLM",
    "BertForPreTraining": "BertForMaskedLM",
    "RobertaModel": "RobertaForMaskedLM",
    "ModernBertModel": "ModernBertForMaskedLM",
}
PROBE = "A masked language model fills in what is hidden, wherever it is."


@dataclass
class Settings:
    out: Place = ""  # where the converted checkpoint goes
    pickle: bool = False  # also read weights from pytorch_model.bin; no code in it is run
    overwrite: bool = False  # replace what is at out
    seed: Seed = 1  # of a head that has to be built


def load_encoder(path, content, seed, pickle):
    """The network of an encoder that was released without a head: its own parameters strictly from the files, and the
    head from `seed`."""
    family = FAMILIES[content["architectures"][0]]
    config, files = ckpt.family_config(path, content, pickle, {})
    torch.manual_seed(seed)
    model = Transformer(config)
    load_family(model, family, files, "cpu", torch.float32, but=["head_"])
    return model


def headless(path, pickle):
    """Whether the files lack the head that the name of the architecture promises."""
    names = [n for file in weight_files(path, pickle) for n in header(file)[0]]
    return not any(n.startswith(("cls.predictions.", "lm_head.", "head.", "decoder.")) for n in names)


def convert(source, out, pickle=False, overwrite=False, seed=1):
    """Write the diffusion checkpoint `out` of the masked language model `source`, a directory or a name on the hub."""
    check_directory(out, "out")
    if Path(out).exists() and not overwrite:
        sys.exit(f"{out} exists already; use another --out, or --overwrite=true")
    path = ckpt.find(source, pickle)
    content = ckpt.read_json(path / "config.json")
    name = ckpt.architecture(content, path)
    if not name or "model" in content:
        sys.exit(f"{path} is no checkpoint of an encoder in the hub's layout")
    if is_causal(name):
        sys.exit(f"{source} is a {name}, an autoregressive model; use convert_ar.py")
    quantized(path, content, whole=True)
    built = name in HEADS and headless(path, pickle)
    content["architectures"] = [HEADS.get(name, name)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            content = roles.settle(path, Path(folder), content)
        except ValueError as e:
            sys.exit(str(e))
        tokenizer = tokenizers.load({"kind": "hf"}, Path(folder))
        name = content["architectures"][0]
        if built:
            model = load_encoder(path, content, seed, pickle)
        elif name in FAMILIES:
            family = FAMILIES[name]
            config, files = ckpt.family_config(path, content, pickle, {})
            with empty():
                model = Transformer(config)
            load_family(model, family, files, "cpu", torch.float32)
        else:
            model, _ = load_wrapped(path, content, "cpu", torch.float32, pickle)
        facts = {"architecture": name, "hf_config": content, "converted_from": str(source), "preset": "mdlm"}
        try:
            ckpt.save(out, dict(model.named_parameters()), model.config, tokenizer, folder, "mdlm", facts)
        except OSError as e:
            sys.exit(str(e))
    print(f"output head     {'built anew on the tied embeddings: it has to learn' if built else 'kept'}")
    check(model.eval(), out, tokenizer)


@torch.no_grad()
def check(model, out, tokenizer):
    """Read the checkpoint back and compare; show what the encoder makes of a sentence with a word hidden."""
    again = ckpt.load(out)
    before, behind = tokenizer.frame
    ids = torch.tensor([[*before, *tokenizer.encode(PROBE), *behind]])
    difference = (model(ids) - again.model(ids)).abs().max().item()
    at = len(before) + len(tokenizer.encode(PROBE)) // 2
    hidden = ids.clone()
    hidden[0, at] = tokenizer.mask_id
    guess, truth = model(hidden)[0, at].argmax().item(), ids[0, at].item()
    print(f"read back       logits differ by {difference:.1e}")
    print(
        f"one step        with {tokenizer.decode([truth])!r} hidden in the probe it says {tokenizer.decode([guess])!r}"
    )
    print(f"wrote {out}: {again.model.num_params():,} parameters, decoded by {again.algorithm}")
    if difference:
        sys.exit(f"{out} does not hold what was written")


def main(argv):
    source = argv[0] if argv and not argv[0].startswith("-") else ""
    s = configurator.fill(configurator.read(argv[bool(source) :]), Settings, quiet=True)
    if not source or not s.out:
        sys.exit("python convert_bert.py SOURCE --out=DIRECTORY, where SOURCE is a directory or a name on the hub")
    convert(source, s.out, s.pickle, s.overwrite, s.seed)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
