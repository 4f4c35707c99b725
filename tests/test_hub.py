"""The hub as it is used: the real clients ask one of our own (hub_server.py), which may be in any kind of trouble.

Every recipe that names a model or a data set starts with a tiny one under that name, learns, saves and samples; and
whatever is the matter with the hub is one sentence, or a line and no harm.
"""

import functools
import hashlib
import json
import os
import re
import runpy
import shutil
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import datasets
import huggingface_hub
import lm_eval
import pytest
import test_families as tiny
import tokenizers as hf_tokenizers
import transformers
import zoo
from conftest import HOME, PORT
from hub_server import OTHER_TOKEN, quoted

import eval as evaluation
import sample
import train
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, corpus, harness, hub, log, records, tasks
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p.stem for p in (ROOT / "config").glob("*.py") if not p.stem.startswith("eval_"))
URL = f"http://127.0.0.1:{PORT}"
datasets.disable_progress_bars()


def said(do, *args, **keys):
    """The sentence with which it ends."""
    with pytest.raises(SystemExit) as e:
        do(*args, **keys)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code
    return e.value.code


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Token files go here, and what lies beside the scripts is not read; workers and plots would take most of the
    time."""
    for name in [name for name in sys.modules if name.startswith("data.")]:
        monkeypatch.delitem(sys.modules, name)  # others have scripts of their own under these names
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(log, "plot", lambda *_: None)
    for script in (ROOT / "data").glob("*/prepare.py"):
        home = tmp_path / "data" / script.parent.name
        home.mkdir(parents=True)
        (home / script.name).write_bytes(script.read_bytes())
    yield
    for name in [name for name in sys.modules if name.startswith("data.")]:
        del sys.modules[name]


@pytest.fixture
def impatient(monkeypatch):
    """Whoever waits, waits a thousandth of the time, and gives up sooner."""
    sleep = time.sleep
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))


# ------------------------------------------------------------------------------------------------------------------
# what lies on the hub


# name: the tiny model that stands in for it, most of them as in test_families
MODELS = {
    "answerdotai/ModernBERT-base": "modernbert",
    "answerdotai/ModernBERT-large": "modernbert",
    "sentence-transformers/all-MiniLM-L6-v2": "bert without a head",
    "openai-community/gpt2": "gpt2",
    "Qwen/Qwen3-0.6B": "qwen3 that chats",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": "qwen2 that chats",
    "GSAI-ML/LLaDA-8B-Base": "llada",
    "GSAI-ML/LLaDA-8B-Instruct": "llada",
    "Dream-org/Dream-v0-Base-7B": "dream",
    "nvidia/Nemotron-Labs-Diffusion-3B-Base": "nemotron",
    "inclusionAI/LLaDA2.1-mini": "llada2",
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNWANTED = {"modeling_own.py", "pytorch_model.bin", "model.gguf", "onnx/model.onnx"}
TEMPLATE = "{% for m in messages %}{{ m['content'] + (' <eos> ' if m['role'] == 'assistant' else ' ') }}{% endfor %}"
WORDS = [f"w{i} w{i % 7}" for i in range(160)]
ASKED = [{"instruction": w, "input": "", "output": "w7 w8 ```python w9 ``` w10"} for w in WORDS]
TALKS = [{"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": "w7 w8 w9"}]} for w in WORDS]
SUMS = [{"question": w, "answer": f"w3 #### {i}"} for i, w in enumerate(WORDS)]
SCENES = [
    {"ind": i, "activity_label": "w1", "ctx_a": w, "ctx_b": "w2", "endings": ["w3", "w4 w5", "w6", "w7"], "label": "1"}
    for i, w in enumerate(WORDS[:8])
]


def held_out(texts):
    """The texts, and behind them one that nanodlm.corpus keeps for validation."""

    def is_val(text):
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2000 == 0

    return [*texts, next(t for t in (f"{texts[0]} w{i}" for i in count()) if is_val(t))]


PAGES = [{"text": text} for text in held_out([" ".join(WORDS[i : i + 40]) for i in range(100)])]
STAGES = ("educational_instruct", "evol_instruct", "mceval_instruct", "package_instruct")
# name: {file: rows}
DATA = {
    "tatsu-lab/alpaca": {"data/train-00000-of-00001.parquet": ASKED},
    "allenai/tulu-3-sft-mixture": {f"data/train-0000{i}-of-00002.parquet": TALKS[i::2] for i in range(2)},
    "HuggingFaceTB/smoltalk": {f"data/all/{s}-00000-of-00001.parquet": TALKS for s in ("train", "test")},
    "openai/gsm8k": {f"main/{s}-00000-of-00001.parquet": SUMS for s in ("train", "test")},
    "Rowan/hellaswag": {f"data/{s}-00000-of-00001.parquet": SCENES for s in ("train", "validation")},
    "OpenCoder-LLM/opc-sft-stage2": {f"{stage}/train-00000-of-00001.parquet": ASKED for stage in STAGES},
    "HuggingFaceFW/fineweb-edu": {"sample/10BT/000_00000.parquet": PAGES},
    "Skylion007/openwebtext": {"plain_text/train-00000-of-00001.parquet": PAGES},
    "ptb-text-only/ptb_text_only": {"ptb_text_only.py": []},
    "EleutherAI/lambada_openai": {"data/lambada_test.jsonl": [{"text": w} for w in WORDS]},
}
# name: {configuration: a pattern of its files}, where the hub's own has several
CONFIGS = {
    "HuggingFaceTB/smoltalk": {"all": "data/all/{}-*"},
    "openai/gsm8k": {"main": "main/{}-*"},
    "OpenCoder-LLM/opc-sft-stage2": {stage: f"{stage}/{{}}-*" for stage in STAGES},
    "HuggingFaceFW/fineweb-edu": {"sample-10BT": "sample/10BT/*"},
}


def put_model(path, kind):
    """A tiny model, and beside it what its authors have on the hub and we do not want."""
    kind, *more = kind.split(" ", 1)
    if more == ["without a head"]:
        config = transformers.BertConfig(**tiny.BERT_SIZES)
        tiny.random_model(transformers.BertModel, config).save_pretrained(path)
        tiny.words(path)
    elif more == ["that chats"]:
        cls, config = tiny.CAUSAL[kind]()
        config.vocab_size = chatml(path)
        tiny.random_model(cls, config).save_pretrained(path)
    else:
        tiny.write(kind, path)
    if kind in ("llada", "dream", "nemotron", "llada2"):
        tiny.words(path, mask_token=None, chat_template=TEMPLATE)
    for other in UNWANTED:
        (path / other).parent.mkdir(exist_ok=True)
        (path / other).write_text("none of ours")


def chatml(path):
    """Write Qwen's tokenizer, but for its vocabulary: bytes, its three special tokens and few words."""
    core = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
    core.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = hf_tokenizers.decoders.ByteLevel()
    letters = hf_tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    keys = dict(vocab_size=320, special_tokens=special, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator(["user assistant", *WORDS], hf_tokenizers.trainers.BpeTrainer(**keys))
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0], eos_token=special[2])
    hf.chat_template = {"default": CHATML, "tool_use": "tools"}
    hf.save_pretrained(path)
    return len(hf)


