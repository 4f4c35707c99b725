"""What the tests of the harness and of its tasks share: tiny checkpoints, tasks as YAML, and eval.py as it is
started."""

import json
from pathlib import Path

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance

import ar
import eval as evaluation
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import fast_bd3lm, fast_mdlm, harness, tasks
from nanodlm import tokenizer as tokenizers

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
TASKS = Path(lm_eval.tasks.__file__).parent
TEXT = (ROOT / "LICENSE").read_text() + (ROOT / "README.md").read_text(encoding="utf-8")[:3000]
ALGORITHMS = {"mdlm": fast_mdlm, "bd3lm": fast_bd3lm, "ar": ar}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A directory with random checkpoints mdlm, bd3lm and ar, with opinions, and their byte-level BPE."""
    path = tmp_path_factory.mktemp("checkpoints")
    tokenizers.train_bpe([TEXT], 300, path / "tokenizer.json")
    tok = tokenizers.load({"kind": "bpe"}, path)
    for i, name in enumerate(ALGORITHMS):
        save(path / name, tok, path, name, seed=i)
    return path


def save(path, tok, files, algorithm="mdlm", seed=0):
    torch.manual_seed(seed)
    own = dict(causal=algorithm == "ar", block_size=8 if algorithm == "bd3lm" else 0)
    net = Transformer(Config(vocab_size=tok.vocab_size, seq_len=96, n_layer=2, n_head=2, n_embd=32, **own))
    weights = {n: torch.randn_like(p) * 0.35 if p.dim() == 2 else p for n, p in net.named_parameters()}
    ckpt.save(path, weights, net.config, tok, files, algorithm, {"seq_len": 96})


def asked(path, options=None, likelihood=None, sampling=None, batch_size=4, **keys):
    """A Harness on the checkpoint at `path`, set up for a task."""
    checkpoint = path if isinstance(path, ckpt.Checkpoint) else ckpt.load(path)
    algorithm = ALGORITHMS[checkpoint.algorithm]
    model = harness.Harness(checkpoint, algorithm, harness.Answers(checkpoint, algorithm, batch_size, **keys))
    greedy = dict(max_new_tokens=16, temperature=0.0)
    likelihood = likelihood or algorithm.LikelihoodOptions()
    model.use(options or tasks.Options(), likelihood, sampling or (lambda _: algorithm.SampleOptions(**greedy)))
    return model


def request(*args):
    return Instance("x", {}, args, 0)


FAMILIES = {
    "gpt2": lambda context: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=400, n_positions=context, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            initializer_range=0.4,
        )
    ),
    "llama": lambda context: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=400, max_position_embeddings=context, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0, initializer_range=0.4,
        )
    ),
}  # fmt: skip


def write_family(path, family, context=48, template=None):
    """A random network of a released family with a byte-level BPE, as transformers writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe, end = Tokenizer(models.BPE()), "<|endoftext|>"
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    keys = dict(special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, **keys))
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end)
    hf.chat_template = template
    hf.save_pretrained(path)
    torch.manual_seed(0)
    FAMILIES[family](context).save_pretrained(path)
    return path


TOYS = {
    "mc": """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: a
""",
    "gen": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
generation_kwargs: {until: ["e", "qz"], max_gen_toks: 12}
metric_list:
  - metric: exact_match
""",
    "roll": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "ll": """output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: "{{' ' + c[0]}}"
metric_list:
  - metric: acc
""",
    "drawn": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
repeats: 2
generation_kwargs: {until: [], max_gen_toks: 6, do_sample: true, temperature: 0.8, top_p: 0.95}
metric_list:
  - metric: exact_match
""",
}
WORDS = TEXT.split()
DOCS = [
    {"q": " ".join(WORDS[7 * i : 7 * i + 2 + 5 * i % 11]), "c": [" ".join(WORDS[100 + 9 * i + j : 102 + 9 * i + 2 * j])
     for j in range(3)], "a": i % 3} for i in range(6)
]  # fmt: skip
DOCS[5]["q"] = " ".join(WORDS[:60])  # longer than the context


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """A directory with tasks of all four kinds, as lm-eval's YAML, over six documents."""
    path = tmp_path_factory.mktemp("toys")
    (path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCS))
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}/docs.jsonl}}}}\ntest_split: test\n"
    for name, text in TOYS.items():
        (path / f"{name}.yaml").write_text(f"task: toy_{name}\n{where}{text}metadata: {{version: 1.5}}\n")
    two = [{**DOCS[0], "a": a} for a in (0, 1)]  # of which one is answered right at most
    (path / "two.jsonl").write_text("".join(json.dumps(d) + "\n" for d in two))
    text = f"task: toy_two\n{where.replace('docs.jsonl', 'two.jsonl')}{TOYS['mc']}"
    (path / "two.yaml").write_text(text)
    (path / "all.yaml").write_text("group: toys\ntask: [toy_mc, toy_two]\n")
    (path / "mixed.yaml").write_text("group: toys_mixed\ntask: [toy_mc, toy_gen]\n")
    return path


@pytest.fixture
def run(made, toys, tmp_path, monkeypatch):
    """eval.py from its command line: the rows it writes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)  # it asks pip, for seconds
    paths = [toys, TASKS / "gsm8k", TASKS / "humaneval"]
    manager = harness.Tasks(include_path=[str(p) for p in paths], include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)

    def run(tasks, *more, checkpoint="mdlm", out="results.json"):
        where = ",".join(str(made / c) if c in ALGORITHMS else str(c) for c in checkpoint.split(","))
        words = [f"--checkpoint={where}", f"--tasks={tasks}", "--device=cpu", f"--out={tmp_path / out}", *more]
        evaluation.main([w for w in words if w != "--tasks="])
        return json.loads((tmp_path / out).read_text())

    return run


def answered(rows):
    """{(task, document, filter): its samples}."""
    return {(s["task"], s["doc_id"], s["filter"]): s for r in rows for s in r["samples"]}
