"""Many short runs of two processes, with and without other work beside them: none may hang, all must end well.

python tests/stress.py 40        not part of the suite: a run takes 10 seconds, of one in six that hung, 120
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--seq_len=32", "--batch_size=4", "--device=cpu"]
SMALL += ["--eval_windows=4", "--max_iters=4", "--eval_interval=2"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *SMALL]


def main(runs):
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
        prepare = [sys.executable, ROOT / "data/shakespeare_char/prepare.py", f"--input={text}", f"--out={folder}/data"]
        subprocess.run(prepare, check=True)
        ended = []
        for i in range(runs):
            load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(i % 2 * 2)]
            words = [f"--dataset={folder}/data", f"--out_dir={folder}/{i}"]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            run = subprocess.Popen(
                [*LAUNCH, *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
            )
            try:
                ended.append(run.wait(120))
            except subprocess.TimeoutExpired:
                ended.append("hung")
                run.terminate()
                run.wait()
            for other in load:
                other.kill()
            print(f"run {i + 1}: {ended[-1]}", flush=True)
        print(f"{ended.count(0)} of {runs} ended well, {ended.count('hung')} hung")
        return int(ended.count(0) < runs)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
