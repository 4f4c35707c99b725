"""Lesson 27: the answer, and wrong answers with a word of the hint that each must get."""

import torch

from nanodlm import noise


def letter(u, vocab_size, mask_id):
    i = (u * (vocab_size - 1)).long()
    return i + (i >= mask_id).long()


def stays(p, alpha_s, alpha_t, N):
    return alpha_t / alpha_s * (alpha_s * p + (1 - alpha_s) / N) / (alpha_t * p + (1 - alpha_t) / N)


def step(model, x, given, alpha_s, alpha_t, uniform, mask_id, kept=stays, masked=True, may=None, which=1, noisy=letter):
    logits = model(x[None])[0].double()
    V = logits.shape[1]
    if masked:
        logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
    a = 1 - kept(logits.softmax(1).gather(1, x[:, None])[:, 0], alpha_s, alpha_t, V - 1)
    u, v = uniform(0), uniform(which)
    drawn = torch.where(u < a * alpha_s, noise.draw(logits, v), noisy(v, V, mask_id))
    return torch.where((u < a) & (may(given, logits, x) if may else ~given), drawn, x)


def other(**keys):
    return dict(step=lambda *case: step(*case, **keys))


def in_place(model, x, *rest):
    x[:] = step(model, x, *rest)
    return x


def no_noise(model, x, given, alpha_s, alpha_t, uniform, mask_id):
    logits = model(x[None])[0].double().index_fill(1, torch.tensor([mask_id]), -torch.inf)
    a = 1 - stays(logits.softmax(1).gather(1, x[:, None])[:, 0], alpha_s, alpha_t, logits.shape[1] - 1)
    return torch.where((uniform(0) < a) & ~given, noise.draw(logits, uniform(1)), x)


WRONG = {
    "the mask is noise": ("never the mask", dict(letter=lambda u, V, m: (u * V).long())),
    "not moved up": ("one further", dict(letter=lambda u, V, m: (u * (V - 1)).long())),
    "alpha_t": ("alpha_t / alpha_s", dict(stays=lambda p, a, b, N: a * stays(p, a, b, N))),
    "prior": ("given that z is there", dict(stays=lambda p, a, b, N: b / a + 0 * p)),
    "upside down": ("above, and q_t", dict(stays=lambda p, a, b, N: (b / a) ** 2 / stays(p, a, b, N))),
    "the other": ("chance to stay", dict(stays=lambda *case: 1 - stays(*case))),
    "p alone": ("mixed with noise", dict(stays=lambda p, a, b, N: b / a * p)),
    "never stays": ("stays where no noise came", other(kept=lambda p, a, b, N: 0 * p)),
    "alpha_t in the step": ("alpha_t / alpha_s", other(kept=lambda p, a, b, N: a * stays(p, a, b, N))),
    "masks as noise": ("never the mask", other(noisy=lambda v, V, m: (v * V).long())),
    "no noise": ("and else any letter", dict(step=no_noise)),
    "no corrections": ("may change", other(may=lambda given, logits, x: ~given & (logits.argmax(1) != x))),
    "prompts, too": ("given", other(may=lambda given, logits, x: given | True)),
    "the mask, too": ("-inf", other(masked=False)),
    "one number": ("uniform(1)", other(which=0)),
    "in place": ("x.clone()", dict(step=in_place)),
}
