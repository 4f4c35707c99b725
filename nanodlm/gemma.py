"""DiffusionGemma's network (Google, 2026), through the class that `transformers` has for it. How it is decoded,
measured and fine-tuned: diffusion_gemma.py.

One set of weights, two passes. The causal pass (`transformers` calls it the encoder) reads prompts and finished text
and keeps their keys and values; the bidirectional one (the decoder) sees those and a canvas, 256 tokens any of which
may be noise, a token drawn uniformly: there is no mask token. Its second input is what it predicted in the step before
(self-conditioning)."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model import Config


@dataclass
class Prefix:
    """What the causal pass has read, of several rows: on the left of shorter ones there is padding."""

    cache: object  # transformers' DynamicCache; sliding layers hold no more than their window
    real: torch.Tensor  # bool (B, T)

    def keep(self, rows):
        """The prefix of some of the rows, int64; this one stays what it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(rows)
        return Prefix(cache, self.real[rows])


class DiffusionGemma(torch.nn.Module):
    """transformers' DiffusionGemmaForBlockDiffusion (hf) with what this house asks of a network."""

    decoder = False  # no causal network that has to be told to look ahead

    def __init__(self, hf):
        super().__init__()
        text = hf.config.text_config
        self.hf, self.canvas = hf, hf.config.canvas_length
        self.begin = [text.bos_token_id] if text.bos_token_id is not None else []  # what stands in front of no prompt
        self.images = {i for i in (hf.config.image_token_id, hf.config.boi_token_id, hf.config.eoi_token_id) if i}
        for module in hf.modules():  # what belongs to its weights, such as a scale of each layer, is written with them
            for name in module._buffers.keys() - module._non_persistent_buffers_set:
                module.register_parameter(name, torch.nn.Parameter(module._buffers.pop(name), requires_grad=False))
        self.config = Config(vocab_size=text.vocab_size, seq_len=text.max_position_embeddings)

    def hidden(self, ids, prefix=None, causal=False, before=None, mask=None, rows=None, **others):
        """A pass for the tokens ids (B, T) behind each row's prefix; `rows`: of its (B, T, …) these flat ones.

        causal   the causal pass: the prefix grows by the tokens, and the last hidden states are for head()
        before   else the logits of a canvas, fp32 (B, T, V), given those of the step before, or None
        mask     bool (B, T): which tokens are real; the others, on the left, are seen by none"""
        if prefix is None or others:
            raise ValueError("DiffusionGemma reads a prefix and a canvas: use --algorithm=diffusion_gemma")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        # A row's positions are those that it has alone.
        at = prefix.real.sum(1, keepdim=True) + (mask.cumsum(1) - 1).clamp(min=0)
        real = torch.cat([prefix.real, mask], 1)
        seen = None if real.all() else real
        if causal:
            keys = dict(past_key_values=prefix.cache, position_ids=at, attention_mask=seen)
            x, prefix.real = self.hf.model.encoder(ids, **keys).last_hidden_state, real
        else:
            keys = dict(past_key_values=prefix.cache, decoder_position_ids=at, decoder_attention_mask=seen)
            before = before if before is None else before.to(self.hf.device, self.hf.dtype)
            x = self.hf(decoder_input_ids=ids, self_conditioning_logits=before, **keys).logits
        return x if rows is None else x.flatten(0, 1)[rows]

    def forward(self, *args, **kwargs):
        return self.hidden(*args, **kwargs)

    def head(self, x):
        """Logits, fp32, of the causal pass's hidden states: there is no head for them but the canvas's, which public
        code trains on both (trl's PR 6003, NeMo's 2506)."""
        cap = self.hf.final_logit_softcapping
        return torch.tanh(self.hf.lm_head(x).float() / cap) * cap

    def read(self, texts):
        """(Prefix, hidden states (B, T, D)) of texts, 1-D int64 tensors that begin a row, with padding on the left."""
        import transformers

        texts = [x if len(x) else x.new_tensor(self.begin) for x in texts]
        if not all(map(len, texts)):
            raise ValueError("the model has no begin-of-text, so that it needs a prompt of at least a token")
        T, device = max(map(len, texts)), self.hf.device
        ids = torch.stack([F.pad(x.to(device), (T - len(x), 0)) for x in texts])
        mask = torch.arange(T, device=device) >= T - torch.tensor([len(x) for x in texts], device=device)[:, None]
        cache = transformers.DynamicCache(config=self.hf.config.get_text_config(decoder=True))
        prefix = Prefix(cache, mask[:, :0])
        return prefix, self.hidden(ids, prefix, causal=True, mask=mask)

    def follow(self, prefix, rows, ids):
        """The prefix of some rows (a list), behind which the tokens ids (b, T) have been read."""
        prefix = prefix.keep(torch.tensor(rows, device=self.hf.device))
        self.hidden(ids.to(self.hf.device), prefix, causal=True)
        return prefix

    @property
    def adapted(self):
        """What low-rank adapters stand beside: attention and the dense part of each layer, a list of its linear layers.
        The experts have none, being no linear layers; routers, the head and the vision tower stay as they are, too."""
        layers = self.hf.model.decoder.layers
        return torch.nn.ModuleList([part for x in layers for part in (x.self_attn, x.mlp)])

    def tie(self, names):
        """Let the causal pass have the very layers of these names that the other one has, as it has their weights."""
        for name in names:
            parent, _, leaf = name.replace("model.decoder.", "model.encoder.language_model.").rpartition(".")
            setattr(self.hf.get_submodule(parent), leaf, self.hf.get_submodule(name))

    def follows(self, kind):
        """What of masks it obeys: that of padding. Several texts in a row it cannot tell apart."""
        return kind == "padding"

    def num_params(self):
        return sum(p.numel() for p in self.parameters())
