"""What would be needed is counted without building it, and said before anything is allocated."""

import random
from dataclasses import replace

import pytest
import torch

from model import Config, Transformer
from nanodlm import memory


def test_a_network_is_counted_without_building_it():
    draw = random.Random(0)
    for _ in range(200):
        heads = draw.choice([1, 2, 4])
        c = Config(
            vocab_size=draw.randint(1, 50), seq_len=draw.randint(1, 20), n_layer=draw.randint(1, 3), n_head=heads,
            n_kv_head=draw.choice([0, 1]), n_embd=8 * heads, head_dim=draw.choice([0, 4]), mlp_dim=draw.choice([0, 12]),
            mlp=draw.choice(["swiglu", "geglu", "gelu", "relu2"]), norm=draw.choice(["rms", "layer"]),
            head_dense=draw.choice(["none", "plain", "bias"]), position=draw.choice(["rope", "learned", "none"]),
            position_offset=draw.choice([0, 2]), token_types=draw.choice([0, 2]),
            **{name: draw.random() < 0.5 for name in SWITCHES},
        )  # fmt: skip
        with torch.device("meta"):
            model = Transformer(c)
        assert memory.parameters(c) == model.num_params(), c


SWITCHES = "norm_bias norm_after norm_embed norm_first qk_norm qkv_bias out_bias mlp_bias head_bias tied".split()


def test_what_there_is_is_less_than_all_and_what_is_too_much_is_said_in_gigabytes():
    there = memory.available()
    assert 2**20 < there < 2**50
    memory.require(there / 100, "little")
    with pytest.raises(SystemExit, match=r"^much needs at least [\d,.]+ GB of memory, and [\d,.]+ GB are free"):
        memory.require(10 * there, "much")


def test_more_layers_than_the_file_can_hold_are_refused_before_they_are_built(tmp_path):
    c = Config(vocab_size=9, seq_len=4, n_layer=2, n_head=1, n_embd=4)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4 * memory.parameters(c)))
    memory.fits(c, [file], "x/config.json")
    with pytest.raises(
        SystemExit, match="^x/config.json describes .*n_layer=2.* n_embd=400000,.* bytes; one of the two"
    ):
        memory.fits(replace(c, n_embd=400_000, head_dim=0, mlp_dim=0), [file], "x/config.json")
