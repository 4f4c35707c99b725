"""smoltalk: a million conversations written for SmolLM2 (HuggingFaceTB/smoltalk, its configuration `all`).

train.py makes the token files by itself; to make them beforehand, for the checkpoint that will be trained:

    python data/smoltalk/prepare.py --tokenizer=checkpoints/modernbert-base
    python train.py config/modernbert_chat.py --dataset=smoltalk

A train.jsonl beside this file is read instead of the hub.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, conversations  # noqa: E402
from nanodlm.records import local_or_hub  # noqa: E402


def records(streaming=False):
    return local_or_hub(HERE, "HuggingFaceTB/smoltalk", "all", streaming=streaming)


if __name__ == "__main__":
    console.run(conversations.main, "smoltalk", __doc__)
