"""On a GPU what the CPU gives, and without waiting for it (`-k cuda` finds these tests by the name of their file)."""

import pytest
import torch

from experiments import same
from nanodlm.device import compiler_lacks

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", same.LOSSES)
def test_the_loss_and_its_gradients_are_the_cpus(name):
    nets = [same.tiny(device, causal=name == "ar") for device in ("cpu", DEVICE)]
    here, there = (same.loss_of(name, net, device) for net, device in zip(nets, ("cpu", DEVICE)))
    here.backward()
    there.backward()
    assert there.item() == pytest.approx(here.item(), rel=1e-5)
    for p, q in zip(*(net.parameters() for net in nets)):
        assert torch.allclose(p.grad, q.grad.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", same.SAMPLERS)
def test_the_tokens_are_the_cpus(name):
    assert same.tokens_of(name, DEVICE) == same.tokens_of(name, "cpu")


def test_logits_in_bfloat16_are_as_far_from_float32s_as_the_cpus():
    x = torch.arange(128)[None] * 37 % same.MASK
    with torch.no_grad():
        exact = same.tiny("cpu")(x)
        here, there = (same.tiny(d, torch.bfloat16)(x.to(d)).float().cpu() for d in ("cpu", DEVICE))
    assert (there - exact).abs().mean() < 2 * (here - exact).abs().mean()


@pytest.mark.parametrize("name", [n for n in same.SAMPLERS if not n.startswith(("plain", "ar"))])
def test_a_step_of_a_fast_sampler_waits_for_the_device_once_or_twice(name):
    """Twice where positions are chosen before tokens are drawn; and once for every prompt."""
    run, steps = same.sampler(name, DEVICE), []
    run(watch=steps.append)  # what is compiled is compiled now
    assert same.cuda_waits(run) <= len(same.PROMPTS) + (2 if name == "drawn" else 1) * len(steps)


@pytest.mark.parametrize("name", same.LOSSES)
def test_training_compiled_takes_steps_and_is_not_compiled_again_and_again(name):
    if lack := compiler_lacks(DEVICE):
        pytest.skip(lack)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = same.tiny(DEVICE, causal=name == "ar")
    compiled = torch.compile(model)
    for seed in range(6):  # of which each hides another number of tokens
        here, there = (same.loss_of(name, net, DEVICE, seed=seed) for net in (model, compiled))
        there.backward()
        assert there.item() == pytest.approx(here.item(), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
