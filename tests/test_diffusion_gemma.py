"""DiffusionGemma through transformers' class, on random weights from disk: it writes what that class's own `generate`
writes with the same random numbers, a row of a ragged batch what it writes alone; its likelihoods are what they say."""

import contextlib
import io
from dataclasses import replace

import pytest
import tokenizers as T
import torch
import transformers as tf
from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs

import sample
import train
import udlm
from nanodlm import algorithms, harness, lora
from nanodlm import checkpoint as ckpt
from nanodlm import diffusion_gemma as ours
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers
from nanodlm.batches import Texts
from nanodlm.noise import draw, uniform

tf.utils.logging.disable_progress_bar()

WORDS = "<pad> <eos> <bos> <unk> <mask> <|turn> <turn|> <|channel> <channel|> <|think|> <|image|> <|image> <image|>"
WORDS = WORDS.split()
LETTERS = "abcdefghijklmnopqrstuvwxyz ?\n0123456789."
VOCAB, SIZE, END, TURN, IMAGE = len(WORDS) + len(LETTERS), 8, 1, 6, 10
TEMPLATE = """{% set think = enable_thinking is defined and enable_thinking %}{{ bos_token }}
{%- if think %}{{ '<|turn>system\n<|think|><turn|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content }}
{{- '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}
{%- if not think %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"""  # as Gemma 4's


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkpoint of 0.46 M random parameters in the hub's layout: 2 layers, one of them with a window, 4 experts."""
    path = tmp_path_factory.mktemp("gemma") / "diffusiongemma-tiny-it"
    torch.manual_seed(0)
    text = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text |= dict(num_key_value_heads=2, head_dim=16, global_head_dim=16, sliding_window=6, initializer_range=0.3)
    text |= dict(num_experts=4, top_k_experts=2, moe_intermediate_size=32, max_position_embeddings=256)
    text |= dict(layer_types=["sliding_attention", "full_attention"])
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    vision = tf.Gemma4VisionConfig(**vision, num_key_value_heads=2)
    images = dict(image_token_id=IMAGE, boi_token_id=IMAGE + 1, eoi_token_id=IMAGE + 2)
    text = tf.DiffusionGemmaTextConfig(**text)
    config = tf.DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=SIZE, **images)
    model = tf.DiffusionGemmaForBlockDiffusion(config)
    model.generation_config.eos_token_id = [END, TURN]
    model.save_pretrained(path)
    core = T.Tokenizer(T.models.WordLevel({w: i for i, w in enumerate([*WORDS, *LETTERS])}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = T.pre_tokenizers.Split("", "isolated"), T.decoders.Fuse()
    core.post_processor = T.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    names = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    hf = tf.PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=WORDS[5:], **names)
    hf.chat_template = TEMPLATE
    hf.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(directory):
    return ckpt.load(directory)


@pytest.fixture(scope="module")
def reference(directory):
    return tf.DiffusionGemmaForBlockDiffusion.from_pretrained(directory).eval()


PROMPTS = [torch.tensor(p) for p in ([5, 26, 17], [29, 18, 23, 24, 15, 26, 37, 31, 13, 45], [14] * 14, [17])]
SETTINGS = {
    "published": dict(steps=12),
    "nearly greedy, everything accepted, stops early": dict(
        steps=30, temperature=0.02, last_temperature=0.01, entropy_bound=1e6
    ),
    "cool, little accepted, stops late": dict(
        steps=20, temperature=0.04, last_temperature=0.01, entropy_bound=0.5, stable=2, sure=0.1
    ),
    "stops when it is sure, stable or not": dict(steps=20, temperature=0.1, last_temperature=0.05, stable=0, sure=0.3),
}


@contextlib.contextmanager
def our_numbers(monkeypatch, seed, begin, rows):
    """transformers' `generate` draws nothing by itself: noise, and tokens, are those of our random numbers."""
    canvas, step = -1, -1
    prepare = theirs.DiffusionGemmaGenerationMixin._prepare_denoiser_inputs

    def numbers(kind):
        return uniform(seed, rows[:, None], step, kind, begin + canvas * SIZE + torch.arange(SIZE))

    def prepared(self, **keys):
        nonlocal canvas, step
        canvas, step = canvas + 1, -1
        return prepare(self, **keys)

    def noise(self, **_):
        nonlocal step
        found, step = (numbers(int(step < 0)) * VOCAB).long(), step + 1
        return found

    with monkeypatch.context() as m:
        m.setattr(theirs.DiffusionGemmaGenerationMixin, "_prepare_denoiser_inputs", prepared)
        m.setattr(theirs.EntropyBoundSampler, "initialize_canvas", lambda self, *_, **__: noise(self))
        m.setattr(torch, "multinomial", lambda p, **_: draw(p.double().log(), numbers(1).flatten())[:, None])
        yield


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_and_forwards_are_those_of_its_own_generate(name, checkpoint, reference, monkeypatch):
    o = ours.SampleOptions(3 * SIZE, seed=3, **SETTINGS[name])
    prompts = [PROMPTS[1], PROMPTS[1] + 1]
    stops = checkpoint.tokenizer.stop_ids
    out = ours.generate(checkpoint.model, prompts, o, mask_id=VOCAB, eos_id=stops)
    keys = dict(max_new_tokens=3 * SIZE, max_denoising_steps=o.steps, t_max=o.temperature, t_min=o.last_temperature)
    keys |= dict(stability_threshold=o.stable, confidence_threshold=o.sure, pad_token_id=0, eos_token_id=[END, TURN])
    keys |= dict(sampler_config=theirs.EntropyBoundSamplerConfig(o.entropy_bound))
    with our_numbers(monkeypatch, 3, 10, torch.arange(2)):
        found = reference.generate(torch.stack(prompts), **keys)
    for x, forwards, y, speed in zip(out.tokens, out.num_forwards, found.sequences, found.tokens_per_forward):
        assert torch.equal(x, y[: len(x)]) and not y[len(x) :].any()
        assert (len(x) - 10) / forwards == pytest.approx(speed.item())
    early = any(n % o.steps for n in out.num_forwards)
    assert early == ("stops" in name)


def hidden_alone(checkpoint, i, canvas):
    prefix, _ = checkpoint.model.read([PROMPTS[i]])
    return checkpoint.model.hidden(canvas[i : i + 1], prefix)[0]


@torch.no_grad()
def test_a_ragged_batch_is_its_rows(checkpoint, reference):
    canvas = torch.arange(4 * SIZE).view(4, SIZE)
    prefix, _ = checkpoint.model.read(PROMPTS)
    logits = checkpoint.model.hidden(canvas, prefix)
    for i, x in enumerate(PROMPTS):
        alone = hidden_alone(checkpoint, i, canvas)
        assert torch.equal(alone, reference(x[None], decoder_input_ids=canvas[i : i + 1]).logits[0])
        assert torch.allclose(logits[i], alone, atol=1e-5)
    for settings in (SETTINGS["cool, little accepted, stops late"], dict(steps=6, temperature=0.0)):
        o = ours.SampleOptions(2 * SIZE + 3, seed=1, **settings)
        keys, seen = dict(mask_id=VOCAB, eos_id=[END, 30], trace=True), []
        out = ours.generate(checkpoint.model, PROMPTS, o, **keys, watch=seen.append)
        for i, x in enumerate(PROMPTS):
            one = ours.generate(checkpoint.model, [x], o, **keys, numbers=[i])
            assert torch.equal(one.tokens[0], out.tokens[i]) and one.num_forwards[0] == out.num_forwards[i]
            n, canvas = len(x) + 2 * SIZE + 3, torch.full((2 * SIZE + 3,), VOCAB)
            for _, at, token, p in out.trace[i]:
                canvas[at - len(x)] = token
                assert 0 <= p <= 1 and (p == 0) <= (token == VOCAB) and len(x) <= at < n
            text = torch.cat([x, canvas])
            assert torch.equal(text[: len(out.tokens[i])], out.tokens[i]) and torch.equal(seen[-1][i], text)
    assert any(VOCAB in [token for _, _, token, _ in events] for events in out.trace)  # what is noise again is a hole


class Plain:
    """The network for udlm.py's sampler, which gives it no prediction: this one keeps its own."""

    def __init__(self, model, prompt, o):
        self.model, self.o, self.step, self.before = model, o, 0, None
        (self.prefix, _), self.n, self.config = (
            model.read([prompt]),
            len(prompt),
            model.config,
        )

    def parameters(self):
        return self.model.parameters()

    def __call__(self, x, rows):
        logits = self.model.hidden(x[:, self.n :], self.prefix, before=self.before)
        self.before, self.step = logits / ours.heat(self.step, self.o), self.step + 1
        return logits[0, rows - self.n]


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_a_canvas_is_what_the_plain_sampler_of_udlm_writes(name, checkpoint):
    o = ours.SampleOptions(SIZE, seed=5, **SETTINGS[name])
    plain = udlm.SampleOptions(SIZE, quota="entropy_bound", seed=5, **{"temperature": 0.8, **SETTINGS[name]})
    for x in PROMPTS[:2]:
        want = udlm.generate(Plain(checkpoint.model, x, o), [x], plain, mask_id=VOCAB)
        out = ours.generate(checkpoint.model, [x], o, mask_id=VOCAB)
        assert torch.equal(out.tokens[0], want.tokens[0]) and out.num_forwards == want.num_forwards


@torch.no_grad()
def test_two_likelihoods_of_one_network(checkpoint, reference):
    """Exact: the chain rule by the causal pass, token by token. The bound: that of each canvas behind what is before
    it, so that it is a sum; a row of a batch is what it is alone; and nelbo of rows is log_likelihood of pairs."""
    model, cap = checkpoint.model, reference.final_logit_softcapping
    targets = [torch.arange(13, 13 + n) for n in (2, 19, 8, 11)]
    exact = ours.log_likelihood(model, PROMPTS, targets, ours.LikelihoodOptions("left_to_right", batch_size=3))
    for x, t, found in zip(PROMPTS, targets, exact):
        logp = 0.0
        for k in range(len(t)):
            state = reference.model.encoder(torch.cat([x, t[:k]])[None]).last_hidden_state[0, -1]
            logp += (torch.tanh(reference.lm_head(state) / cap) * cap).log_softmax(-1)[t[k]].double()
        assert found.item() == pytest.approx(logp.item(), rel=1e-5)
    for passes in (1, 2):
        o = ours.LikelihoodOptions(mc_samples=3, passes=passes, seed=2)
        bound = ours.log_likelihood(model, PROMPTS, targets, o)
        for i, (x, t) in enumerate(zip(PROMPTS, targets)):
            alone, keys = 0.0, dict(mask_id=VOCAB, samples=3, seed=2)
            for c in range(0, len(t), SIZE):
                network = ours.Behind(model, model.read([torch.cat([x, t[:c]])])[0], [0], passes)
                part = torch.nn.functional.pad(t[c : c + SIZE], (0, max(0, c + SIZE - len(t))))[None]
                real = (torch.arange(SIZE) < len(t) - c)[None]
                number = torch.tensor([i]) + 1_000_003 * (c // SIZE)
                alone -= udlm.nelbo(network, part, real=real, first=number, **keys).item()
            assert bound[i].item() == pytest.approx(alone, rel=1e-5)
    rows = torch.nn.utils.rnn.pad_sequence([torch.cat(pair) for pair in zip(PROMPTS, targets)], True, padding_value=0)
    ends = torch.tensor([[len(x), len(x) + len(t)] for x, t in zip(PROMPTS, targets)])
    real, place = torch.arange(rows.shape[1]) < ends[:, 1:], torch.arange(rows.shape[1])
    keys = dict(maskable=real & (place >= ends[:, :1]), real=real, samples=3, seed=2)
    o = ours.LikelihoodOptions(mc_samples=3, seed=2)
    assert torch.allclose(-ours.nelbo(model, rows, **keys), ours.log_likelihood(model, PROMPTS, targets, o), rtol=1e-5)


def test_what_it_cannot_do_is_said(directory, checkpoint, tmp_path):
    model, ask = checkpoint.model, dict(mask_id=VOCAB)
    with pytest.raises(ValueError, match=f"image token {IMAGE}, and images are not read here"):
        ours.generate(model, [[13, IMAGE, 14]], **ask)
    with pytest.raises(ValueError, match="it fills in no holes"):
        ours.generate(model, [[13, VOCAB, 14]], **ask)
    with pytest.raises(ValueError, match=f"mask_id=4 is a token.*: a hole is mask_id={VOCAB}"):
        ours.generate(model, [[13]], mask_id=4)
    for line, said in {
        "--infill=ab[MASK*3]c": "it fills in no holes",
        "--steps=0": "steps",
        "--order=random": "order",
        "--prompt=<|image|>a": "images are not read here",
    }.items():
        with pytest.raises(SystemExit, match=said):
            sample.main([f"--checkpoint={directory}", "--device=cpu", line])
    words = [
        f"--init_from={directory}",
        "--dataset=pydocs",
        "--lora_r=2",
        "--device=cpu",
        f"--out_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(SystemExit, match="network for --algorithm=diffusion_gemma, not for mdlm"):
        train.main(["--algorithm=mdlm", *words])


def test_thoughts_are_asked_for_and_are_no_part_of_an_answer(checkpoint):
    t, asked = checkpoint.tokenizer, [{"role": "user", "content": "a<|think|>"}]  # whose content is no control token
    think, usual = (t.decode(x) for x in (tokenizers.with_thoughts(t, "think").chat(asked), t.chat(asked)))
    ids = {name: tokenizers.with_thoughts(t, name).chat(asked) for name in ("think", "empty", "auto")}
    assert ids["think"].count(9) == 1 and ids["empty"] == ids["auto"] and not ids["auto"].count(9)
    assert think != usual and TURN in t.stop_ids and t.mask_id == VOCAB
    new = [7, *t.encode("thought\nis it b? no."), 8, *t.encode("it is a."), TURN]
    for stops, said, stopped in ((["?"], "it is a.", False), ([" a", "?"], "it is", True)):
        assert texts.answer(t, ids["think"], new, stops) == (said, stopped)
        asks = texts.until(t, stops)
        for n in (1, 4, None):  # as a sampler asks, after so many new tokens each
            found = [asks(torch.tensor(new[:k]), 0, n) for k in range(1, len(new) + 1)]
            assert any(found) == stopped and not any(found[: new.index(8) + 1])


def test_it_is_sampled_watched_and_talked_to_as_any_other(directory, checkpoint, tmp_path, monkeypatch, capsys):
    line = [f"--checkpoint={directory}", "--device=cpu", "--steps=4", "--entropy_bound=2"]
    html = tmp_path / "a.html"
    sample.main(
        [*line, "--prompt=what", "--num_samples=2", "--max_new_tokens=12", "--watch", "--delay=0", f"--html={html}"]
    )
    said = capsys.readouterr().out
    o = ours.SampleOptions(12, steps=4, entropy_bound=2.0)
    keys = dict(mask_id=VOCAB, eos_id=checkpoint.tokenizer.stop_ids)
    out = ours.generate(checkpoint.model, [torch.tensor([2, *checkpoint.tokenizer.encode("what")])] * 2, o, **keys)
    assert f"{sum(map(len, out.tokens)) - 10} tokens in {sum(out.num_forwards)} forwards" in said
    assert (
        "\u2591" in said and checkpoint.tokenizer.decode(out.tokens[0].tolist()) in said and html.stat().st_size > 10**4
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it\nand b\n"))
    sample.main([*line, "--chat", "--max_new_tokens=8", "--thoughts=empty", "--watch", "--delay=0"])
    said = capsys.readouterr().out
    assert said.count("model> ") == 2 and "decoded by diffusion_gemma" in said


def test_tasks_ask_it_as_any_other(checkpoint):
    """Likelihoods, what greedy decoding writes, and texts, of requests that share a batch."""
    asks = harness.Answers(checkpoint, algorithms.load("diffusion_gemma"), 4)
    pairs = [([2, 13, 14], [15, 16]), ([2, 17], [18] * 9), ([2, 13], [])]
    found = asks("likelihood", ours.LikelihoodOptions("left_to_right"), pairs)
    prompts, targets = zip(*pairs)
    want = ours.log_likelihood(checkpoint.model, prompts, targets, ours.LikelihoodOptions("left_to_right"))
    assert [a["logp"] for a in found] == pytest.approx(want.tolist(), rel=1e-5) and found[0]["forwards"] == 1
    o = ours.SampleOptions(0, steps=3, temperature=0.0)
    (greedy,) = asks("greedy", o, [([2, 13, 14], [15] * 3)])
    assert greedy == {"same": False, "forwards": 3, "seconds": greedy["seconds"]}
    text, other = asks("text", replace(o, max_new_tokens=12), [([2, 13, 14], (" ",)), ([2, 17, 18, 19], (" ",))])
    assert " " not in text["text"] + other["text"] and text["forwards"] >= 3


def rows_of(pairs, first=0, total=4):
    """(x0, loss's arguments) of prompts and answers, padded as train.py pads conversations."""
    rows = [torch.cat(pair) for pair in pairs]
    place = torch.arange(max(map(len, rows)))
    number = torch.stack([torch.where(place < len(x), first + i, -1) for i, x in enumerate(rows)])
    maskable = (number >= 0) & (place >= torch.tensor([[len(p)] for p, _ in pairs]))
    table = Texts(number, place.expand_as(number), first, len(rows), total, len(place), False)
    return torch.nn.utils.rnn.pad_sequence(rows, True), dict(maskable=maskable, texts=table, mask_id=VOCAB, seed=7)


def test_a_loss_is_the_sum_of_its_rows_whatever_they_share_a_batch_with(checkpoint):
    pairs = list(zip(PROMPTS, (torch.arange(13, 13 + n) for n in (2, 19, 8, 11))))
    found = {}
    for keys in (dict(), dict(objective="noised_ce", passes=1), dict(objective="all_ce", ar_weight=0.5)):
        o = ours.LossOptions(**keys)
        x0, given = rows_of(pairs)
        whole = ours.loss(checkpoint.model, x0, o, denominator=1, **given).item()
        alone = [rows_of([pair], i) for i, pair in enumerate(pairs)]
        parts = [ours.loss(checkpoint.model, x, o, denominator=1, **given).item() for x, given in alone]
        assert whole == pytest.approx(sum(parts), rel=1e-5) and whole > 0
        found[o.objective, o.ar_weight] = whole
    exact = ours.LikelihoodOptions("left_to_right")
    x0, given = rows_of(pairs)
    bare = ours.loss(checkpoint.model, x0, replace(o, ar_weight=0.0), denominator=1, **given).item()
    nats = -ours.log_likelihood(checkpoint.model, *zip(*pairs), exact).sum().item()
    assert found["all_ce", 0.5] - bare == pytest.approx(0.5 * nats, rel=1e-5)


def test_adapters_learn_are_shared_by_both_passes_and_become_the_weights(directory, tmp_path):
    model = lora.add_lora(ckpt.load(directory, whole=True).model, 4, 8.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * (7 + 6) and not any("vision" in n or "router" in n or "experts" in n for n in names)
    pairs, optimizer = [(x[:6], x[:1].repeat(9)) for x in PROMPTS], torch.optim.Adam(trained, 0.02)
    x0, given = rows_of(pairs)
    values = []
    for _ in range(12):
        value = ours.loss(model, x0, ours.LossOptions(ar_weight=0.1), **given)  # the same noise in every step
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    found = []
    for recompute in (False, True):  # train.py's, of the bidirectional pass: its prefix must still be what it was
        if recompute:
            model.train().hf.gradient_checkpointing_enable()
        optimizer.zero_grad()
        ours.loss(model, x0, **given).backward()
        found.append(torch.cat([p.grad.flatten() for p in trained]))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6) and found[0].abs().max() > 1e-3
    keys = dict(maskable=given["maskable"], real=given["texts"].mask())
    adapted = ours.nelbo(model.eval(), x0, **keys)
    merged, plain = lora.merge(model), ckpt.load(directory)
    assert torch.allclose(ours.nelbo(merged, x0, **keys), adapted, rtol=1e-4)
    path, facts = tmp_path / "merged", {k: plain.facts[k] for k in ("architecture", "hf_config")}
    weights = dict(merged.named_parameters())
    ckpt.save(path, weights, merged.config, plain.tokenizer, directory, "diffusion_gemma", facts)
    again = ckpt.load(path)
    assert again.algorithm == "diffusion_gemma" and again.tokenizer.mask_id == VOCAB
    assert torch.allclose(ours.nelbo(again.model, x0, **keys), adapted, rtol=1e-4)
    with pytest.raises(ValueError, match="packing: canvases follow one prompt"):
        ours.loss(model, x0, **given | {"texts": replace(given["texts"], packed=True)})
