"""How to decode: what a preset (config/presets) says, what was said instead, and what one option means for others.

A preset is a file of plain settings, as a published sampler has them. A checkpoint may name one; what is said on the
command line, or by a task, goes before it.
"""

import sys
from dataclasses import fields

from nanodlm import configurator

ROOT = configurator.ROOT
SURE = ("threshold", "factor", "entropy_bound")  # quotas that reveal whatever is sure enough; each has an option


def settle(checkpoint, algorithm, said, name=""):
    """(preset's name or "", everything that is said, {key: (value, where)}) for a checkpoint. Without a name the preset
    is the model's own, of which another algorithm takes what it knows."""
    own, there = checkpoint.facts.get("preset"), sorted(p.stem for p in (ROOT / "config" / "presets").glob("*.py"))
    name = name or own or "none"
    if name not in (*there, "none"):
        sys.exit(f"no preset {name!r}; there are {', '.join(there)}, and none")
    preset = {} if name == "none" else configurator.read_file(f"config/presets/{name}.py")
    if name == own:
        preset = {k: v for k, v in preset.items() if hasattr(algorithm.SampleOptions, k)}
    if getattr(checkpoint.model.config, "block_size", 0):  # blocks as trained go before those of a preset
        preset.pop("block_size", None)
    return "" if name == "none" else name, preset | implied(preset, said) | said


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
    for name in ("suppress", "last"):
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
    """{option that does nothing: because of what}, of those that there are: plain samplers have few."""
    o, found = options, {}
    if not hasattr(o, "quota"):  # ar
        return {"top_k": "temperature=0", "top_p": "temperature=0"} if o.temperature == 0 else {}
    measure = getattr(o, "measure", "network")
    if o.temperature == 0 and measure != "draw":
        found |= dict.fromkeys(("top_k", "top_p"), f"temperature=0 and measure={measure}")
    if o.order in ("margin", "entropy") and measure == "token":
        found["measure"] = f"order={o.order}, which looks at no token"
    if o.order == "random":
        found |= dict.fromkeys(("measure", "order_temperature", "last"), "order=random")
    if o.quota == "ancestral":
        found |= dict.fromkeys(("order", "measure", "last"), "quota=ancestral, which draws positions at random")
    if o.quota != "steps":
        found["order_temperature"] = f"quota={o.quota}"
    if o.quota in SURE:
        found |= dict.fromkeys(("steps", "schedule"), f"quota={o.quota}, which reveals whatever is sure enough")
    found |= {name: f"quota={o.quota}" for name in SURE if name != o.quota}
    if not getattr(o, "remask", 0.0):
        found |= dict.fromkeys(("remask_from", "remask_until"), "remask=0")
    if hasattr(o, "window"):
        found["lookahead"] = "algorithm=bd3lm, whose blocks see nothing of what comes after them"
    elif not getattr(o, "block_size", 0):
        found["lookahead"] = "block_size=0: there is nothing behind the one block"
    return {name: why for name, why in found.items() if hasattr(o, name)}
