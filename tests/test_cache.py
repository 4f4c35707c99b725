"""The KV cache, tiles and compilation: what makes the network fast, and must not change what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import toy
from test_model import FAMILIES, IDS, REAL, close, network
from torch._dynamo.testing import CompileCounter
from toy import BLOCKS, texts

from model import KVCache
from nanodlm.attention import Tiles, attend

ROOT = Path(__file__).resolve().parent.parent


def cache_for(model, batch=2, size=7):
    return KVCache(model.config, batch, size, dtype=torch.float64)


CAUSAL_FAMILIES = ["causal", "causal_window", "llama", "qwen2", "gpt2"]


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 3]], ids=str)
def test_reading_through_the_cache_equals_reading_at_once(family, chunks):
    """A cache that is larger than the text changes nothing."""
    model = network(**FAMILIES[family])
    for size in (7, 20):
        cache = cache_for(model, size=size)
        close(torch.cat([model(ids, cache=cache) for ids in IDS.split(chunks, 1)], 1), model(IDS))


def test_a_token_beyond_the_cache_is_refused():
    model = network(causal=True)
    for size in (6, 5):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(IDS, cache=cache_for(model, size=size))


def test_overwriting_slots_of_one_layer_equals_recomputing_the_changed_text():
    model = network(n_layer=1)
    cache = cache_for(model)
    model(IDS, cache=cache)
    places = torch.tensor([[1, 4], [6, 0]])
    changed = IDS.scatter(1, places, (IDS.gather(1, places) + 5) % 13)
    logits = model(changed.gather(1, places), positions=places, cache=cache)
    close(logits, model(changed).gather(1, places[..., None].expand(2, 2, 13)))
    assert cache.filled.sum() == 14


def test_rewriting_all_slots_equals_a_fresh_cache():
    model = network()
    cache = cache_for(model)
    model(IDS.flip(1), cache=cache)
    close(model(IDS, positions=torch.arange(7).expand(2, 7), cache=cache), model(IDS))


def test_a_bidirectional_network_sees_all_filled_slots_and_no_others():
    model = network()
    cache = cache_for(model, size=12)
    first, second = model(IDS[:, :3], cache=cache), model(IDS[:, 3:], cache=cache)
    mask = torch.ones(1, 7, 7).bool()
    mask[:, :3, 3:] = False  # when the first chunk was read, the second was not there
    close(torch.cat([first, second], 1), model(IDS, mask=mask))


def test_slots_may_be_filled_with_gaps():
    model = network(causal=True)
    cache = cache_for(model, size=20)
    positions = torch.tensor([[2, 5, 6, 9, 11, 12, 17], [0, 1, 2, 3, 4, 5, 6]])
    a = model(IDS[:, :4], positions=positions[:, :4], cache=cache)
    b = model(IDS[:, 4:], positions=positions[:, 4:], cache=cache)
    close(torch.cat([a, b], 1), model(IDS, positions=positions))
    assert cache.next_positions(2).tolist() == [[18, 19], [7, 8]]


def test_next_positions_are_behind_each_rows_last_real_token():
    model = network(causal=True)
    cache = KVCache(model.config, 3, 9, dtype=torch.float64)
    assert cache.next_positions(2).tolist() == [[0, 1]] * 3
    ids, real = IDS[[0, 1, 0], :4], torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    model(ids, mask=real, cache=cache)
    assert cache.next_positions(3).tolist() == [[2, 3, 4], [4, 5, 6], [0, 1, 2]]


@pytest.mark.parametrize("family", [*CAUSAL_FAMILIES, "default", "all_local"])
def test_in_a_ragged_batch_with_a_cache_each_row_gets_what_it_gets_alone(family):
    model = network(**FAMILIES[family])
    lengths, new = [5, 2, 1], 3
    texts = [IDS.flatten()[i : i + n + new] for i, n in enumerate(lengths)]
    prompts = torch.zeros(3, 5, dtype=torch.long)
    for i, n in enumerate(lengths):
        prompts[i, :n] = texts[i][:n]
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    cache = cache_for(model, batch=3, size=8)
    together = [model(prompts, mask=real, cache=cache)]
    for j in range(new):  # every row appends its next token
        together.append(model(torch.stack([t[n + j] for t, n in zip(texts, lengths)])[:, None], cache=cache))
    for i, n in enumerate(lengths):
        alone = cache_for(model, batch=1, size=8)
        close(together[0][i, :n], model(texts[i][None, :n], cache=alone)[0])
        for j in range(new):
            close(together[1 + j][i], model(texts[i][None, n + j : n + j + 1], cache=alone)[0])


def test_tokens_of_a_finished_row_are_stored_nowhere():
    model = network(causal=True)
    cache = cache_for(model, size=9)
    model(IDS[:, :4], cache=cache)
    keys, values = (torch.stack(stores)[:, :, :9] for stores in (cache.k, cache.v))
    filled = cache.filled[:, :9].clone()
    alive = torch.tensor([[True], [False]])
    logits = model(IDS[:, 4:5], mask=alive, cache=cache)
    for before, stores in ((keys, cache.k), (values, cache.v)):
        assert torch.equal(torch.stack(stores)[:, 1, :9], before[:, 1])
    assert torch.equal(cache.filled[1, :9], filled[1])
    assert cache.next_positions(1).tolist() == [[5], [4]]
    close(logits[0], model(IDS[:1, :5])[0, 4:])
    close(model(IDS[:, 4:5], cache=cache)[1], model(IDS[1:, :5])[0, 4:])  # the row can go on where it stopped


def test_a_finished_row_may_stand_at_the_end_of_the_cache():
    model = network(causal=True)
    cache = cache_for(model, size=5)
    model(IDS[:, :5], mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool(), cache=cache)
    logits = model(IDS[:, 4:5], mask=torch.tensor([[True], [False]]), cache=cache)
    close(logits[0], model(IDS[:1, :5])[0, 4:])


def test_rows_work_with_a_cache():
    model = network(causal=True)
    full = model(IDS)
    cache = cache_for(model)
    model(IDS[:, :4], cache=cache)
    last = torch.zeros(2, 3, dtype=torch.bool)
    last[:, -1] = True
    close(model(IDS[:, 4:], cache=cache, rows=last), full[:, -1])


def test_a_3d_mask_over_the_slots_chooses_what_is_seen():
    model = network()
    cache = cache_for(model, size=9)
    model(IDS[:, :4], cache=cache)
    seen = torch.ones(1, 3, 9).bool()  # the last two slots stay empty, so that choosing them means nothing
    seen[:, :, :2] = False
    masked = model(IDS[:, 4:], mask=seen, cache=cache)
    whole = torch.ones(1, 7, 7).bool()
    whole[:, :4, 4:] = False
    whole[:, 4:, :2] = False
    close(masked, model(IDS, mask=whole)[:, 4:])


def test_rows_that_are_kept_go_on_as_if_nothing_had_happened():
    x = texts(4, 9)
    for rows in (torch.tensor([True, False, True, True]), torch.tensor([2, 0])):
        caches = [KVCache(BLOCKS.config, 4, 12, dtype=torch.float64) for _ in range(2)]
        for cache in caches:
            BLOCKS(x[:, :6], cache=cache)
        caches[0].keep(rows)
        kept, all_of_them = BLOCKS(x[rows, 6:], cache=caches[0]), BLOCKS(x[:, 6:], cache=caches[1])
        assert (kept - all_of_them[rows]).abs().max() < 1e-12
        assert len(caches[0].filled) == len(caches[0].k[0]) == len(kept)


def test_negative_positions_are_padding():
    """They are stored nowhere and seen by nobody, wherever they stand."""
    x = texts(1, 6)[0]
    cache = KVCache(BLOCKS.config, 2, 8, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2, 3, 4, 5], [-1, 0, -1, 1, 2, -1]])
    logits = BLOCKS(torch.stack([x, x]), positions=rows, cache=cache)
    alone = BLOCKS(x[[1, 3, 4]][None])
    assert (logits[1, [1, 3, 4]] - alone[0]).abs().max() < 1e-12
    assert cache.filled[:, :8].sum(1).tolist() == [6, 3] and cache.filled[1, :3].all()
    learned = toy.transformer(15, 0.3, position="learned")
    for net in (BLOCKS, learned):
        cache = KVCache(BLOCKS.config, 1, 8, dtype=torch.float64)
        assert net(x[None], positions=rows[1:], cache=cache).isfinite().all()


def test_visible_slots_are_all_that_is_attended_to():
    """A mask over the visible slots gives what a mask over all of them gives that hides the others."""
    x, narrow, wide = texts(2, 8), *(KVCache(BLOCKS.config, 2, 12, dtype=torch.float64) for _ in range(2))
    for cache in (narrow, wide):
        BLOCKS(x[:, :4], cache=cache)
    narrow.visible = slice(2, 8)
    everyone = torch.zeros(1, 4, 12, dtype=torch.bool).index_fill(2, torch.arange(2, 8), True)
    expected = BLOCKS(x[:, 4:], mask=everyone, cache=wide)
    assert (BLOCKS(x[:, 4:], mask=everyone[..., 2:8], cache=narrow) - expected).abs().max() < 1e-12
    narrow.filled[:, 4:] = False
    assert (BLOCKS(x[:, 4:], cache=narrow) - expected).abs().max() < 1e-12
    narrow.filled[:, 4:], narrow.visible = False, slice(0, 12)
    assert (BLOCKS(x[:, 4:], cache=narrow) - expected).abs().max() > 1e-3


# ---- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_tiles_equal_dense_attention_forward_and_backward(kv_heads):
    """Also where a size does not divide the mask, a tile is empty, or full."""
    g = toy.generator(0)
    mask = torch.rand(50, 70, generator=g) < 0.3
    mask[:16, 16:64], mask[16:32, :16] = False, True
    mask[:, 69] = True
    shapes = (2, 4, 50, 8), (2, kv_heads, 70, 8), (2, kv_heads, 70, 8)
    q, k, v = leaves = [torch.randn(s, dtype=torch.float64, generator=g, requires_grad=True) for s in shapes]
    weight = torch.randn(2, 4, 50, 8, dtype=torch.float64, generator=g)
    dense = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    for size in (16, 7, 50, 100):
        tiled = Tiles(mask, size).attend(q, k, v, enable_gqa=True)
        assert (tiled - dense).abs().max() < 1e-12
        for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (tiled, dense))):
            assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_in_plain_products_is_attention(masked, kv_heads):
    """In bfloat16 on a CPU, with gradients; a query that sees nothing, as padding far from a text may, harms nobody."""
    g = toy.generator(0)
    mask = torch.rand(2, 1, 30, 40, generator=g) < 0.5 if masked else None
    if masked:
        mask[0, :, 3] = False
    shapes = (2, 4, 30, 8), (2, kv_heads, 40, 8), (2, kv_heads, 40, 8)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        g = toy.generator(1)
        leaves = [torch.randn(s, generator=g).bfloat16().to(dtype).requires_grad_() for s in shapes]
        y = attend(*leaves, mask, enable_gqa=True)
        assert (y.grad_fn.name() == "UnsafeViewBackward0") == (dtype == torch.bfloat16)
        seen = y if mask is None else y.masked_fill(~mask.any(-1, keepdim=True), 0)
        found.append([seen, *torch.autograd.grad(seen.square().sum(), leaves)])
    for a, b in zip(*found):
        assert (a - b).norm() < 0.03 * b.norm()


# ---- compile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [dict(), dict(mask=REAL, rows=torch.tensor([1, 5, 8]))], ids=len)
def test_the_network_compiles_to_one_graph(arguments):
    torch._dynamo.reset()
    model = network(window=2, global_every=2, n_kv_head=2, n_layer=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(IDS, **arguments), model(IDS, **arguments), 1e-9)


def test_the_compiled_network_trains():
    torch._dynamo.reset()
    grads = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        model = network(n_layer=1).requires_grad_(True)
        wrap(model)(IDS, rows=torch.tensor([0, 3, 9])).logsumexp(-1).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert grads[0].norm() > 0
    close(grads[0], grads[1], 1e-9)


def test_a_changing_number_of_rows_is_compiled_only_twice():
    torch._dynamo.reset()
    counter = CompileCounter()
    model = network(n_layer=1)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for n in (3, 5, 8, 2, 11):
        compiled(IDS, rows=torch.arange(n))
    assert 1 <= counter.frame_count <= 2  # once for the first number, once for any


def test_without_a_compiler_what_was_asked_for_is_one_sentence_and_auto_goes_on_without(tmp_path):
    """As processes that find none, and have nothing compiled from before."""
    env = {**os.environ, "CXX": "/nowhere/g++", "CC": "/nowhere/gcc", "PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    auto = "from nanodlm.device import pick_compile; print(*pick_compile('auto', 'cuda'), *pick_compile('auto', 'cpu'))"
    decode = ["sample.py", "--cache=dual", "--block_size=4", "--max_new_tokens=8", "--compile", "--device=cpu"]
    learn = ["train.py", "--compile=true", "--device=cpu", f"--out_dir={tmp_path / 'out'}"]

    def said(*words):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = said("-c", auto)
    assert code == 0 and out.startswith("False compile off (") and out.endswith(") False compile off\n")
    for words, option in ((learn, "compile=true"), (decode, "compile=True")):
        code, _, err = said(*words)
        assert code == 1 and re.fullmatch(rf"{option} cannot be here: InvalidCxxCompiler: .*; install .*\n", err), err
    assert not (tmp_path / "out").exists()
