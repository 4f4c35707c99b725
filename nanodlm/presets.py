"""How to decode: what a preset (config/presets) says, what was said instead, and what one option means for others.

A preset is a file of plain settings, as a published sampler has them. A checkpoint may name one; what is said on the
command line, or by a task, goes before it.
"""

import sys
from dataclasses import fields

from nanodlm import algorithms, configurator, fast_bd3lm
from nanodlm.files import ROOT, holding

SURE = ("threshold", "factor", "entropy_bound")  # quotas that reveal whatever is sure enough; each has an option


def part(values, *classes):
    """Those of the values, a dict, that are fields of one of the dataclasses."""
    return {k: v for k, v in values.items() if k in {f.name for c in classes for f in fields(c)}}


def read(name, algorithm):
    """What a preset says, {key: (value, where)}; exits where there is none of that name, or it says what means nothing
    to any sampler."""
    there = [p.stem for p in holding(ROOT / "config/presets", "*.py")]
    if name not in (*there, "none"):
        sys.exit(f"no preset {name!r}; there are {', '.join(there)}, and none")
    preset = {} if name == "none" else configurator.read_file(str(ROOT / f"config/presets/{name}.py"))
    known = part(preset, algorithm.SampleOptions, fast_bd3lm.SampleOptions)  # which has them all
    for key in preset.keys() - known.keys():
        sys.exit(f"the preset {name} has the unknown key {key!r} ({preset[key][1]})")
    return preset


def check(name, algorithm):
    """Exit where an algorithm, a module of the top floor, cannot be decoded by a preset."""
    options = algorithms.engine(algorithm).SampleOptions
    configurator.fill(part(read(name or "none", algorithm), options), options, quiet=True)


def settle(checkpoint, algorithm, said, name=""):
    """(preset's name or "", everything that is said, {key: (value, where)}) for a checkpoint. Without a name the preset
    is the model's own, of which another algorithm takes what it knows."""
    own = checkpoint.facts.get("preset")
    name = name or own or "none"
    preset = read(name, algorithm)
    if name == own or hasattr(algorithm.SampleOptions, "lookahead"):  # ours have all but a few, which mean nothing else
        preset = part(preset, algorithm.SampleOptions)
    if getattr(checkpoint.model.config, "block_size", 0):  # blocks as trained go before those of a preset
        preset.pop("block_size", None)
    means = {k: v for k, v in implied(preset, said).items() if hasattr(algorithm.SampleOptions, k)}
    return "" if name == "none" else name, preset | means | said


def implied(preset, said):
    """What the said options mean for those that nobody mentions."""
    found = {}
    for quota in SURE:
        if quota in said:
            found["quota"] = (quota, f"--{quota}")
    if (found | said).get("quota", ("",))[0] == "entropy_bound":
        found["order"] = ("entropy", "quota=entropy_bound")
    cached = (preset | said).get("cache", ("none",))[0] in ("prefix", "dual")
    if cached and not (preset | said).get("block_size", (0,))[0]:
        found["block_size"] = (32, "--cache")  # which keeps what is outside a block
    return found


def refuse_idle(options, said, config):
    """Exit where something was said that does nothing beside the other options, which a preset may say, or that names
    token ids that the network (model.Config) does not have."""
    for name in ("suppress", "last", "edit_ids"):
        for i in getattr(options, name, ()):
            if i >= config.vocab_size:
                sys.exit(f"{name}={i} is not one of the checkpoint's {config.vocab_size} token ids")
    if "top_k" in said and options.top_k > config.vocab_size:
        sys.exit(f"top_k={options.top_k} exceeds the checkpoint's {config.vocab_size} token ids; 0 draws among all")
    usual = {f.name: f.default for f in fields(options)}
    for name, why in idle(options).items():
        if name in said and getattr(options, name) != usual[name]:
            sys.exit(f"{name}={getattr(options, name)} ({said[name][1]}) does nothing with {why}; leave it out")


def idle(options):
    """{option that does nothing: because of what}, of those that there are: plain samplers have few, yours others."""
    found, names = {}, ("temperature", "measure", "order", "quota", "remask", "block_size", "method")
    temperature, measure, order, quota, remask, block_size, method = (getattr(options, name, None) for name in names)
    if hasattr(options, "jumps"):  # editflow
        return {
            k: "jumps=one, whose edits come when they come" for k in ("steps", "schedule") if options.jumps == "one"
        }
    if hasattr(options, "forget"):  # udlm
        own = ("forget", "schedule"), ("entropy_bound", "last_temperature", "stable", "sure")
        return dict.fromkeys(own[quota == "ancestral"], f"quota={quota}")
    if method in ("left_to_right", "confidence", "illada"):
        found |= dict.fromkeys(("mc_samples", "mc_batch"), f"method={method}, which draws no masks")
    if method == "nelbo":
        found["mc_batch"] = "method=nelbo, which spreads all masks evenly"
    if temperature == 0 and measure != "draw":
        found |= dict.fromkeys(("top_k", "top_p"), "temperature=0" + (f" and measure={measure}" if measure else ""))
        found["accept"] = "temperature=0, where a draft stands if it is the most probable token"
    if order in ("margin", "entropy") and measure == "token":
        found["measure"] = f"order={order}, which looks at no token"
    if order in ("random", "left_to_right"):
        found |= dict.fromkeys(("measure", "order_temperature", "last"), f"order={order}")
    if quota == "ancestral":
        found |= dict.fromkeys(("order", "measure", "last"), "quota=ancestral, which draws positions at random")
    if quota == "p2":
        found["schedule"] = "quota=p2, whose steps are equal"
    if quota != "steps":
        found["order_temperature"] = f"quota={quota}"
    if quota in SURE:
        idle_too = ("schedule",) if getattr(options, "capped", False) else ("steps", "schedule")
        found |= dict.fromkeys(idle_too, f"quota={quota}, which reveals whatever is sure enough")
    found |= {name: f"quota={quota}" for name in SURE if quota and name != quota}
    if getattr(options, "edit_threshold", 1) == 1:
        found["edit_steps"] = "edit_threshold=1, which edits nothing"
    if not remask:
        found |= dict.fromkeys(("remask_from", "remask_until"), "remask=0")
    if hasattr(options, "window"):
        found["lookahead"] = "algorithm=bd3lm, whose blocks see nothing of what comes after them"
    elif not block_size:
        found["lookahead"] = "block_size=0: there is nothing behind the one block"
    return {name: why for name, why in found.items() if hasattr(options, name)}