def put_data(path, content, configs=None):
    """The files of a data set, and where it has several configurations, the page that says which are whose."""
    for name, rows in content.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(str(file))
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = [s for s in ("train", "test") if s == "train" or any(f"/{s}-" in file for file in content)]
    if configs:
        named = {c: [{"split": s, "path": pattern.format(s)} for s in splits] for c, pattern in configs.items()}
        page = [{"config_name": config, "data_files": files} for config, files in named.items()]
        (path / "README.md").write_text(f"---\nconfigs: {json.dumps(page)}\n---\n")


@pytest.fixture(scope="module")
def filled(the_hub):
    """The directory of our hub, with a tiny one of everything that the recipes and scripts name."""
    for name, kind in MODELS.items():
        put_model(the_hub.directory / "models" / name, kind)
    for name, content in DATA.items():
        put_data(the_hub.directory / "datasets" / name, content, CONFIGS.get(name))
    ptb = the_hub.directory / "datasets" / quoted("ptb-text-only/ptb_text_only", "refs/convert/parquet")
    put_data(ptb, {"penn_treebank/validation/0000.parquet": [{"sentence": w} for w in WORDS]})
    zoo.parameter_golf(the_hub.directory / "datasets/willdepueoai/parameter-golf/datasets")
    return the_hub.directory


