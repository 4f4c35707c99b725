"""opc_sft: OpenCoder's second stage of instructions (OpenCoder-LLM/opc-sft-stage2), of which the Python is kept: all of
educational_instruct and package_instruct, and of the others the answers with a Python block.

train.py makes the token files by itself; to make them beforehand, for the checkpoint that will be trained:

    python data/opc_sft/prepare.py --tokenizer=checkpoints/modernbert-base
    python train.py config/modernbert_chat.py --dataset=opc_sft

A train.jsonl beside this file is read instead of the hub.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, conversations  # noqa: E402
from nanodlm.records import local_or_hub  # noqa: E402

NAME = "OpenCoder-LLM/opc-sft-stage2"


def records(streaming=False):
    yield from local_or_hub(HERE, NAME, "educational_instruct", "package_instruct", streaming=streaming)
    if not (HERE / "train.jsonl").is_file():
        others = local_or_hub(HERE, NAME, "evol_instruct", "mceval_instruct", streaming=streaming)
        yield from (record for record in others if "```python" in record["output"])


if __name__ == "__main__":
    console.run(conversations.main, "opc_sft", __doc__)
