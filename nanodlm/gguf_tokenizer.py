"""The tokenizer of a GGUF file. It has tokens, merges or scores, and the name of the rule by which a text is cut into
words before its bytes are merged; the rules themselves are in llama.cpp (src/llama-vocab.cpp), and here as the models'
own tokenizer.json has them."""

UNUSED, CONTROL, ADDED = 5, 3, 4  # kinds of tokens: without a text, markup, whole words that are never cut

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|LINES|\s+(?!\S)|\s+"
CUTS = {  # how a text is cut before its bytes are merged; "": as GPT-2 does, digits: that, and each digit by itself
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais"), ""),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), "digits"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), WORDS.replace("DIGITS", r"\p{N}").replace("LINES", r"\s*[\r\n]+")),
    "llama-bpe": WORDS.replace("DIGITS", r"\p{N}{1,3}").replace("LINES", r"\s*[\r\n]+"),
    "llada-moe": WORDS.replace("DIGITS", r"\p{N}").replace("LINES", r"\s*[\r\n]"),
}
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}


def tokenizer_of(meta):
    """(tokenizers.Tokenizer, tokenizer_config.json, the ids that config.json names), by a GGUF file's metadata."""
    import tokenizers as T

    def get(key, default=None):
        return meta.get(f"tokenizer.ggml.{key}", default)

    tokens, model, rule = get("tokens"), get("model"), get("pre", "")
    kinds = get("token_type") or [1] * len(tokens)
    if not rule and meta["general.architecture"] in ("gpt2", "qwen2", "qwen3"):
        rule = "gpt-2" if meta["general.architecture"] == "gpt2" else "qwen2"  # files older than the key
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    roles = {r: get(f"{key}_token_id") for r, key in ROLES.items() if get(f"{key}_token_id") is not None}
    if wrong := [f"{r}={i}" for r, i in roles.items() if not 0 <= i < len(tokens)]:
        raise ValueError(f"its {wrong[0]} is not one of its {len(tokens)} tokens")
    said = {f"{r}_token": tokens[i] for r, i in roles.items()}
    if model == "gpt2" and rule in CUTS:
        core = byte_level(vocab, meta["tokenizer.ggml.merges"], rule, bool(get("add_space_prefix", False)))
    elif model == "llama" and get("scores"):
        core = sentence_pieces(vocab, get("scores"), kinds, said.get("unk_token"), get("add_space_prefix", True))
    else:
        raise ValueError(f"its tokenizer ({model}, {rule or 'no rule'}) is not one of llama and {', '.join(CUTS)}")
    core.add_tokens([T.AddedToken(t, normalized=False) for t, i in vocab.items() if kinds[i] == ADDED])
    markup = [t for t, i in vocab.items() if kinds[i] == CONTROL or t == said.get("unk_token") and model == "llama"]
    core.add_special_tokens([T.AddedToken(t, normalized=False) for t in markup])
    first, last = get("add_bos_token", model == "llama" or rule == "llama-bpe"), get("add_eos_token", False)
    frame = [said.get("bos_token") if first else None, "$A", said.get("eos_token") if last else None]
    frame = [t for t in frame if t is not None]
    if len(frame) > 1:
        around = [(t, vocab[t]) for t in frame if t != "$A"]
        core.post_processor = T.processors.TemplateProcessing(single=frame, special_tokens=around)
    ids = {f"{r}_token_id": i for r, i in roles.items() if r != "unk"}
    if get("eot_token_id", get("eos_token_id")) != get("eos_token_id"):
        ids["eos_token_id"] = [i for i in (get("eos_token_id"), get("eot_token_id")) if i is not None]
    template = meta.get("tokenizer.chat_template")
    said |= {"chat_template": template} if template else {}
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return core, {**keys, **said}, ids


def byte_level(vocab, merges, rule, space):
    """GPT-2's and its descendants': bytes, merged within words."""
    import tokenizers as T

    cut, P = CUTS[rule], T.pre_tokenizers
    pairs = [tuple(m.split(" ", 1)) for m in merges]
    if wrong := [m for m, pair in zip(merges, pairs) if len(pair) < 2]:
        raise ValueError(f"its merge {wrong[0]!r} is no pair of tokens")
    core = T.Tokenizer(T.models.BPE(vocab, pairs, ignore_merges=rule == "llama-bpe"))
    core.pre_tokenizer = P.ByteLevel(add_prefix_space=space, use_regex=cut in ("", "digits"))
    if cut:
        first = P.Digits(individual_digits=True) if cut == "digits" else P.Split(T.Regex(cut), "isolated")
        core.pre_tokenizer = P.Sequence([first, core.pre_tokenizer])
    core.normalizer = T.normalizers.NFC() if rule in ("qwen2", "deepseek-r1-qwen") else None
    core.decoder = T.decoders.ByteLevel()
    return core


def sentence_pieces(vocab, scores, kinds, unknown, space):
    """Llama 2's: characters, merged by the scores of what they give; unknown ones as bytes."""
    import tokenizers as T

    pairs = []
    for word, i in vocab.items():
        if kinds[i] == 1:
            cuts = [(word[:n], word[n:]) for n in range(1, len(word))]
            pairs += [(-scores[i], vocab[a], vocab[b], (a, b)) for a, b in cuts if a in vocab and b in vocab]
    pairs = [pair[3] for pair in sorted(pairs)]
    core = T.Tokenizer(T.models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    N, D = T.normalizers, T.decoders
    core.normalizer = N.Sequence([*([N.Prepend("\u2581")] if space else []), N.Replace(" ", "\u2581")])
    strip = [D.Strip(" ", 1, 0)] if space else []
    core.decoder = D.Sequence([D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse(), *strip])
    return core