# ------------------------------------------------------------------------------------------------------------------
# everything that names something on the hub, as it is started


@pytest.fixture
def gpt2(monkeypatch, filled):
    """In GPT-2's place its tiny tokenizer, since tiktoken's files are not on the hub."""
    spec = {"kind": "tiktoken", "name": "gpt2"}
    tok = replace(tokenizers.load({"kind": "hf"}, filled / "models/openai-community/gpt2"), spec=spec)
    monkeypatch.setattr(tokenizers, "tiktoken_tokenizer", lambda _: tok)
    return tok


def script(name, *argv):
    """Run data/<name>/prepare.py as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare.py", *map(str, argv)])
        runpy.run_path(str(ROOT / "data" / name / "prepare.py"), run_name="__main__")


ASKS_FOR_TEXT = re.compile(r"hub\.(rows|data_files)")


def from_the_hub(recipe):
    """Whether a recipe names a model or a data set on the hub."""
    values = {k: v for k, (v, _) in configurator.read([str(ROOT / "config" / f"{recipe}.py")]).items()}
    names = [name for name, _ in records.parse_mixture(values.get("dataset", ""))]
    scripts = [ROOT / "data" / name / "prepare.py" for name in names]
    starts = [values.get(key, "") for key in ("convert", "init_from")]
    if starts[0].startswith("checkpoints/"):  # of a package, by `make smollm`; test_docs.py takes their steps
        return False
    named = [s for s in starts if re.fullmatch(r"[\w.-]+/[\w.-]+", s) and not s.startswith(("out/", "checkpoints/"))]
    asks = [ASKS_FOR_TEXT.search(s.read_text()) or "local_or_hub" in s.read_text() for s in scripts if s.is_file()]
    return bool(named) or any(asks)


SMALL = ["--batch_size=2", "--gradient_accumulation_steps=1", "--epochs=0", "--max_iters=2", "--seq_len=40"]
SMALL += ["--eval_windows=2", "--eval_samples=1", "--device=cpu", "--dtype=float32", "--compile=false"]
SMALL += ["--sharding=ddp"]
FROM_THE_HUB = [recipe for recipe in RECIPES if from_the_hub(recipe)]


def learn(recipe, out):
    """What `python train.py config/RECIPE.py` does, two steps of it."""
    values = configurator.read([f"config/{recipe}.py"])
    name, more = values["dataset"][0], []
    if not records.holds_chat(name):
        script(name, f"--out={corpus.ROOT / 'data' / name}")
    if "convert" in values:
        more = [f"--init_from={out / 'converted'}"]
    elif "init_from" not in values:
        more = ["--n_layer=1", "--n_head=2", "--n_kv_head=0", "--n_embd=16"]
    elif values["init_from"][0].startswith("out/"):  # what another recipe has made
        learn(Path(values["init_from"][0]).name, out / "before")
        more = [f"--init_from={out / 'before/run'}", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    more += ["--seq_len=96"] if "qwen" in recipe else []
    more += ["--group=2", "--max_new_tokens=8", "--steps=4", "--answer_block=0"] if "_grpo_" in recipe else []
    if name.endswith(".jsonl"):  # what a script writes first
        (out / "chat.jsonl").write_text("".join(json.dumps({"prompt": w, "response": "w7 w8"}) + "\n" for w in WORDS))
        more += [f"--dataset={out / 'chat.jsonl'}"]
    train.main([f"config/{recipe}.py", *SMALL, *more, f"--out_dir={out / 'run'}"])
    return out / "run"


@pytest.mark.parametrize("recipe", FROM_THE_HUB)
def test_a_recipe_that_names_something_on_the_hub_starts_learns_saves_and_samples(
    server, filled, gpt2, tmp_path, capsys, recipe
):
    out = learn(recipe, tmp_path)
    assert ckpt.load_train_state(out / "last")["iter"] == 2
    capsys.readouterr()
    sample.main([f"--checkpoint={out}", "--prompt=w1 w2", "--max_new_tokens=8", "--device=cpu"])
    out = capsys.readouterr().out
    assert re.search(r"--- sample 1 -+\nw1 w2", out), out
    asked = {path.partition("/resolve/")[2].partition("/")[2] for _, path, _ in server.log}
    assert asked and not asked & UNWANTED
    if "qwen" in recipe:  # in a folder on the hub
        assert tokenizers.read_hf(tmp_path / "run/last").chat_template["tool_use"] == "tools"


CHAT = sorted(p.parent.name for p in (ROOT / "data").glob("*/prepare.py") if "local_or_hub" in p.read_text())
TEXT = sorted(p.parent.name for p in (ROOT / "data").glob("*/prepare.py") if ASKS_FOR_TEXT.search(p.read_text()))


@pytest.mark.parametrize("name", CHAT)
def test_a_script_makes_token_files_of_conversations_on_the_hub(server, filled, capsys, name):
    script(name, "--tokenizer=GSAI-ML/LLaDA-8B-Base", "--workers=1")
    meta = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "meta.json").read_text())
    assert meta["train_conversations"] + meta["val_conversations"] == len(WORDS) * (4 if name == "opc_sft" else 1)


@pytest.mark.parametrize("text", ["ptb", "lambada"])
def test_a_script_makes_windows_of_a_text_on_the_hub(server, filled, tmp_path, text):
    script("zeroshot", text, "--checkpoint=openai-community/gpt2", "--seq_len=20", f"--out={tmp_path}")
    meta = corpus.load_meta(tmp_path / text)
    assert meta["documents"] == len(WORDS)
    tok = corpus.load_tokenizer(tmp_path / text, meta)
    assert tok.decode(corpus.load_tokens(tmp_path / text, "val", meta)[0].tolist()).startswith("w0 w0 w1 w1 w2 w2")


def test_lm_eval_reads_gsm8k_and_hellaswag_from_the_hub(server, filled, tmp_path, monkeypatch):
    """A recipe of ours, but for its hundreds of tokens and masks, and lm-eval's other tasks, whose index takes long."""
    monkeypatch.setattr(corpus, "ROOT", ROOT)
    monkeypatch.setattr(harness, "Tasks", functools.partial(harness.Tasks, include_defaults=False))
    for task in ("gsm8k", "hellaswag"):
        shutil.copytree(Path(lm_eval.__file__).parent / "tasks" / task, tmp_path / "tasks" / task)
    small = [f"--include_path={tmp_path / 'tasks'}", f"--out={tmp_path / 'found.json'}", "--only=gsm8k,hellaswag"]
    small += ["--limit=2", "--device=cpu", "--dtype=float32"]
    small += ["--mc_samples=2", "--mc_batch=2", "--max_new_tokens=4", "--steps=4", "--block_size=4", "--num_fewshot=1"]
    evaluation.main(["config/eval_llada_base.py", *small])
    rows = json.loads((tmp_path / "found.json").read_text())
    found = {row["task"]: row["documents"] for row in rows}
    assert found == {"gsm8k": [2, len(SUMS)], "hellaswag": [2, len(SCENES)]}


