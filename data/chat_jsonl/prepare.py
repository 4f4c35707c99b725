"""chat_jsonl: your own conversations, from a file: JSONL, one a line, or .json (an array), .parquet, .csv:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "response": "…"}          or question/answer, instruction/(input/)output

train.py takes the file itself as a data set and makes the token files by itself; to make them beforehand:

    python data/chat_jsonl/prepare.py --file=my.jsonl --tokenizer=checkpoints/modernbert-base
    python train.py config/modernbert_chat.py --dataset=my.jsonl
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, conversations  # noqa: E402


def records(streaming=False):
    return sys.exit("chat_jsonl is any file of conversations: give the file itself as the data set, --dataset=my.jsonl")


if __name__ == "__main__":
    console.run(conversations.main, "chat_jsonl", __doc__)
