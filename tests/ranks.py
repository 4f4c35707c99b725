"""The two processes of a run, with the variables that torchrun gives them and a store of ours in place of its agent's;
forked from one that has read torch, which takes longer than most of what they do."""

import atexit
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

FORKS = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
READ = ["torch", "torch._dynamo", "torch.distributed.fsdp"]


@dataclass
class Rank:
    process: multiprocessing.Process
    place: Path  # a directory with what it says

    def said(self, stream):
        """What it wrote to "out" or "err"."""
        return (self.place / stream).read_text("utf-8")


def work(code, words, env, place):
    os.environ.update(env)
    for i, name in ((1, "out"), (2, "err")):
        stream = open(place / name, "w", encoding="utf-8", buffering=1)
        os.dup2(stream.fileno(), i)
        setattr(sys, "std" + name, stream)
    sys.argv = ["", *words]
    torch.set_num_threads(1)
    exec(compile(code, "<rank>", "exec"), {"__name__": "__main__"})


def start(code, words, **env):
    """Begin two processes that run a text of Python, with words as its arguments."""
    env |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = []
    FORKS.set_forkserver_preload(READ)  # of one server for all, which may be running: the course's grader has it, too
    for i in "01":
        place = Path(tempfile.mkdtemp(prefix="rank-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        args = code, list(map(str, words)), {**env, "RANK": i, "LOCAL_RANK": i}, place
        ranks.append(Rank(FORKS.Process(target=work, args=args), place))
        ranks[-1].process.start()
    return ranks


def run(code, words):
    """Run them to their end. Returns what the first one printed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = start(code, words, MASTER_PORT=str(store.port))
    for r in ranks:
        r.process.join(300)
    codes = [r.process.exitcode for r in ranks]
    for r in ranks:
        r.process.kill()
    assert codes == [0, 0], (codes, *(r.said("err")[-3000:] for r in ranks))
    return ranks[0].said("out")