# ------------------------------------------------------------------------------------------------------------------
# a hub in trouble


LOGIN = "`hf auth login`, or HF_TOKEN"
UNCACHED = f"it is not in the cache ({HOME})"
BROKE_OFF = "the connection to the hub broke off"
# situation: (what is the matter, what to do), of {it} on {page}
SITUATIONS = {
    "missing": ("it does not exist", f"check the name; what is private needs a token that may read it ({LOGIN})"),
    "private": ("it is private, or does not exist", f"check the name, or log in ({LOGIN})"),
    "another's": ("it does not exist", f"check the name; what is private needs a token that may read it ({LOGIN})"),
    "gated": ("it is gated", f"accept its terms on {{page}} and log in ({LOGIN})"),
    "gated, terms not accepted": ("it is gated", f"accept its terms on {{page}} and log in ({LOGIN})"),
    "bad token": ("the hub does not accept your token", f"log in again ({LOGIN})"),
    "no such revision": ("it has no such revision", "{page}/tree/main lists those it has"),
    "unwell": ("the hub answers 503", "try again later"),
    "down": (f"the hub ({URL}) cannot be reached", f"{UNCACHED}: run this once with a network"),
    "silent": (f"the hub ({URL}) cannot be reached", f"{UNCACHED}: run this once with a network"),
    "dying": (BROKE_OFF, "the same command goes on: what is whole is kept"),
    "dying of resets": (BROKE_OFF, "the same command goes on: what is whole is kept"),
    "not asked": ("HF_HUB_OFFLINE is set", f"{UNCACHED}: unset it once, to download it"),
}


