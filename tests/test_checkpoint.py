"""Checkpoints and tokenizers: what is saved comes back, what does not fit is named, no accident costs a checkpoint."""

import errno
import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import test_families as tiny
import torch
from test_families import child, damage, edit_json, edit_tensors, equal_parameters, put, refusal, status_of, stored

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers

TIKTOKEN_FILES = Path(__file__).resolve().parents[2] / "shared" / "data" / "tiktoken_cache"
CHAR = {"kind": "char", "chars": "\n abcé"}
SHAPE = dict(vocab_size=8, seq_len=16, n_layer=1, n_head=2, n_embd=8)


def network(seed=0, **switches):
    torch.manual_seed(seed)
    return Transformer(Config(**(SHAPE | switches)))


def save(path, model=None, spec=CHAR, tokenizer_dir=None, facts=None, **options):
    model = model or network()
    tokenizer = tokenizers.load(spec, tokenizer_dir)
    weights = dict(model.named_parameters())
    ckpt.save(path, weights, model.config, tokenizer, tokenizer_dir, "mdlm", facts or {"iter": 1}, **options)
    return model


def save_number(path, n):
    """A checkpoint in which everything is the number n."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(n)
    save(path, model, facts={"iter": n}, train_state={"iter": n, "weights": dict(model.state_dict())})


def number(path):
    """The number that a checkpoint holds, once it is sure that all of it holds the same."""
    checkpoint, state = ckpt.load(path), ckpt.load_train_state(path)
    values = {v for p in checkpoint.model.parameters() for v in p.unique().tolist()}
    values |= {v for p in state["weights"].values() for v in p.unique().tolist()}
    assert values == {checkpoint.facts["iter"]} == {state["iter"]}
    return state["iter"]


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# ---- the round trip --------------------------------------------------------------------------------------------------


SWITCHES = [{}, {"tied": True}, {"vocab_size": 64}, dict(n_layer=2, norm="layer", norm_bias=True, head_bias=True)]


@pytest.mark.parametrize("switches", SWITCHES)  # more ids than the tokenizer has are welcome
def test_what_is_saved_comes_back_exactly(tmp_path, switches):
    facts = {"iter": 7, "val_nelbo": 1.5, "train": {"seed": 1}}
    model = save(tmp_path / "last", network(seed=3, **switches), facts=facts)
    c = ckpt.load(tmp_path / "last")
    assert c.model.config == model.config and equal_parameters(c.model, model) and not c.model.training
    assert (c.algorithm, c.facts, c.path) == ("mdlm", facts, tmp_path / "last")
    assert c.tokenizer.encode("bé\na") == [3, 5, 0, 2] and c.tokenizer.decode([3, 5, 0, 2]) == "bé\na"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_saved_and_loaded_in_the_type_that_is_asked_for(tmp_path, dtype):
    model = save(tmp_path, dtype=dtype)
    assert {t.dtype for t in stored(tmp_path).values()} == {dtype}
    loaded = dict(ckpt.load(tmp_path).model.named_parameters())
    assert all(torch.equal(loaded[n], p.to(dtype).float()) for n, p in model.named_parameters())
    assert {p.dtype for p in ckpt.load(tmp_path, dtype=dtype).model.parameters()} == {dtype}


def test_a_train_state_comes_back_exactly(tmp_path):
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.randn(5, 2), "exp_avg_sq": torch.rand(5, 2).bfloat16()}
    group = {"lr": 0.1, "betas": (0.9, 0.95), "params": [0], "fused": None}
    optimizer = {"state": {0: moments}, "param_groups": [group]}
    save(tmp_path, train_state={"iter": 3, "optimizers": [optimizer], "ema": None})
    state = ckpt.load_train_state(tmp_path)
    (optimizer,) = state["optimizers"]
    assert (state["iter"], state["ema"], optimizer["param_groups"]) == (3, None, [group])
    found = optimizer["state"][0]
    assert all(torch.equal(v, found[k]) and v.dtype == found[k].dtype for k, v in moments.items())


def test_a_bpe_tokenizer_travels_with_the_checkpoint(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    tokenizers.train_bpe(["to be or not to be"] * 3, 270, data / "tokenizer.json")
    before = tokenizers.load({"kind": "bpe"}, data)
    ids = before.encode("not to be")
    save(tmp_path / "last", network(vocab_size=before.vocab_size), {"kind": "bpe"}, data)
    shutil.rmtree(data)
    there = Path(shutil.move(tmp_path / "last", tmp_path / "elsewhere"))
    after = ckpt.load(there).tokenizer
    assert after.encode("not to be") == ids and after.decode(ids) == "not to be"
    assert (after.vocab_size, after.eos_id, after.mask_id) == (before.vocab_size, before.eos_id, before.mask_id)
    for content in ("{}", None):
        (there / "tokenizer.json").write_text(content) if content else (there / "tokenizer.json").unlink()
        assert f"{there}/tokenizer.json" in refusal(ckpt.load, there)


def test_a_bpe_whose_ids_have_holes_ends_behind_the_last_of_them(tmp_path):
    tokenizers.train_bpe(["to be or not to be"] * 3, 270, tmp_path / "tokenizer.json")
    before, change = tokenizers.load({"kind": "bpe"}, tmp_path), {}
    edit_json(tmp_path, lambda core: change.update(core["model"]["vocab"]), name="tokenizer.json")
    last = max(change.values())
    far = put("model.vocab", change | {t: last + 7 for t, i in change.items() if i == last})
    edit_json(tmp_path, far, name="tokenizer.json")
    after = tokenizers.load({"kind": "bpe"}, tmp_path)
    assert (after.eos_id, after.mask_id, after.vocab_size) == (last + 8, last + 9, last + 10)
    assert after.eos_id == before.eos_id + 7 and after.decode([last + 7]) == before.decode([last]) != ""


# ---- find ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["run run/best", "best last last.old", "last last.old", "last.old", "best.old"])
def test_find_takes_the_directory_itself_then_best_then_last_then_what_a_killed_save_left(tmp_path, names):
    names = [tmp_path / "run" / name.removeprefix("run").strip("/") for name in names.split()]
    for name in names:
        save(name)
    (tmp_path / "run/best").mkdir(exist_ok=True)  # one without a config.json is passed over
    assert ckpt.find(tmp_path / "run") == names[0]
    if names[0].suffix == ".old":  # killed between the two renames: it is found under its own name, too
        assert ckpt.find(names[0].with_suffix("")) == names[0]


def test_find_looks_in_the_project_from_any_directory_and_names_what_is_nowhere(tmp_path, monkeypatch):
    save(tmp_path / "project" / "out" / "run" / "best")
    monkeypatch.setattr(ckpt, "ROOT", tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    assert ckpt.find("out/run") == tmp_path / "project" / "out" / "run" / "best"
    said = refusal(ckpt.load, tmp_path / "nothing")
    assert f"{tmp_path}/nothing" in said and "config.json" in said


@pytest.mark.parametrize("place", ["run", "run/best", "run/last.old", "models--org--run/snapshots/0123abc", "a/../run"])
def test_a_checkpoint_is_called_as_its_user_calls_it(place, tmp_path, monkeypatch):
    """Not by what its directory is called within a run or a cache; and from within it, it has a name, too."""
    (tmp_path / "a").mkdir()
    save(tmp_path / place)
    monkeypatch.chdir(tmp_path / place)
    assert ckpt.load(tmp_path / place).name == ckpt.load(".").name == "run"


# ---- strictness ------------------------------------------------------------------------------------------------------

EXTRA = "".join(f"x{i} is not part of this architecture; " for i in range(4))
TENSORS = [
    (lambda t: t.pop("blocks.0.attn.q.weight"), "blocks.0.attn.q.weight is missing"),
    (lambda t: t.update({"norm.weight": torch.ones(1)}), "norm.weight has shape (1,), config.json says (8,)"),
    (lambda t: t.update({f"x{i}": torch.ones(1) for i in range(6)}), f"{EXTRA}and 2 more"),
]
CONFIGS = [
    (lambda c: c["model"].update(n_experts=8), "unknown model settings n_experts"),
    (lambda c: c["model"].update(n_kv_head=3), "n_kv_head=3"),
    (lambda c: c["model"].update(vocab_size=7), "vocab_size=7 is below the tokenizer's 8"),
    (lambda c: c["tokenizer"].update(kind="wordpiece"), "'wordpiece'"),
    *((lambda c, key=key: c.pop(key), key) for key in ("model", "tokenizer", "algorithm")),
]
UNFIT = [(edit_tensors, *case) for case in TENSORS] + [(edit_json, *case) for case in CONFIGS]


@pytest.mark.parametrize("edit, change, says", UNFIT)
def test_what_does_not_fit_is_named(tmp_path, edit, change, says):
    save(tmp_path)
    edit(tmp_path, change)
    said = refusal(ckpt.load, tmp_path)
    assert says in said and str(tmp_path) in said


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"model": 5}', '{"model": {}, "tokenizer": "char"}'])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert f"{tmp_path}/config.json" in refusal(ckpt.load, tmp_path)


@pytest.mark.parametrize("how", tiny.DAMAGES)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, how):
    save_number(tmp_path, 1)
    damage(tmp_path / "train_state.pt", how)
    said = refusal(ckpt.load_train_state, tmp_path)
    assert f"{tmp_path}/train_state.pt is {'missing' if how == 'missing' else 'corrupted'}" in said
    assert f"--init_from={tmp_path}" in said
    ckpt.load(tmp_path)  # the weights are still good
    damage(tmp_path / "model.safetensors", how)
    assert f"{tmp_path}/model.safetensors cannot be read" in refusal(ckpt.load, tmp_path)


def test_a_malicious_train_state_runs_no_code(tmp_path):
    save_number(tmp_path / "last", 1)
    torch.save({"iter": tiny.Malicious(tmp_path / "proof")}, tmp_path / "last/train_state.pt")
    torch.load(tmp_path / "last/train_state.pt", weights_only=False)
    (tmp_path / "proof").rmdir()  # the attack is a real one: plain unpickling ran it
    assert "train_state.pt" in refusal(ckpt.load_train_state, tmp_path / "last")
    assert not (tmp_path / "proof").exists()


# ---- accidents -------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a child process in the middle needs os.fork")


@needs_fork
def test_kill_9_at_random_moments_leaves_a_whole_checkpoint(tmp_path):
    last = tmp_path / "run" / "last"
    save_number(last, 0)
    draw, seen = random.Random(0), [0]

    def save_for_ever():
        for n in range(seen[-1] + 1, 10**6):
            save_number(last, n)

    for _ in range(6):
        pid = child(save_for_ever)
        time.sleep(draw.uniform(0.03, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        assert number(last) == number(tmp_path / "run")
        seen.append(number(last))
    assert seen == sorted(seen) and seen[-1] > 0  # never back, and it did save
    save_number(last, 10**6)
    assert number(last) == 10**6 and [p.name for p in last.parent.iterdir()] == ["last"]


ACTS = [(Path, act) for act in ("mkdir", "write_bytes", "write_text")]  # that save() is made of
ACTS += [(torch, "save"), (os, "replace"), (shutil, "rmtree")]


@pytest.mark.parametrize("name", ["last", "last.old", "last.tmp"])
@pytest.mark.parametrize("leads_to", ["a directory", "nothing", "a file"])
def test_links_are_replaced_and_what_they_lead_to_is_left(tmp_path, name, leads_to):
    """As somebody puts one where a disk is too small."""
    elsewhere = tmp_path / "elsewhere"
    if leads_to == "a directory":
        save_number(elsewhere, 0)
    elif leads_to == "a file":
        elsewhere.write_text("mine")
    before = contents(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(elsewhere)
    for n in (1, 2, 3):
        save_number(tmp_path / "run/last", n)
        assert number(tmp_path / "run/last") == n
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name != name] in ([], ["last"])
    shutil.rmtree(tmp_path / "run")
    assert contents(tmp_path) == before


def kill_myself_at(step):
    """Make this process kill itself just before its step-th act on the disk."""
    count = [0]

    def counted(act):
        def wrapper(*args, **kwargs):
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return act(*args, **kwargs)

        return wrapper

    for owner, name in ACTS:
        setattr(owner, name, counted(getattr(owner, name)))


@needs_fork
@pytest.mark.parametrize("before", ["a whole one", "the wreck of the kill before", "one that was moved aside"])
def test_kill_9_between_any_two_steps_leaves_a_whole_checkpoint(tmp_path, before):
    last = tmp_path / "last"
    for step in range(100):
        if step == 0 or not before.startswith("the wreck"):
            shutil.rmtree(tmp_path)
            save_number(last, 0)
            (tmp_path / "last.tmp").mkdir(exist_ok=True)
            (tmp_path / "last.tmp/half").write_text("left behind")
        if before.endswith("aside"):
            os.replace(last, tmp_path / "last.old")  # as a kill between the renames does
        n = number(last)

        def work(step=step, n=n):
            kill_myself_at(step)
            save_number(last, n + 1)

        status = status_of(child(work))
        assert status in (0, -signal.SIGKILL)
        assert number(last) in ((n, n + 1) if status else (n + 1,)), f"before step {step}"
        if status == 0:
            assert step > 5 and [p.name for p in tmp_path.iterdir()] == ["last"] and not (last / "half").exists()
            return
    raise AssertionError("a save of 100 steps")


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("owner, act", ACTS[:4], ids=[name for _, name in ACTS[:4]])
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, owner, act):
    save_number(tmp_path / "last", 1)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, act, full)
        for name in ("last", "first"):  # of which nothing is left
            with pytest.raises(OSError, match=f"could not save {tmp_path}/{name}.*No space left"):
                save_number(tmp_path / name, 2)
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["last"]
    assert number(tmp_path / "last") == 1


@needs_fork
@pytest.mark.parametrize("too_large", ["model.safetensors", "train_state.pt", "a released model.safetensors"])
def test_a_real_write_error_leaves_the_checkpoint_before_it(tmp_path, too_large):
    resource = pytest.importorskip("resource", reason="limiting the size of files needs Unix")
    last, said = tmp_path / "run/last", tmp_path / "said"
    if "released" in too_large:
        tiny.write("llama", tmp_path / "llama")
        again = functools.partial(tiny.save, ckpt.load(tmp_path / "llama"), last)
    else:
        again = functools.partial(save_number, last, 1)
    again()
    before = contents(tmp_path / "run")
    limit = (last / "model.safetensors").stat().st_size + (100 if too_large == "train_state.pt" else -100)
    assert limit + 100 < (last / too_large.split()[-1]).stat().st_size or too_large != "train_state.pt"

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            again()
        except OSError as e:
            said.write_text(str(e))

    assert status_of(child(work)) == 0
    assert said.read_text().startswith(f"could not save {last}")
    assert contents(tmp_path / "run") == before
    ckpt.load(last)


# ---- tokenizers ------------------------------------------------------------------------------------------------------

TEXTS = ["", " ", "\n\t\r\0", "Hello, World!", "  leading", "\ufb01 \u00e9 e\u0301", "Ωμέγα 漢字 עברית"]
TEXTS += ["\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\ufeff\u200b\uffff\U0010ffff"]
TEXTS += ["<|endoftext|> [MASK] <unk>", "a" * 300, "Ġ Ċ ĉ"]
LAYOUTS = {"char": (8, 6, 7), "bpe": (282, 280, 281), "tiktoken": (50304, 50256, 50257)}  # all ids, end-of-text, mask


def random_texts(count, seed=0):
    draw = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return ["".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_text_comes_back_from_ids_below_end_of_text_and_mask_which_decode_to_nothing(tmp_path, monkeypatch, kind):
    if kind == "tiktoken":
        pytest.importorskip("tiktoken", reason="GPT-2's tokenizer needs tiktoken")
        if not TIKTOKEN_FILES.is_dir():
            pytest.skip("GPT-2's tokenizer files are not on this machine")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    tokenizers.train_bpe(["to be or not to be, that is the question"] * 5, 280, tmp_path / "tokenizer.json")
    t = tokenizers.load(CHAR if kind == "char" else {"kind": kind, "name": "gpt2"}, tmp_path)
    assert (t.vocab_size, t.eos_id, t.mask_id) == LAYOUTS[kind]
    for text in ["", CHAR["chars"], "é\n\na b"] if kind == "char" else TEXTS + random_texts(200):
        ids = t.encode(text)
        assert t.decode(ids) == text and max(ids, default=0) < t.eos_id  # also where it spells <|endoftext|>
        assert t.decode([t.mask_id, *ids[:1], t.eos_id, *ids[1:], t.vocab_size - 1]) == text
    if kind != "char":
        assert len(t.encode("to be or not to be")) < 12  # what is frequent is merged


def test_what_no_tokenizer_takes_is_named():
    with pytest.raises(ValueError, match="'z'"):
        tokenizers.load(CHAR).encode("abcz")
    with pytest.raises(ValueError, match="'words'.*char, bpe, tiktoken and hf"):
        tokenizers.load({"kind": "words"})
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    with pytest.raises(ValueError, match="'cl100k_base'"):
        tokenizers.load({"kind": "tiktoken", "name": "cl100k_base"})
