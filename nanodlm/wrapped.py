"""Models that are none of our families, through transformers: slower, with Transformer's interface."""

import re
import sys

import torch

from model import Config, KVCache
from nanodlm.families import BERT_IGNORE, FAMILIES
from nanodlm.gemma import DiffusionGemma
from nanodlm.guard import still
from nanodlm.hub import first_line
from nanodlm.weights import header, refuse, weight_files, whole_numbers


class Wrapped(torch.nn.Module):
    """Any other masked or causal language model of `transformers`, with Transformer's interface. Its cache holds the
    tokens instead of their keys and values: always exact, but everything is computed anew. A causal one that was
    converted (config.causal is false) is told by its mask that it may look ahead."""

    def __init__(self, hf, causal):
        super().__init__()
        self.hf, self.decoder, self.followed = hf, causal, {}
        length = getattr(hf.config, "max_position_embeddings", 0) or 2048
        self.first = 0  # what the first position is called: padding_idx + 1 among RoBERTa's descendants
        for name, table in hf.named_modules():
            if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
                self.first = table.padding_idx + 1
        length -= self.first
        self.config = Config(vocab_size=hf.get_output_embeddings().weight.shape[0], seq_len=length, causal=causal)

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        B, T = ids.shape
        whole = mask is None or torch.is_tensor(mask) and (mask.dim() == 2 or cache is None and mask.shape[-2] == T)
        if not whole:
            raise ValueError("this model runs through transformers, which has no attention by blocks; use mdlm or ar")
        if cache is None:
            order = {} if positions is None else {"position_ids": positions.clamp(min=0) + self.first}
            logits = self.hf(input_ids=ids, attention_mask=self.attention_mask(mask, ids), **order).logits
        else:
            positions = cache.next_positions(T) if positions is None else positions
            slots = cache.reserve(positions, mask)
            tokens = cache.write(0, slots, *[ids[:, None, :, None]] * 2)[0][:, 0, :, 0]
            filled = cache.mine(cache.filled)[:, cache.visible]
            logits = self.hf(input_ids=tokens, attention_mask=self.attention_mask(filled, tokens)).logits
            at = (positions - int(self.config.shift)).clamp(0, cache.size - 1)
            logits = logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[2]))
        if self.config.shift and cache is None:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]

    def attention_mask(self, mask, ids):
        """transformers' form of a mask: 2-D where it is one of real tokens and the model follows it, else 4-D, 0 or the
        least number; None where there is nothing to say."""
        ahead = self.decoder and not self.config.causal
        if mask is not None and mask.dim() == 2:
            mask = None if mask.all() else mask
        if mask is None and not ahead:
            return None
        if not ahead and mask.dim() == 2 and (self.decoder or self.follows("padding")):
            return mask.long()
        if not self.follows("pairs"):
            what = "padding: give it texts of one length" if mask is not None and mask.dim() == 2 else "who sees whom"
            raise ValueError(f"{type(self.hf).__name__}, through transformers, does not follow a mask of {what}")
        if mask is None or mask.dim() == 2:
            mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            mask = mask[:, None].expand(-1, ids.shape[1], -1)
        return additive((mask[:, None] if mask.dim() == 3 else mask).expand(len(ids), -1, -1, -1), self.hf.dtype)

    def follows(self, kind):
        """Whether the model obeys a mask of this kind, which some ignore without a word: tried once, and not compiled
        (said here, as torch's compiler takes a second to import)."""
        if kind not in self.followed:
            self.followed[kind] = torch.compiler.disable(self.obeys)(kind)
        return self.followed[kind]

    def obeys(self, kind):
        """follows(), on four tokens of which the last one, or the third, is another. Who may not see it must not
        notice; of two pairs, who may must."""
        ids = torch.tensor([[8, 9, 10, 11], [8, 9, 10, 12], [8, 9, 12, 11]], device=self.hf.device)
        at = torch.arange(4, device=ids.device)
        mask = (at < 3).long().expand(3, -1)
        if kind == "pairs":
            mask = additive((at // 2 == at[:, None] // 2).expand(3, 1, -1, -1), self.hf.dtype)
        with still(self.hf):
            try:
                a, last, third = self.hf(input_ids=ids % self.config.vocab_size, attention_mask=mask).logits
            except Exception:  # whatever a model says to a mask that it does not take
                return False
        last, third = ((a - b).abs().amax(-1).tolist() for b in (last, third))
        blind = last[:2] + third[:2] if kind == "pairs" else last[:3]
        return max(blind) <= 1e-3 * max(last) and (kind == "padding" or last[2] > 0)

    def head(self, x):
        return x

    def forward(self, *args, **kwargs):
        return self.hidden(*args, **kwargs)

    def cache(self, batch, size):
        one = Config(n_layer=1, n_head=1, n_embd=2, head_dim=1, position="none")
        return KVCache(one, batch, min(size, self.config.seq_len), self.hf.device, torch.int64)

    def num_params(self):
        return sum(p.numel() for p in self.parameters())


def additive(mask, dtype):
    """A bool mask as what is added to attention's logits."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def is_causal(name):
    return "ForCausalLM" in name or "LMHead" in name


def load_wrapped(path, content, device, dtype, pickle):
    """(Wrapped or DiffusionGemma, algorithm) for an architecture that families.py does not have."""
    import transformers

    name = content["architectures"][0]
    causal, gemma = is_causal(name), name == "DiffusionGemmaForBlockDiffusion"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    auto = getattr(transformers, name) if gemma and hasattr(transformers, name) else auto
    if not causal and not gemma and "MaskedLM" not in name:
        sys.exit(f"{path}: {name} is no masked or causal language model; known by name are {', '.join(FAMILIES)}")
    try:
        hf, said = auto.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as e:
        sys.exit(f"{path}: {name} is unknown here, and transformers cannot load it: {first_line(e)}")
    wrong = [f"{n} is missing" for n in sorted(said["missing_keys"])]
    if not content.get("quantization_config"):  # transformers would take them for weights
        own, kinds = dict(hf.named_parameters()), {}
        for file in weight_files(path, pickle):
            kinds |= {n: kind for n, (_, kind) in header(file)[0].items() if n in own}
        wrong += whole_numbers(kinds)
    wrong += [f"{n} has shape {tuple(a)}, config.json says {tuple(b)}" for n, a, b in sorted(said["mismatched_keys"])]
    known = rf"{BERT_IGNORE}|.*rotary_emb\.inv_freq"
    wrong += [
        f"{n} is not part of this architecture" for n in sorted(said["unexpected_keys"]) if not re.fullmatch(known, n)
    ]
    if wrong:
        refuse(path, wrong)
    if gemma:
        return DiffusionGemma(hf.to(device)), "diffusion_gemma"
    print(f"{name} runs through transformers: slower, without a cache of keys and values")
    return Wrapped(hf.to(device), causal), "ar" if causal else "mdlm"