def trouble(situation, server, monkeypatch, *names):
    """Bring the hub into this situation, for these repositories."""
    if situation == "missing":
        for name in names:
            shutil.rmtree(server.directory / name, ignore_errors=True)
    if situation in ("private", "another's"):
        server.private = {*names}
    if situation.startswith("gated"):
        server.gated = {*names}
    if situation in ("another's", "gated, terms not accepted", "bad token"):
        monkeypatch.setenv("HF_TOKEN", "hf_bad" if situation == "bad token" else OTHER_TOKEN)
    if situation == "unwell":
        server.status = 503
    if situation == "down":
        server.stop()
    if situation == "silent":
        server.silent = 10**6
    if situation.startswith("dying"):
        server.breaks = {f"{name.partition('/')[2]}/resolve": [10**6, 100, "resets" in situation] for name in names}
    if situation == "not asked":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


# what of the hub is asked for, and how
WAYS = {
    "model": lambda name: ckpt.find(name),
    "data set": lambda name: list(hub.rows(name)),
    "stream": lambda name: list(hub.rows(name, streaming=True)),
    "files": lambda name: list(hub.rows(name, files="data/*.parquet", streaming=True)),
    "lm-eval": lambda name: list(lm_eval_asks(name)),
}
BRING = "; or bring a copy, `hf download org/it --repo-type=dataset --local-dir=DIR/org/it`, and say --local_data=DIR"


def lm_eval_asks(name):
    with tasks.local_copies(""):
        return datasets.load_dataset(name.partition("@")[0], revision=name.partition("@")[2] or None, split="train")


