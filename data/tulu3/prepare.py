"""tulu3: Tulu 3's mixture for supervised fine-tuning, 939,000 conversations (allenai/tulu-3-sft-mixture).

train.py makes the token files by itself; to make them beforehand, for the checkpoint that will be trained:

    python data/tulu3/prepare.py --tokenizer=checkpoints/modernbert-base
    python train.py config/modernbert_chat.py --dataset=tulu3

A train.jsonl beside this file is read instead of the hub.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, conversations  # noqa: E402
from nanodlm.records import local_or_hub  # noqa: E402


def records(streaming=False):
    return local_or_hub(HERE, "allenai/tulu-3-sft-mixture", streaming=streaming)


if __name__ == "__main__":
    console.run(conversations.main, "tulu3", __doc__)
