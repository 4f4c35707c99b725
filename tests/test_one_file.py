"""exercises/one_file: the first lesson's two scripts do what mdlm.py and ar.py do, and differ in what docs/course.md
shows."""

import ast
import difflib
import math
import re
import sys

import pytest
import torch
from test_train import ROOT
from toy import generator, ids, transformer

import ar
import mdlm
from nanodlm import noise
from nanodlm.files import load_module

FILES = {name: ROOT / f"exercises/one_file/{name}.py" for name in ("gpt", "diffusion")}
SOURCE = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
gpt, diffusion = (load_module(f"one_file_{name}", path) for name, path in FILES.items())
MASK, VOCAB, L = diffusion.MASK, 12, 16


def pair(module, causal):
    """One network with the same weights twice: model.Transformer, and the module's own."""
    theirs = transformer(2, 0.5, n_embd=32, causal=causal)
    ours = module.Transformer(VOCAB, n_layer=2, n_head=2, n_embd=32).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def texts(n):
    return torch.randint(1, VOCAB, (n, L), generator=generator(1))


def close(a, b):
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def hunks(a, b):
    """What `diff` prints of two texts, a string per hunk."""
    a, b, found = a.splitlines(), b.splitlines(), []
    for tag, *ends in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            spans = [(start + (start < end), end) for start, end in (ends[:2], ends[2:])]
            where = [f"{start},{end}" if start < end else str(end) for start, end in spans]
            old, new = (
                [f"{sign} {line}".rstrip() for line in lines]
                for sign, lines in zip("<>", (a[ends[0] : ends[1]], b[ends[2] : ends[3]]))
            )
            found.append(
                "\n".join(
                    [tag[0].replace("r", "c").replace("i", "a").join(where), *old, *["---"] * (tag == "replace"), *new]
                )
            )
    return found


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module, causal", [(gpt, True), (diffusion, False)])
def test_the_network_is_the_house_s_with_the_mask_excluded(module, causal):
    theirs, ours = pair(module, causal)
    x, seen = texts(3), torch.arange(VOCAB) != MASK
    assert close(ours(x)[..., seen], theirs(x)[..., seen]) and (ours(x)[..., MASK] == -torch.inf).all()


def test_the_diffusion_loss_is_mdlm_s_masked_cross_entropy_with_exact_counts():
    """mdlm.py divides by what is hidden on average over times, and the file by what is hidden."""
    theirs, ours = pair(diffusion, False)
    x = texts(8)
    options = mdlm.LossOptions(objective="masked_ce", corruption="count", t_min=diffusion.t_min, t_max=diffusion.t_max)
    t = noise.times(7, 8, options)[:, None]
    u = noise.uniform(7, 3, torch.arange(8)[:, None], torch.arange(L))
    hidden = diffusion.corrupt(x, t, u)[1]
    expected = mdlm.loss(theirs, x, options, mask_id=MASK, seed=7, denominator=hidden.sum()) * t.mean()
    assert close(diffusion.loss(ours, x, t, u), expected)


def test_the_bound_of_each_row_is_the_nelbo_with_the_same_masks():
    theirs, ours = pair(diffusion, False)
    x, rows, samples = texts(6), torch.arange(6), 3
    total = 0
    for j in range(samples):
        t = ((rows * samples + j).double() * 0.6180339887498949 + noise.uniform(5, 5)) % 1
        total += diffusion.bound(ours, x, t[:, None], noise.of_masks(5, rows, j, L))
    assert close(total / samples * L, mdlm.nelbo(theirs, x, mask_id=MASK, samples=samples, seed=5))
    assert total.std() > 0.1


def test_the_bound_is_the_weighted_loss_when_t_is_uniform():
    theirs, ours = pair(diffusion, False)
    x, options = texts(8), mdlm.LossOptions(corruption="count")
    t = noise.times(7, 8, options)[:, None]
    u = noise.uniform(7, 3, torch.arange(8)[:, None], torch.arange(L))
    assert close(diffusion.bound(ours, x, t, u).mean(), mdlm.loss(theirs, x, options, mask_id=MASK, seed=7))


def test_the_gpt_s_loss_and_likelihood_are_ar_s():
    theirs, ours = pair(gpt, True)
    x = texts(4)
    assert close(gpt.loss(ours, x, None, None), ar.loss(theirs, x, mask_id=MASK))
    assert close(gpt.bound(ours, x, None, None) * L, ar.nelbo(theirs, x, mask_id=MASK))