def put_it(server, rows=40):
    """A model and a data set org/it."""
    path = server.directory / "models/org/it"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"text": "w" * 200}))
    (path / "model.safetensors").write_bytes(os.urandom(1000))
    rows = [{"number": i, "text": os.urandom(20).hex()} for i in range(rows)]
    shards = {f"data/train-0000{i}-of-00002.parquet": rows[i * len(rows) // 2 :][: len(rows) // 2] for i in range(2)}
    put_data(server.directory / "datasets/org/it", shards)
    return rows


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_whatever_is_the_matter_is_one_sentence_that_says_what_to_do(cold, monkeypatch, impatient, situation, way):
    put_it(cold)
    trouble(situation, cold, monkeypatch, "models/org/it", "datasets/org/it")
    name, kind = "org/it@v9" if situation == "no such revision" else "org/it", "model" if way == "model" else "data set"
    what, advice = SITUATIONS[situation]
    page = f"{URL}/{'' if kind == 'model' else 'datasets/'}org/it"
    sentence = f"{kind} {name}: {what}; {advice.format(page=page)}" + (BRING if way == "lm-eval" else "")
    assert said(WAYS[way], name) == sentence


@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_has_foreseen_is_a_sentence_all_the_same(cold, way):
    """Here a repository of other files."""
    for kind in ("models", "datasets"):
        put_data(cold.directory / kind / "org/other", {"notes.md": []})
    assert "org/other" in said(WAYS[way], "org/other")


def test_an_exception_without_a_word_is_named_by_its_type():
    assert hub.sentence(TimeoutError(), "model", "org/it") == "model org/it: the hub did not give it; TimeoutError"


SCRIPTS = {
    "alpaca": "tatsu-lab/alpaca",
    "fineweb_edu": "HuggingFaceFW/fineweb-edu",
    "fineweb_sp1024": "willdepueoai/parameter-golf",
    "gsm8k": "openai/gsm8k",
    "opc_sft": "OpenCoder-LLM/opc-sft-stage2",
    "openwebtext": "Skylion007/openwebtext",
    "smoltalk": "HuggingFaceTB/smoltalk",
    "tulu3": "allenai/tulu-3-sft-mixture",
    "zeroshot": "EleutherAI/lambada_openai",
}


@pytest.mark.parametrize("situation", ["private", "gated", "unwell", "down"])
@pytest.mark.parametrize("name", [*CHAT, *TEXT])
def test_no_script_ends_in_a_traceback(cold, filled, gpt2, tmp_path, monkeypatch, impatient, situation, name):
    trouble(situation, cold, monkeypatch, f"datasets/{SCRIPTS[name]}")
    words = [f"--out={tmp_path / 'out'}"]
    if name in CHAT:
        words = [f"--tokenizer={filled / 'models/GSAI-ML/LLaDA-8B-Base'}", "--workers=1"]
    if name == "zeroshot":
        words += ["lambada", f"--checkpoint={filled / 'models/openai-community/gpt2'}"]
    sentence = said(script, name, *words)
    what, advice = SITUATIONS[situation]
    assert sentence.startswith(f"data set {SCRIPTS[name]}: {what}; ")
    if name in CHAT:
        assert sentence.endswith(f"; or put the records into data/{name}/train.jsonl")
    if name == "zeroshot":
        assert sentence.endswith("; or pass a copy with --source=FILE_OR_DIRECTORY")
    if name == "fineweb_sp1024":
        assert sentence.endswith("; or pass copies of its files, as --files=FOLDER")


def test_a_file_that_a_data_set_lacks_is_named(cold):
    put_data(cold.directory / "datasets/org/it", {"data/a.jsonl": []})
    (found,) = hub.data_files("org/it", ["data/a.jsonl"])
    assert found.name == "a.jsonl"
    sentence = said(hub.data_files, "org/it", ["data/a.jsonl", "data/b.jsonl"])
    page = f"{URL}/datasets/org/it/tree/main"
    assert sentence == f"data set org/it: it has no file data/b.jsonl; {page} lists those it has"


def test_the_scripts_that_ask_the_hub_are_all_here():
    assert sorted(SCRIPTS) == sorted([*CHAT, *TEXT])


# ------------------------------------------------------------------------------------------------------------------
# a hub that is gone, or comes back


@pytest.mark.parametrize("situation", ["down", "unwell", "private", "not asked"])
@pytest.mark.parametrize("way", ["model", "data set", "stream", "lm-eval"])
def test_with_a_warm_cache_it_goes_on_and_says_so_once(cold, monkeypatch, capsys, situation, way):
    rows = put_it(cold)
    warm = "data set" if way == "stream" else way  # what is only ever streamed is nowhere on the disk
    before = WAYS[warm]("org/it")
    assert "cache" not in capsys.readouterr().out
    trouble(situation, cold, monkeypatch, "models/org/it", "datasets/org/it")
    start = time.time()
    assert WAYS[way]("org/it") == before and WAYS[way]("org/it") == before
    assert time.time() - start < 5
    kind = "model" if way == "model" else "data set"
    lines = [f"{kind} org/it: {SITUATIONS[situation][0]}; the copy in the cache is used"]
    assert capsys.readouterr().out.splitlines() == lines
    assert way == "model" or before == rows


def test_a_run_starts_with_a_hub_that_is_down_and_a_warm_cache(cold, filled, tmp_path, capsys):
    learn("llada_sft_small", tmp_path / "one")
    cold.stop()
    learn("llada_sft_small", tmp_path / "two")
    line = "model GSAI-ML/LLaDA-8B-Base: the hub ({}) cannot be reached; the copy in the cache is used"
    assert capsys.readouterr().out.count(line.format(URL)) == 1


def test_only_the_first_of_several_processes_says_so(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    hub.say("what only one should say")
    assert not capsys.readouterr().out


def shards(server, size=12 * 2**20):
    """A model of two shards, of 12 MB each, more than the client keeps in memory."""
    path = server.directory / "models/org/large"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    for i in (1, 2):
        (path / f"model-{i}.safetensors").write_bytes(os.urandom(size))
    return path


def test_a_hub_that_dies_in_the_middle_of_a_shard_and_comes_back_goes_on_in_the_middle(cold, capsys):
    path = shards(cold)
    cold.breaks = {"model-2.safetensors": [1, 11 * 2**20, False]}

    def die():
        while cold.breaks["model-2.safetensors"][0] or len(cold.asked("model-1.safetensors")) < 1:
            time.sleep(0.01)
        time.sleep(0.2)
        cold.stop()
        time.sleep(0.4)
        cold.start()

    death = threading.Thread(target=die)
    death.start()
    found = ckpt.find("org/large")
    death.join()
    assert all((found / p.name).read_bytes() == p.read_bytes() for p in path.iterdir())
    assert cold.asked("model-2.safetensors") == ["", f"bytes={10 * 2**20}-"]
    assert cold.asked("model-1.safetensors") == [""]


def test_a_connection_that_is_reset_is_tried_again_and_whole_shards_are_kept(cold, capsys, impatient):
    path = shards(cold)
    cold.breaks = {"model-2.safetensors": [2, 1000, True]}
    found = ckpt.find("org/large")
    assert all((found / p.name).read_bytes() == p.read_bytes() for p in path.iterdir())
    assert len(cold.asked("model-1.safetensors")) == 1 and len(cold.asked("model-2.safetensors")) == 3
    lines = [f"model org/large: {BROKE_OFF}; again in {pause} s" for pause in (5, 20)]
    assert capsys.readouterr().out.splitlines() == lines


def test_after_a_hub_that_died_for_good_the_same_command_fetches_only_what_is_missing(cold, impatient):
    path = shards(cold, 2000)
    cold.breaks = {"model-2.safetensors": [10**6, 1000, False]}
    assert "the same command goes on" in said(ckpt.find, "org/large")
    cold.reset()
    found = ckpt.find("org/large")
    assert all((found / p.name).read_bytes() == p.read_bytes() for p in path.iterdir())
    assert not cold.asked("model-1.safetensors") and cold.asked("model-2.safetensors") == [""]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("way", ["data set", "stream", "files"])
def test_every_row_comes_once_and_in_order_though_connections_break(cold, impatient, way, reset):
    rows = put_it(cold, 4000)
    cold.breaks = {"train-00001": [3, 30_000, reset]}
    assert WAYS[way]("org/it") == rows
    assert cold.breaks["train-00001"][0] == 0


def test_rows_may_begin_anywhere(cold):
    rows = put_it(cold)
    for streaming in (False, True):
        assert list(hub.rows("org/it", first=25, streaming=streaming)) == rows[25:]


def test_a_streamed_text_goes_on_where_the_hub_died(cold, gpt2, tmp_path, monkeypatch, impatient):
    """As if it had not."""
    texts = held_out([f"w{i} w{i % 50} w{i % 3}" for i in range(2400)])
    shards = {f"plain_text/train-0000{i}-of-00002.parquet": [{"text": t} for t in texts[i::2]] for i in range(2)}
    put_data(cold.directory / "datasets/Skylion007/openwebtext", shards)
    script("openwebtext", f"--out={tmp_path / 'whole'}")
    cold.breaks = {"train-00001": [10**6, 1000, False]}
    sentence = said(script, "openwebtext", f"--out={tmp_path / 'cut'}")
    assert sentence == f"data set Skylion007/openwebtext: {BROKE_OFF}; the same command goes on: what is whole is kept"
    assert json.loads((tmp_path / "cut/progress.json").read_text())["documents"] == 1000
    cold.reset()
    script("openwebtext", f"--out={tmp_path / 'cut'}")
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
