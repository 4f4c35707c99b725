"""Lesson 7."""

import torch


def stratified(order, u):
    return (order + u) / len(order)


def spread(values):
    return values.mean(1).std()


WRONG = {
    "sorted": ("order[i]", dict(stratified=lambda o, u: (torch.arange(len(o)) + u) / len(o))),
    "u too wide": ("1/B wide", dict(stratified=lambda o, u: o / len(o) + u)),
    "no jitter": ("middle", dict(stratified=lambda o, u: (o + 0.5).double() / len(o))),
    "independent": ("in which stratum", dict(stratified=lambda o, u: u.expand(len(o)))),
    "from 1": ("from 0", dict(stratified=lambda o, u: (o + 1 + u) / len(o))),
    "of all values": ("first the mean", dict(spread=lambda v: v.std())),
    "variance": ("square root", dict(spread=lambda v: v.mean(1).var())),
    "standard error": ("one batch scatters more", dict(spread=lambda v: v.mean(1).std() / len(v) ** 0.5)),
}
