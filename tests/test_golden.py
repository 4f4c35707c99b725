"""Golden tests: what the shipped checkpoint writes, byte for byte, and how well it predicts."""

from pathlib import Path

import pytest
import torch

import mdlm
import sample
from nanodlm import checkpoint as ckpt
from nanodlm import fast_mdlm
from nanodlm import text as texts

CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "pydocs_mdlm"
TEXT = """class Stack:
Return the number of items in the list.  If the optional argument is given, it must be a string or None.

def write(self, data):
Write the given data to the underlying stream and return the number of bytes written."""


@pytest.fixture(scope="module")
def checkpoint():
    return ckpt.load(CHECKPOINT)


def greedy(checkpoint, text, **options):
    s = sample.Settings(infill=text) if "[MASK" in text else sample.Settings(prompt=text)
    canvas, left = sample.canvas_of(s, checkpoint.tokenizer)
    options = fast_mdlm.SampleOptions(temperature=0.0, **options)
    out = fast_mdlm.generate(checkpoint.model, [canvas], options, mask_id=checkpoint.tokenizer.mask_id)
    return texts.filled_in(checkpoint.tokenizer, out.tokens[0].tolist(), left)


def test_the_checkpoint_is_small():
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) < 8e6


def test_greedy_continuation_is_golden(checkpoint):
    assert greedy(checkpoint, "Return the", max_new_tokens=12) == GREEDY


def test_greedy_infilling_is_golden(checkpoint):
    assert greedy(checkpoint, "If the file does not exist, an [MASK*3] is raised.", max_new_tokens=0) == INFILLED


def test_the_bound_on_a_known_text_is_golden(checkpoint):
    ids = torch.tensor([checkpoint.tokenizer.encode(TEXT)])
    nats = mdlm.nelbo(checkpoint.model, ids, mask_id=checkpoint.tokenizer.mask_id, samples=16)
    assert nats.item() / len(TEXT.encode()) / torch.tensor(2.0).log().item() == pytest.approx(BITS_PER_BYTE, abs=2e-3)


GREEDY = "Return the name of the current file.\n\ndef get(self"
INFILLED = "If the file does not exist, an OSError is raised."
BITS_PER_BYTE = 0.8192