@pytest.mark.parametrize("steps", [16, 7, 3])
def test_the_diffusion_sampler_writes_mdlm_s_tokens(steps):
    theirs, ours = pair(diffusion, False)
    prompts = [ids(), ids(3, MASK, 4, MASK, MASK)]
    options = mdlm.SampleOptions(L - 5, steps=steps, temperature=0.8, seed=3)
    for row, (prompt, expected) in enumerate(
        zip(prompts, mdlm.generate(theirs, prompts, options, mask_id=MASK).tokens)
    ):
        x = torch.cat([prompt, torch.full((L - 5,), MASK)])
        seen = [
            x.clone()
            for x in diffusion.sample(ours, x, steps, 0.8, lambda step, at, row=row: noise.uniform(3, row, step, 1, at))
        ]
        assert len(seen) == steps and seen[-1].tolist() == expected.tolist()


def test_the_gpt_s_sampler_writes_ar_s_tokens():
    theirs, ours = pair(gpt, True)
    expected = ar.generate(theirs, [ids()] * 3, ar.SampleOptions(L, temperature=0.8, seed=3), mask_id=MASK).tokens
    for row in range(3):
        x = torch.full((L,), MASK)
        *_, x = gpt.sample(ours, x, L, 0.8, lambda step, at, row=row: noise.uniform(3, row, at, 1))
        assert x.tolist() == expected[row].tolist()
    assert len({tuple(x.tolist()) for x in expected}) == 3


# ---- the scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_needs_torch_alone(name):
    tree = ast.parse(SOURCE[name])
    used = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    used |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert SOURCE[name].count("\n") <= 350
    assert {m.split(".")[0] for m in used} <= {"torch", *sys.stdlib_module_names}
    assert ast.get_docstring(tree).isascii()  # --help prints it


@pytest.mark.parametrize("module", [gpt, diffusion])
def test_a_script_learns_from_a_text_of_one_s_own_measures_and_writes(module, tmp_path, monkeypatch, capsys):
    for key, value in dict(seq_len=16, batch_size=4, steps=16).items():
        monkeypatch.setattr(module, key, value)
    monkeypatch.setattr(module, "Transformer", lambda vocab, make=module.Transformer: make(vocab, 1, 2, 16))
    (tmp_path / "my.txt").write_text("a rose is a rose, \u00e0 la rose\n" * 40, encoding="utf-8")
    module.main(tmp_path / "my.txt", iters=60)
    said = capsys.readouterr().out
    assert float(re.search(r"loss ([\d.]+) nats", said)[1]) < math.log(14)
    bits, error = re.search(r"validation: (?:at most )?([\d.]+) \+- ([\d.]+) bits", said).groups()
    assert float(bits) < math.log2(14) and 0 < float(error) < 0.2
    frames = re.findall(r"^step +\d+: (.{16})$", said, re.M)
    assert [frame.count("_") for frame in frames] == [14, 12, 10, 8, 6, 4, 2, 0, 0, 0, 0]


def test_what_it_learns_from_by_itself_is_python_s_help_in_the_27_characters_of_text8():
    text = diffusion.read(None)
    assert set(text) == set("abcdefghijklmnopqrstuvwxyz ") and len(text) > 200_000 and " the statement " in text
    assert gpt.read(None) == text


@pytest.mark.parametrize("module", [gpt, diffusion])
@pytest.mark.parametrize(
    "text, reason", [(None, "cannot be read"), (b"\xff\xfe", "no text in UTF-8"), (b"ab", "at least")]
)
def test_a_text_that_will_not_do_is_refused_in_a_sentence(module, text, reason, tmp_path):
    path = tmp_path / "my.txt"
    if text:
        path.write_bytes(text)
    with pytest.raises(SystemExit, match=f"my.txt .*{reason}"):
        module.main(path)


# ---- the lesson ------------------------------------------------------------------------------------------------------


def test_the_page_shows_all_that_differs_between_the_two():
    page = (ROOT / "docs/course.md").read_text(encoding="utf-8")
    lesson = page.split("\n## Lesson 0")[1].split("\n## ")[0]
    assert re.findall(r"^```diff\n(.*?)\n```$", lesson, re.S | re.M) == hunks(SOURCE["gpt"], SOURCE["diffusion"])
