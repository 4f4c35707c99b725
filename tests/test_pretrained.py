"""Checkpoints and tokenizers: what is saved comes back, what does not fit is named, no accident costs a checkpoint."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken_cache"
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


def refusal(call, *args):
    """The sentence with which the call exits."""
    with pytest.raises(SystemExit) as error:
        call(*args)
    assert isinstance(error.value.code, str)  # printed to stderr, exit status 1
    return error.value.code


def edit_config(path, change):
    content = json.loads((path / "config.json").read_text())
    change(content)
    (path / "config.json").write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, path / "model.safetensors")


# ---- the round trip --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches", [dict(), dict(tied=True), dict(n_layer=2, norm="layer", norm_bias=True, head_bias=True)]
)
def test_a_saved_network_comes_back_exactly(tmp_path, switches):
    model = save(tmp_path / "last", network(seed=3, **switches))
    torch.manual_seed(9)
    loaded = ckpt.load(tmp_path / "last").model
    assert loaded.config == model.config and not loaded.training
    theirs = dict(loaded.named_parameters())
    assert theirs.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, theirs[n]) and p.dtype == theirs[n].dtype for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_checkpoint_holds_the_rounded_weights(tmp_path, dtype):
    model = save(tmp_path / "last", dtype=dtype)
    stored = safetensors.torch.load_file(tmp_path / "last" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    loaded = dict(ckpt.load(tmp_path / "last").model.named_parameters())
    assert all(torch.equal(loaded[n], p.to(dtype).float()) for n, p in model.named_parameters())


def test_load_converts_to_the_asked_for_dtype(tmp_path):
    save(tmp_path / "last")
    loaded = ckpt.load(tmp_path / "last", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_algorithm_and_facts_come_back(tmp_path):
    save(tmp_path / "last", facts={"iter": 7, "val_nelbo": 1.5, "train": {"seed": 1}})
    checkpoint = ckpt.load(tmp_path / "last")
    assert checkpoint.algorithm == "mdlm" and checkpoint.path == tmp_path / "last"
    assert checkpoint.facts == {"iter": 7, "val_nelbo": 1.5, "train": {"seed": 1}}


def test_a_train_state_with_an_optimiser_comes_back_exactly(tmp_path):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    save(tmp_path / "last", model, train_state={"iter": 3, "optimizers": [optimizer.state_dict()], "ema": None})
    state = ckpt.load_train_state(tmp_path / "last")
    assert state["iter"] == 3 and state["ema"] is None
    for index, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, state["optimizers"][0]["state"][index][k]) for k, v in entry.items())


def test_a_char_tokenizer_travels_with_the_checkpoint(tmp_path):
    save(tmp_path / "last")
    tokenizer = ckpt.load(tmp_path / "last").tokenizer
    assert tokenizer.encode("bé\na") == [3, 5, 0, 2] and tokenizer.decode([3, 5, 0, 2]) == "bé\na"


def test_a_bpe_tokenizer_travels_with_the_checkpoint(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    tokenizers.train_bpe(["to be or not to be"] * 3, 270, data / "tokenizer.json")
    before = tokenizers.load({"kind": "bpe"}, data)
    ids = before.encode("not to be")
    save(tmp_path / "last", network(vocab_size=before.vocab_size), {"kind": "bpe"}, data)
    shutil.rmtree(data)
    shutil.move(tmp_path / "last", tmp_path / "elsewhere")
    after = ckpt.load(tmp_path / "elsewhere").tokenizer
    assert after.encode("not to be") == ids and after.decode(ids) == "not to be"
    assert (after.vocab_size, after.eos_id, after.mask_id) == (before.vocab_size, before.eos_id, before.mask_id)


# ---- find ------------------------------------------------------------------------------------------------------------


def test_find_takes_the_directory_itself(tmp_path):
    save(tmp_path / "run")
    save(tmp_path / "run" / "best")
    assert ckpt.find(tmp_path / "run") == tmp_path / "run"


@pytest.mark.parametrize(
    "names", [["best", "last", "last.old"], ["last", "last.old"], ["last.old"], ["best.old"]], ids=str
)
def test_find_takes_best_before_last_before_what_a_killed_save_left(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    assert ckpt.find(tmp_path) == tmp_path / names[0]


def test_find_ignores_directories_without_a_config(tmp_path):
    (tmp_path / "best").mkdir()
    save(tmp_path / "last")
    assert ckpt.find(tmp_path) == tmp_path / "last"


def test_find_looks_in_the_project_from_any_directory(tmp_path, monkeypatch):
    save(tmp_path / "project" / "out" / "run" / "best")
    monkeypatch.setattr(ckpt, "ROOT", tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ckpt.find("out/run") == tmp_path / "project" / "out" / "run" / "best"


def test_where_there_is_no_checkpoint_the_path_is_named(tmp_path):
    said = refusal(ckpt.load, tmp_path / "nothing")
    assert str(tmp_path / "nothing") in said and "config.json" in said


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_that_was_moved_aside_is_found_under_its_own_name(tmp_path, name):
    save_number(tmp_path / name, 1)
    os.replace(tmp_path / name, tmp_path / f"{name}.old")  # killed between the two renames
    assert number(tmp_path / name) == 1  # as --init_from=resume asks for it


# ---- strictness ------------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(tmp_path):
    save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("blocks.0.attn.q.weight"))
    assert "blocks.0.attn.q.weight is missing" in refusal(ckpt.load, tmp_path)


def test_an_extra_tensor_is_named(tmp_path):
    save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update(extra=torch.zeros(2)))
    assert "extra is not part of this architecture" in refusal(ckpt.load, tmp_path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"norm.weight": torch.ones(1)}))  # would broadcast
    said = refusal(ckpt.load, tmp_path)
    assert "norm.weight" in said and "(1,)" in said and "(8,)" in said


def test_of_many_wrong_tensors_four_are_named_and_the_rest_counted(tmp_path):
    save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({f"extra{i}": torch.zeros(1) for i in range(6)}))
    said = refusal(ckpt.load, tmp_path)
    assert said.count("is not part of this architecture") == 4 and "and 2 more" in said


def test_an_unknown_model_setting_is_named(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, lambda content: content["model"].update(n_experts=8))
    assert "unknown model settings n_experts" in refusal(ckpt.load, tmp_path)


@pytest.mark.parametrize("key", ["model", "tokenizer", "algorithm"])
def test_a_missing_part_of_the_config_is_named(tmp_path, key):
    save(tmp_path)
    edit_config(tmp_path, lambda content: content.pop(key))
    said = refusal(ckpt.load, tmp_path)
    assert key in said and "config.json" in said


def test_an_impossible_model_setting_is_named(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, lambda content: content["model"].update(n_kv_head=3))
    said = refusal(ckpt.load, tmp_path)
    assert "n_kv_head=3" in said and "config.json" in said


def test_an_unknown_tokenizer_kind_is_named(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, lambda content: content["tokenizer"].update(kind="wordpiece"))
    assert "'wordpiece'" in refusal(ckpt.load, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"model": 5}', '{"model": {}, "tokenizer": "char"}'])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert str(tmp_path / "config.json") in refusal(ckpt.load, tmp_path)


def test_a_network_with_fewer_ids_than_its_tokenizer_is_refused(tmp_path):
    save(tmp_path, network(vocab_size=7))  # CHAR has 6 characters, end-of-text and the mask
    said = refusal(ckpt.load, tmp_path)
    assert "7" in said and "8" in said and "tokenizer" in said


def test_a_network_with_more_ids_than_its_tokenizer_is_welcome(tmp_path):
    save(tmp_path, network(vocab_size=64))
    assert ckpt.load(tmp_path).model.config.vocab_size == 64


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "missing"])
def test_damaged_weights_are_named(tmp_path, damage):
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-100], "empty": b"", "garbage": b"\xff" * len(content)}[damage])
    assert str(file) in refusal(ckpt.load, tmp_path)


@pytest.mark.parametrize("damage", ["garbage", "missing"])
def test_a_damaged_bpe_tokenizer_is_named(tmp_path, damage):
    data, last = tmp_path / "data", tmp_path / "last"
    data.mkdir()
    tokenizers.train_bpe(["to be"], 260, data / "tokenizer.json")
    save(last, network(vocab_size=300), {"kind": "bpe"}, data)
    if damage == "missing":
        (last / "tokenizer.json").unlink()
    else:
        (last / "tokenizer.json").write_text("{}")
    assert str(last / "tokenizer.json") in refusal(ckpt.load, last)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_train_state_is_named_with_the_way_out(tmp_path, damage):
    save_number(tmp_path, 1)
    file = tmp_path / "train_state.pt"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\xff" * 500}[damage])
    said = refusal(ckpt.load_train_state, tmp_path)
    assert f"{file} is corrupted" in said and f"--init_from={tmp_path}" in said and "\n" not in said
    ckpt.load(tmp_path)  # the weights are still good


def test_a_missing_train_state_is_named_with_the_way_out(tmp_path):
    save(tmp_path)
    said = refusal(ckpt.load_train_state, tmp_path)
    assert str(tmp_path / "train_state.pt") in said and f"--init_from={tmp_path}" in said


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_train_state_runs_no_code(tmp_path):
    save_number(tmp_path / "last", 1)
    torch.save({"iter": Malicious(tmp_path / "proof")}, tmp_path / "last" / "train_state.pt")
    with pytest.raises(FileExistsError):  # the attack is a real one: plain unpickling would run it
        (tmp_path / "proof").mkdir()
        torch.load(tmp_path / "last" / "train_state.pt", weights_only=False)
    (tmp_path / "proof").rmdir()
    assert "train_state.pt" in refusal(ckpt.load_train_state, tmp_path / "last")
    assert not (tmp_path / "proof").exists()


# ---- accidents -------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a child process in the middle needs os.fork")


def child(work):
    """A process that does the work and ends, with status 1 where the work raised; its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def killed(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@needs_fork
def test_kill_9_at_random_moments_leaves_a_whole_checkpoint(tmp_path):
    last = tmp_path / "run" / "last"
    save_number(last, 0)
    draw, seen = random.Random(0), [0]

    def save_for_ever():
        n = seen[-1]
        while True:
            n += 1
            save_number(last, n)

    for _ in range(8):
        pid = child(save_for_ever)
        time.sleep(draw.uniform(0.05, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert killed(pid)
        assert number(last) == number(tmp_path / "run")
        seen.append(number(last))
    assert seen == sorted(seen) and seen[-1] > 0  # never back, and it did save
    save_number(last, 10**6)
    assert number(last) == 10**6 and [p.name for p in last.parent.iterdir()] == ["last"]


STEPS = [
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (torch, "save"),
    (os, "replace"),
    (shutil, "rmtree"),
]


def kill_myself_at(step):
    """Make this process kill itself just before its step-th act on the disk, of those that save() is made of."""
    count = [0]

    def counted(act):
        def wrapper(*args, **kwargs):
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return act(*args, **kwargs)

        return wrapper

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


@needs_fork
@pytest.mark.parametrize("before", ["nothing", "the wreck of the kill before"])
def test_kill_9_between_any_two_steps_leaves_a_whole_checkpoint(tmp_path, before):
    last = tmp_path / "last"
    for step in range(100):
        if before == "nothing" or step == 0:
            shutil.rmtree(tmp_path)
            save_number(last, 0)
        n = number(last)

        def work(step=step, n=n):
            kill_myself_at(step)
            save_number(last, n + 1)

        was_killed = killed(child(work))
        assert number(last) in ((n, n + 1) if was_killed else (n + 1,)), f"before step {step}"
        if not was_killed:
            assert step > 5
            return
    raise AssertionError("a save of 100 steps")


@needs_fork
def test_a_kill_between_the_renames_and_another_in_the_next_save_leave_a_whole_checkpoint(tmp_path):
    for step in range(100):
        shutil.rmtree(tmp_path)
        save_number(tmp_path / "last", 0)
        os.replace(tmp_path / "last", tmp_path / "last.old")

        def work(step=step):
            kill_myself_at(step)
            save_number(tmp_path / "last", 1)

        was_killed = killed(child(work))
        assert number(tmp_path) in (0, 1), f"before step {step}"
        if not was_killed:
            assert number(tmp_path) == 1
            return


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("owner, act", STEPS[:4], ids=[name for _, name in STEPS[:4]])
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, owner, act):
    save_number(tmp_path / "last", 1)
    before = contents(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(owner, act, full)
        with pytest.raises(OSError, match="No space left") as error:
            save_number(tmp_path / "last", 2)
    assert str(tmp_path / "last") in str(error.value)
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["last"]
    assert number(tmp_path / "last") == 1


def test_a_full_disk_at_the_first_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_number(tmp_path / "last", 1)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
import test_pretrained as t
path, limit = t.Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    t.save_number(path, 2)
except OSError as e:
    print(e)
"""


@pytest.mark.parametrize("too_large", ["model.safetensors", "train_state.pt"])
def test_a_real_write_error_leaves_the_checkpoint_before_it(tmp_path, too_large):
    pytest.importorskip("resource", reason="limiting the size of files needs Unix")
    save_number(tmp_path / "last", 1)
    before = contents(tmp_path)
    sizes = {name: (tmp_path / "last" / name).stat().st_size for name in ("model.safetensors", "train_state.pt")}
    assert sizes["model.safetensors"] + 100 < sizes["train_state.pt"]
    limit = sizes["model.safetensors"] + (-100 if too_large == "model.safetensors" else 100)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "last"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert f"could not save {tmp_path / 'last'}" in done.stdout
    assert contents(tmp_path) == before and number(tmp_path / "last") == 1


def test_the_remains_of_a_killed_save_are_cleaned_up(tmp_path):
    save_number(tmp_path / "last", 1)
    shutil.copytree(tmp_path / "last", tmp_path / "last.old")
    (tmp_path / "last.tmp").mkdir()
    (tmp_path / "last.tmp" / "half").write_text("")
    save_number(tmp_path / "last", 2)
    assert number(tmp_path / "last") == 2 and [p.name for p in tmp_path.iterdir()] == ["last"]
    assert not (tmp_path / "last" / "half").exists()


# ---- tokenizers ------------------------------------------------------------------------------------------------------

TEXTS = ["", " ", "\n\t\r\0", "Hello, World!", "  leading", "\ufb01 \u00e9 e\u0301", "Ωμέγα 漢字 עברית"]
TEXTS += ["\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\ufeff\u200b\uffff\U0010ffff"]
TEXTS += ["<|endoftext|> [MASK] <unk>", "a" * 300, "Ġ Ċ ĉ"]


def random_texts(count, seed=0):
    draw = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return ["".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 40))) for _ in range(count)]


def layout(tokenizer, texts):
    """The highest id that the texts use."""
    return max(i for text in texts for i in tokenizer.encode(text) or [0])


def test_a_char_tokenizer_round_trips_its_characters():
    tokenizer = tokenizers.load(CHAR)
    for text in ("", CHAR["chars"], "é\n\na b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_char_tokenizer_refuses_a_character_outside_its_vocabulary_by_name():
    with pytest.raises(ValueError, match="'z'"):
        tokenizers.load(CHAR).encode("abcz")


def test_a_char_vocabulary_ends_with_end_of_text_and_mask():
    tokenizer = tokenizers.load(CHAR)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id) == (8, 6, 7)
    assert layout(tokenizer, [CHAR["chars"]]) == 5


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe")
    tokenizers.train_bpe(["to be or not to be, that is the question"] * 5, 280, directory / "tokenizer.json")
    return tokenizers.load({"kind": "bpe"}, directory)


def test_bpe_round_trips_any_unicode_text(bpe):
    for text in TEXTS + random_texts(200):
        assert bpe.decode(bpe.encode(text)) == text


def test_bpe_merges_what_is_frequent(bpe):
    assert len(bpe.encode("to be or not to be")) < 12


def test_a_bpe_vocabulary_ends_with_end_of_text_and_mask(bpe):
    assert (bpe.vocab_size, bpe.eos_id, bpe.mask_id) == (282, 280, 281)
    assert layout(bpe, TEXTS + random_texts(50)) < 280


def test_special_ids_decode_to_nothing(bpe):
    for tokenizer, text in ((tokenizers.load(CHAR), "abc"), (bpe, "to be")):
        ids = tokenizer.encode(text)
        mixed = [tokenizer.mask_id, *ids[:1], tokenizer.eos_id, *ids[1:], tokenizer.mask_id]
        assert tokenizer.decode(mixed) == text


def test_an_unknown_tokenizer_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="'words'.*char, bpe, tiktoken and hf"):
        tokenizers.load({"kind": "words"})


@pytest.fixture
def gpt2(monkeypatch):
    pytest.importorskip("tiktoken", reason="GPT-2's tokenizer needs tiktoken")
    if not TIKTOKEN_FILES.is_dir():
        pytest.skip("GPT-2's tokenizer files are not on this machine")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    return tokenizers.load({"kind": "tiktoken", "name": "gpt2"})


def test_gpt2_round_trips_any_unicode_text(gpt2):
    assert gpt2.encode("hello world") == [31373, 995]
    for text in TEXTS + random_texts(200):
        assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2s_vocabulary_is_its_own_and_a_mask_padded_to_a_multiple_of_64(gpt2):
    assert (gpt2.eos_id, gpt2.mask_id, gpt2.vocab_size) == (50256, 50257, 50304)
    assert layout(gpt2, TEXTS) < gpt2.eos_id  # also where the text spells <|endoftext|>
    assert gpt2.decode([50257, *gpt2.encode("hello"), 50256, 50300]) == "hello"


def test_other_tiktoken_encodings_are_refused_by_name():
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    with pytest.raises(ValueError, match="'cl100k_base'"):
        tokenizers.load({"kind": "tiktoken", "name": "cl100k_base"})
