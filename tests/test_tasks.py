"""lm-eval's tasks and the rows of their results: real tasks, settings and who overrides whom, bad input, tables, plots,
and samples under a judge."""

import functools
import json
import math
import os
import shutil
from dataclasses import asdict

import datasets
import evals
import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
import pytest
import torch
import transformers
from evals import DOCS, ROOT, TEXT, TOYS, asked, save, write_family
from lm_eval.api.model import LM

import eval as evaluation
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_mdlm, harness, measures, sandbox, tasks
from nanodlm import results as tables
from nanodlm import tokenizer as tokenizers
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

made, run, toys = evals.made, evals.run, evals.toys
task_manager = tasks.task_manager  # which run() replaces

DATA = ROOT.parent / "shared" / "data"


def test_the_results_file_says_all_that_a_score_depends_on(run, made):
    rows = run("toy_drawn label=Drawn published=3.5 limit=4", "--seed=7", "--batch_size=2", "--dtype=float32")
    r, c = rows[0], rows[0]["counts"]
    names = [r[k] for k in ("checkpoint", "algorithm", "task", "label")]
    assert names == [str(made / "mdlm"), "mdlm", "toy_drawn", "Drawn"]
    assert r["parameters"] == ckpt.load(made / "mdlm").model.num_params()
    assert (r["metric"], r["published"], r["documents"]) == ("exact_match,none", 3.5, [4, 6])
    assert r["task_versions"] == {"toy_drawn": 1.5} and r["shots"] == {"toy_drawn": 0} and r["percent"]
    options = SampleOptions(6, temperature=0.8, top_p=0.95, seed=7)
    assert r["sampling"] == [json.loads(json.dumps(asdict(options)))]
    assert r["likelihood_options"]["seed"] == 7 and r["task_settings"]["fewshot_seed"] == 1234
    said = {"limit": 4, "label": "Drawn", "published": 3.5}
    assert r["task_settings"] == json.loads(json.dumps(asdict(tasks.Options(**said))))
    assert r["settings"]["dtype"] == "float32" and r["settings"]["batch_size"] == 2
    assert all(r[k] for k in ("date", "python", "torch", "transformers", "datasets", "lm_eval", "machine", "threads"))
    assert "git" in r and r["processes"] == 1 and r["overridden"] == []
    texts = [x for s in r["samples"] for resp in s["resps"] for x in resp]
    assert len(r["samples"]) == 4 and len(texts) == 8 and len(set(texts)) == 8  # asked twice, drawn twice
    keys = {"doc_id", "target", "filtered_resps", "exact_match", "doc_hash", "prompt_hash"}
    assert all(keys <= s.keys() for s in r["samples"])
    assert 0 < c["tokens"] <= 48 and c["forwards"] == 48 and c["truncated"] == 0
    assert c["tokens_per_forward"] == c["tokens"] / c["forwards"]
    assert 0 < c["seconds"] < c["wall_seconds"] < 60 and abs(c["tokens_per_s"] * c["seconds"] / c["tokens"] - 1) < 1e-9
    assert set(r["metrics"]["toy_drawn"]) >= {"exact_match,none", "exact_match_stderr,none"}


# ---- GSM8K and HumanEval, as they are --------------------------------------------------------------------------------
SHIPPED = ROOT / "checkpoints" / "pydocs_mdlm"


@pytest.fixture
def local(tmp_path):
    """Copies of the data sets, as `hf download --local-dir` lays them out."""
    files = {"gsm8k_train.jsonl": "gsm8k/train.jsonl", "gsm8k_test.jsonl": "gsm8k/test.jsonl"}
    files |= {"HumanEval.jsonl.gz": "openai_humaneval/test.jsonl.gz"}
    for source, target in files.items():
        if not (DATA / source).is_file() or not SHIPPED.is_dir():
            pytest.skip(f"{DATA / source} or {SHIPPED} is not here")
        target = tmp_path / "sets" / "openai" / target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / source, target)
    return tmp_path / "sets"


class Recorder(LM):
    """Says nothing, and notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def generate_until(self, requests):
        self.seen += [r.args for r in requests]
        return [""] * len(requests)

    loglikelihood = loglikelihood_rolling = None


def recorded(monkeypatch):
    seen, plain = [], harness.Harness.generate_until

    def generate_until(self, requests):
        seen.extend(r.args for r in requests)
        return plain(self, requests)

    monkeypatch.setattr(harness.Harness, "generate_until", generate_until)
    return seen


def tell(monkeypatch, answer):
    """A model that answers what answer(the end of the prompt) says; what it is asked is noted."""
    asked_for = []

    def compute(self, kind, options, batch):
        asked_for.extend(job[3] for job in batch)
        said = [answer(self.checkpoint.tokenizer.decode(job[2])) for job in batch]
        said = [functools.reduce(lambda text, stop: text.split(stop)[0], job[3], s) for job, s in zip(batch, said)]
        return [{"text": text, "tokens": 3, "forwards": 2} for text in said]

    monkeypatch.setattr(harness.Answers, "compute", compute)
    return asked_for


def test_gsm8k_is_asked_as_lm_eval_asks_it_and_right_answers_are_right(run, local, monkeypatch):
    """Prompts byte for byte those of simple_evaluate, drawn examples included; stops of the YAML; what does not fit
    loses its beginning; both extractions."""
    seen = recorded(monkeypatch)
    words = (f"--local_data={local}", "--limit=3", "--batch_size=4", "--max_new_tokens=4", "--steps=1")
    rows = run("gsm8k num_fewshot=2,gsm8k label=zero num_fewshot=0", *words, checkpoint=str(SHIPPED))
    assert [r["counts"]["tokens"] for r in rows] == [12, 12] and [r["counts"]["forwards"] for r in rows] == [3, 3]
    assert rows[0]["counts"]["truncated"] == 3 and rows[1]["label"] == "zero" and rows[1]["documents"] == [3, 1319]
    dummy = Recorder()
    with tasks.local_copies(local):
        for shots in (2, 0):
            keys = dict(num_fewshot=shots, limit=3, task_manager=tasks.task_manager(""), fewshot_random_seed=1234)
            lm_eval.evaluator.simple_evaluate(model=dummy, tasks=["gsm8k"], **keys)
    assert seen == dummy.seen and len(seen) == 6 and seen[0][0].count("Question:") == 3
    docs = [json.loads(line) for line in (local / "openai/gsm8k/test.jsonl").read_text().splitlines()[:3]]
    assert [s[0] for s in seen[3:]] == [f"Question: {d['question']}\nAnswer:" for d in docs]

    answers = {d["question"][-60:]: d["answer"] for d in docs}

    def right(prompt):
        return next(a for q, a in answers.items() if q in prompt) + "\nQuestion: 1 #### 7"

    given = tell(monkeypatch, right)
    both = "gsm8k num_fewshot=0,gsm8k num_fewshot=2 metric=flexible-extract"
    rows = run(both, *words, "--metric=exact_match", checkpoint=str(SHIPPED))
    assert [r["score"] for r in rows] == [100.0, 100.0] and set(given) == {("Question:", "</s>", "<|im_end|>")}
    assert rows[0]["metrics"]["gsm8k"]["exact_match,flexible-extract"] == 1.0
    assert rows[0]["samples"][0]["resps"] == [[docs[0]["answer"] + "\n"]], "cut at the stop"
    tell(monkeypatch, lambda prompt: "It is 3, no, $1,234.")
    rows = run("gsm8k num_fewshot=0", *words, checkpoint=str(SHIPPED))
    assert rows[0]["score"] == 0
    assert [s["filtered_resps"] for s in rows[0]["samples"]] == [["[invalid]"]] * 3 + [["$1,234."]] * 3


def test_humaneval_is_refused_where_code_may_not_run(run, local, monkeypatch):
    """One sentence, before anything is generated."""
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: pytest.fail("generated before the refusal"))
    words = (f"--local_data={local}", "--limit=3", "--max_new_tokens=4", "--steps=1")
    with pytest.raises(SystemExit, match="--run_code") as e:
        run("humaneval", *words, checkpoint=str(SHIPPED))
    assert "\n" not in str(e.value)


def test_without_bubblewrap_code_runs_only_unguarded(run, local, monkeypatch, capsys):
    """One sentence, before anything is generated; and the way around says on the screen what it is."""
    words = (f"--local_data={local}", "--limit=1", "--max_new_tokens=4", "--steps=1")
    generated = []
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: generated.append(1) or 1 / 0)
    with monkeypatch.context() as m:
        m.setattr(sandbox, "missing", sandbox.missing.__wrapped__)  # what it said before is not kept
        m.setenv("PATH", "")
        with pytest.raises(SystemExit, match=r"apt install bubblewrap; .*\); --run_code=unguarded") as e:
            run("humaneval", *words, "--run_code", checkpoint=str(SHIPPED))
    assert "\n" not in str(e.value) and not generated
    with pytest.raises(ZeroDivisionError):
        run("humaneval", *words, "--run_code=unguarded", checkpoint=str(SHIPPED))
    assert generated and "warning: nothing guards this machine" in capsys.readouterr().out


def test_humaneval_counts_the_programs_that_pass(run, local, monkeypatch):
    """Two canonical solutions and a wrong one; prompts are the problems' own; the stops end them."""
    import gzip

    with gzip.open(local / "openai/openai_humaneval/test.jsonl.gz") as f:
        docs = [json.loads(line) for line in f][:3]
    words = (f"--local_data={local}", "--limit=3", "--max_new_tokens=4", "--steps=1")
    words += ("--run_code=unguarded" if sandbox.missing() else "--run_code",)
    seen = recorded(monkeypatch)

    def answer(prompt):
        doc = next(d for d in docs if d["prompt"][-60:] in prompt)
        return "    return None\n" if doc is docs[1] else doc["canonical_solution"] + "\ndef more():\n    raise"

    given = tell(monkeypatch, answer)
    rows = run("humaneval", *words, checkpoint=str(SHIPPED))
    assert rows[0]["metric"].startswith("pass@1") and abs(rows[0]["score"] - 200 / 3) < 1e-9
    assert [s[0] for s in seen] == [d["prompt"] for d in docs]
    assert set(given) == {("\nclass", "\ndef", "\n#", "\nif", "\nprint")}
    assert rows[0]["samples"][0]["resps"] == [[docs[0]["canonical_solution"]]]
    assert [s["pass@1"] for s in rows[0]["samples"]] == [1.0, 0.0, 1.0]


# ---- conversations ---------------------------------------------------------------------------------------------------
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FEW = """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
fewshot_split: test
fewshot_config: {sampler: first_n}
generation_kwargs: {until: ["zq"], max_gen_toks: 4}
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def chatty(tmp_path):
    return write_family(tmp_path / "chatty", "llama", 512, TEMPLATE)


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("begun", ["", "The answer is"])
def test_conversations_are_the_templates_own(multiturn, begun, run, chatty, toys, monkeypatch):
    """System prompt, examples as turns or in one, and an answer that is begun for the assistant."""
    name = f"toy_few{len(begun)}"
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {toys}/docs.jsonl}}}}\ntest_split: test\n"
    (toys / f"{name}.yaml").write_text(f"task: {name}\n{where}{FEW}" + (f'gen_prefix: "{begun}"\n' if begun else ""))
    manager = harness.Tasks(include_path=str(toys), include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)
    seen, stops = recorded(monkeypatch), tell(monkeypatch, lambda prompt: " yes")
    entry = f"{name} num_fewshot=2 fewshot_as_multiturn={multiturn}"
    rows = run(entry, "--apply_chat_template", "--system=Be brief.", checkpoint=str(chatty))
    assert len(seen) == 6 and set(stops) == {("zq",)} and rows[0]["task_settings"]["system"] == "Be brief."
    hf = transformers.AutoTokenizer.from_pretrained(chatty)
    first = f"{begun} {DOCS[0]['c'][0]}" if begun else DOCS[0]["c"][0]
    second = f"{begun} {DOCS[1]['c'][0]}" if begun else DOCS[1]["c"][0]
    for (prompt, _), doc in list(zip(seen, DOCS))[2:]:
        turns = ["Be brief.", DOCS[0]["q"], first, DOCS[1]["q"], second, doc["q"]]
        roles = ["system", "user", "assistant", "user", "assistant", "user"]
        messages = [{"role": r, "content": c} for r, c in zip(roles, turns)]
        if multiturn:
            assert prompt == hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + begun
        else:
            assert prompt.startswith("[system]Be brief.<|endoftext|>[user]" + DOCS[0]["q"])
            assert prompt.count("[user]") == 1
            assert prompt.endswith(f"{doc['q']}<|endoftext|>[assistant]{begun}")
            assert first in prompt and second in prompt
    assert not any(text.startswith("<|endoftext|>") for text, _ in seen)


def test_a_template_is_asked_for_where_there_is_none_and_may_refuse(run, chatty, tmp_path):
    with pytest.raises(SystemExit, match="has no chat template; leave out --apply_chat_template"):
        run("toy_gen", "--apply_chat_template")
    model = asked(chatty, tasks.Options(apply_chat_template=True))
    object.__setattr__(model.tokenizer, "template", lambda *_: 1 / 0)
    with pytest.raises(SystemExit, match="chat template refuses this conversation: division by zero"):
        model.apply_chat_template([{"role": "user", "content": "a"}])


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settled(run, monkeypatch, tmp_path):
    """(Options, LikelihoodOptions, SampleOptions, what is overridden) of one task, as eval.py's command line or a
    recipe has them, where the task says `task` about generation; nothing is computed."""
    box = {}

    def evaluate(model, name, manager):
        box["found"] = model.options, model.likelihood, model.sampling(box["task"])
        return {k: v for k, v in line().items() if k in ("metric", "score", "error", "documents", "shots", "counts")}

    monkeypatch.setattr(tasks, "evaluate", evaluate)

    def settled(entry, *words, recipe=None, task=None):
        box["task"] = task or {}
        if recipe is None:
            rows = run(entry, *words)
        else:
            said = {"tasks": [entry], **recipe}
            (tmp_path / "recipe.py").write_text("".join(f"{k} = {v!r}\n" for k, v in said.items()))
            rows = run("", str(tmp_path / "recipe.py"), *words)
        return *box["found"], [x for x in rows[0]["overridden"] if not x.startswith("checkpoint")]

    return settled


def test_an_entry_brings_settings_of_its_own(settled):
    words = "toy_gen num_fewshot=2 max_new_tokens=8 label=x mc_samples=7 'system=Be brief.'"
    o, likelihood, s, overridden = settled(words)
    assert (o.num_fewshot, o.label, o.system, s.max_new_tokens, overridden) == (2, "x", "Be brief.", 8, [])
    assert likelihood == LikelihoodOptions(mc_samples=7)


def test_later_sources_go_before_earlier_ones(settled):
    """preset < task's YAML < recipe < entry < command line; where tasks are named there, their entries go last."""
    yaml = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 40, "top_p": 0.5}

    def ways(*args, task=yaml, **keys):
        o = settled(*args, task=task, **keys)[2]
        return o.temperature, o.max_new_tokens, o.top_p, o.measure

    t, dream = "toy_gen", {"preset": "dream"}
    assert ways(t, recipe=dream, task={"do_sample": True}) == (0.2, 512, 0.95, "draw")
    assert ways(t, recipe=dream) == (0.7, 40, 0.5, "draw")
    assert ways(t, recipe=dream | {"temperature": 0.4}) == (0.4, 40, 0.5, "draw")
    both = f"{t} temperature=0.3 max_new_tokens=9"
    assert ways(both, recipe=dream | {"temperature": 0.4}) == (0.3, 9, 0.5, "draw")
    assert ways(both, "--temperature=0.1", recipe=dream) == (0.1, 9, 0.5, "draw")
    assert ways(f"{t} temperature=0.3", "--temperature=0.1") == (0.3, 40, 0.5, "network")
    assert ways(t, "--temperature=0.1") == (0.1, 40, 0.5, "network")
    assert ways(f"{t} preset=dream measure=token", task={}) == (0.0, 512, 0.95, "token"), "greedy, if nothing is said"
    assert ways(t, task={"do_sample": False, "temperature": 0.9})[0] == 0.0
    assert ways(t, task={"temperature": 0.6})[0] == 0.6
    assert settled(f"{t} threshold=0.7")[2] == SampleOptions(quota="threshold", threshold=0.7, temperature=0.0)


def test_what_the_command_line_changes_of_a_recipe_is_told(settled):
    recipe = {"mc_samples": 4, "num_fewshot": 5}
    words = ["--batch_size=2", "--label=y", "--mc_samples=4", "--num_fewshot=3"]
    assert settled("toy_mc num_fewshot=3", *words, recipe=recipe)[3] == [], "nothing that changes a score, or anything"
    told = settled("toy_mc num_fewshot=3", "--num_fewshot=1", "--mc_samples=8", "--limit=5", recipe=recipe)[3]
    has = {"num_fewshot=1, where the recipe has 3", "mc_samples=8, where the recipe has 4"}
    assert set(told) == has | {"limit=5, where the recipe has 0"}


def test_a_recipe_runs_and_its_table_warns_of_what_was_overridden(run, made, tmp_path, capsys):
    """--only picks tasks; warnings stand where a published score stands, and nowhere else."""
    (tmp_path / "recipe.py").write_text(
        'tasks = ["toy_gen label=Short published=50 max_new_tokens=3", "toy_mc", "toy_ll label=Last"]\nsteps = 2\n'
    )
    recipe = str(tmp_path / "recipe.py")
    rows = run("", recipe, "--only=toy_gen,toy_mc", "--steps=1", "--metric=acc_norm", "--limit=2")
    said = capsys.readouterr().out
    assert [(r["task"], r["label"]) for r in rows] == [("toy_gen", "Short"), ("toy_mc", "toy_mc")]
    assert rows[0]["sampling"][0]["steps"] == 1 and rows[0]["sampling"][0]["max_new_tokens"] == 3
    name = f"warning: {made / 'mdlm'}, Short: "
    assert f"{name}steps=1, where the recipe has 2" in said
    assert f"{name}the published score is that of all documents" in said and f"{made / 'mdlm'}, toy_mc: " not in said
    assert "warning: toy_gen has no metric 'acc_norm'; it has exact_match,none" in said
    assert (rows[0]["metric"], rows[1]["metric"]) == ("exact_match,none", "acc_norm,none")
    with pytest.raises(SystemExit, match="only=toy_all is none of the recipe's tasks: .*toy_gen, toy_mc, .*toy_ll"):
        run("", recipe, "--only=toy_all")


def test_other_strings_may_end_an_answer_than_the_tasks(run, monkeypatch):
    given = tell(monkeypatch, lambda prompt: "one two e three")
    rows = run("toy_gen until=two,toy_gen label=again")
    assert set(given) == {("two",), ("e", "qz")}
    assert [r["samples"][0]["resps"] for r in rows] == [[["one "]], [["on"]]]


def test_the_score_of_a_group_counts_every_document_once(run):
    """Six documents and two, where lm-eval does not sum up; parts without a common score are refused."""
    rows = run("toys,toy_mc,toy_two", "--mc_samples=2")
    scores, errors = ([r[k] for r in rows] for k in ("score", "error"))
    assert [r["documents"] for r in rows] == [[8, 8], [6, 6], [2, 2]]
    assert len(rows[0]["samples"]) == 8 and scores[1] != scores[2]
    assert scores[0] == pytest.approx((6 * scores[1] + 2 * scores[2]) / 8)
    assert errors[0] == pytest.approx(((6 * errors[1]) ** 2 + (2 * errors[2]) ** 2) ** 0.5 / 8)
    with pytest.raises(SystemExit, match="the parts of toys_mixed have no score in common"):
        run("toys_mixed", "--mc_samples=2")


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tasks, more, words",
    [
        ("toy_m", [], "lm-eval has no task 'toy_m'; did you mean toy_mc"),
        ("gsm8", [], "lm-eval has no task 'gsm8'; did you mean gsm8k"),
        ("nothing_like_it", [], "lm-eval has no task 'nothing_like_it'; --include_path adds your own"),
        ("toy_mc num_fewshots=2", [], r"unknown key 'num_fewshots' \(the task toy_mc\); did you mean num_fewshot"),
        ("toy_mc max_new_token=2", [], "did you mean max_new_tokens"),
        ("toy_mc five", [], "the task 'toy_mc five' has the word 'five', which is no key=value"),
        ("toy_mc num_fewshot=many", [], "num_fewshot = 'many' .* takes a whole number"),
        ("toy_gen preset=fastest", [], "no preset 'fastest'; there are .*fast, .*and none"),
        ("toy_gen", ["--max_new_tokens=96"], "max_new_tokens=96 leaves no room for a prompt in the 96 tokens"),
        ("toy_gen max_length=10", [], "max_new_tokens=12 leaves no room for a prompt in the 10 tokens"),
        ("toy_gen remask=0.1 quota=steps", [], "remask=0.1 is defined for quota=ancestral only"),
        ("toy_mc", ["--batch_size=0"], "batch_size = .0. .*of at least 1"),
    ],
)
def test_bad_input_is_one_clear_sentence(tasks, more, words, run, tmp_path):
    with pytest.raises(SystemExit, match=words) as e:
        run(tasks, *more)
    assert "\n" not in str(e.value) and not (tmp_path / "results.json").exists()


def test_code_that_would_run_outside_of_the_sandbox_is_refused(run, toys, monkeypatch):
    """Before another task is asked, with and without --run_code."""
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {toys}/docs.jsonl}}}}\ntest_split: test\n"
    (toys / "unsafe.yaml").write_text(f"task: toy_unsafe\nunsafe_code: true\n{where}{TOYS['gen']}")
    manager = harness.Tasks(include_path=str(toys), include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: pytest.fail("computed before the refusal"))
    for more in ([], ["--run_code"]):
        with pytest.raises(SystemExit, match="toy_unsafe runs code that the model wrote in a way of its own"):
            run("toy_gen,toy_unsafe", *more)


def test_a_method_that_an_algorithm_lacks_and_a_path_that_is_none_are_one_sentence(run):
    with pytest.raises(SystemExit, match="method = 'llada' .* one of nelbo, left_to_right, confidence"):
        run("toy_mc", "--method=llada", checkpoint="bd3lm")
    with pytest.raises(SystemExit, match="include_path=/nowhere is no directory of task files"):
        task_manager("/nowhere")


def test_a_task_of_ones_own_that_cannot_be_loaded_is_one_sentence(run, toys, monkeypatch):
    """The second one, too, before the first one is answered."""
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {toys}/docs.jsonl}}}}\ntest_split: test\n"
    (toys / "odd.yaml").write_text(f"task: toy_odd\n{where}{TOYS['gen'].replace('exact_match', 'exactly')}")
    manager = harness.Tasks(include_path=str(toys), include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: pytest.fail("computed before the refusal"))
    for names in ("toy_odd", "toy_gen,toy_odd"):
        with pytest.raises(SystemExit, match="^toy_odd cannot be loaded: [^\n]*$"):
            run(names)


def test_scores_that_are_percentages_stay_what_they_are():
    def found(metric, score):
        results = {"t": {"name": "t", f"{metric},none": score, f"{metric}_stderr,none": 0.01}}
        n = {"t": {"effective": 4, "original": 4}}
        better = {"t": {metric: True}}
        return tasks.headline({"results": results, "n-samples": n, "higher_is_better": better}, "t", "")["score"]

    assert [found("acc", 0.5), found("acc", 1.0), found("f1", 81.5), found("chrf", 0.07)] == [50.0, 100.0, 81.5, 0.07]


def test_results_are_not_written_over_others(tmp_path):
    file = tmp_path / "base-piqa.json"
    for name in ("base-piqa.json", "base-piqa-2.json", "base-piqa-3.json"):
        assert evaluation.unused(file).name == name
        (tmp_path / name).write_text("[]")


def test_max_length_shortens_prompts_and_says_so(run, capsys):
    rows = run("toy_gen max_length=14", "--max_new_tokens=4")
    cut = sum(len(ckpt.load(rows[0]["checkpoint"]).tokenizer.encode(d["q"])) > 10 for d in DOCS)
    assert rows[0]["counts"]["truncated"] == cut > 1
    assert f"toy_gen: {cut} prompts lost their beginning" in capsys.readouterr().out


def test_a_data_set_without_a_network_says_how_to_bring_a_copy(run, cold, tmp_path):
    cold.stop()
    plain = datasets.load_dataset
    for words, where in (([], "DIR"), ([f"--local_data={tmp_path}"], str(tmp_path))):
        with pytest.raises(SystemExit) as e:
            run("gsm8k", *words)
        what, advice, instead = e.value.code.split("; ")
        assert what == f"data set openai/gsm8k: the hub ({os.environ['HF_ENDPOINT']}) cannot be reached"
        assert advice.startswith("it is not in the cache")
        assert instead == (
            f"or bring a copy, `hf download openai/gsm8k --repo-type=dataset --local-dir={where}/openai/gsm8k`, "
            f"and say --local_data={where}"
        )
    assert datasets.load_dataset is plain


def test_a_local_copy_that_cannot_be_read_is_named(run, tmp_path):
    file = tmp_path / "openai/gsm8k/test.parquet"
    file.parent.mkdir(parents=True)
    file.write_text("no parquet")
    with pytest.raises(SystemExit, match=f"the data set {file.parent} cannot be read: "):
        run("gsm8k", f"--local_data={tmp_path}")


# ---- tables and plots ------------------------------------------------------------------------------------------------


def line(**keys):
    """A row of results as run_tasks writes it, by hand."""
    counts = dict(forwards=1200, tokens=600, tokens_per_forward=0.5, tokens_per_s=12.34)
    counts |= dict(seconds=9.0, wall_seconds=9.5, truncated=0)
    settings = dict(apply_chat_template=False, fewshot_as_multiturn=True, system="", max_length=0)
    own = {k: keys.pop(k) for k in list(keys) if k in counts}
    return {
        "checkpoint": "llada", "task": "gsm8k", "label": "GSM8K", "metric": "exact_match,strict-match", "score": 70.0,
        "error": 1.25, "percent": True, "published": 70.3, "published_speed": None, "documents": [1319, 1319],
        "shots": {"gsm8k": 5}, "task_versions": {"gsm8k": 3.0}, "lm_eval": "0.4.13", "counts": counts | own,
        "task_settings": settings | keys.pop("task_settings", {}), "settings": {"dtype": "float32"},
        "likelihood_options": {"method": "llada", "mc_samples": 128}, "overridden": [],
        "sampling": [asdict(SampleOptions(256))],
        "samples": [], **keys,
    }  # fmt: skip


def files_of(tmp_path, *rows):
    names = [tmp_path / f"{chr(97 + i)}.json" for i in range(len(rows))]
    for name, row in zip(names, rows):
        name.write_text(json.dumps([row]))
    return [str(n) for n in names]


def test_a_table_has_scores_with_errors_beside_published_ones(tmp_path, capsys):
    nothing = dict.fromkeys(("published", "error", "tokens_per_forward", "tokens_per_s"))
    other = line(checkpoint="dream", score=65.0, tokens=0, sampling=[], **nothing)
    rows = line(published_speed=20.0), other, line(checkpoint="other", score=73.425, documents=[1319, 1319])
    evaluation.main(["--table", *files_of(tmp_path, *rows)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].count("|") == lines[2].count("|") == lines[3].count("|")
    how = "5-shot, 256 tokens, T=1, 256 steps"
    score = "| llada | GSM8K | exact_match,strict-match | 70.00 ± 1.25 | 70.3 | -0.30 (-0.2 SE) | 1,319"
    assert lines[2] == f"{score} | {how} | 1,200 | 600 | 0.50 | 12.3 | 20 |"
    how = "5-shot, llada, 128 masks"
    dream = "| dream | GSM8K | exact_match,strict-match | 65.00 |  |  | 1,319"
    assert lines[3] == f"{dream} | {how} | 1,200 |  |  |  |  |"
    assert "| 73.42 ± 1.25 | 70.3 | +3.12 (+2.5 SE) |" in lines[4]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"metric": "em,x"}, "metric is exact_match,strict-match in A, and em,x in B"),
        ({"documents": [100, 1319], "published": None}, "documents is 1319 of 1319 in A, and 100 of 1319 in B"),
        ({"shots": {"gsm8k": 8}}, "num_fewshot is 5 in A, and 8 in B"),
        ({"task_versions": {"gsm8k": 2.0}}, "version of the task is 3.0 in A, and 2.0 in B"),
        ({"lm_eval": "0.4.8"}, "version of lm-eval is 0.4.13 in A, and 0.4.8 in B"),
        ({"task_settings": {"apply_chat_template": True}}, "apply_chat_template is False in A, and True in B"),
        ({"settings": {"dtype": "bfloat16"}}, "dtype is float32 in A, and bfloat16 in B"),
        ({"likelihood_options": {"method": "llada", "mc_samples": 1}}, "mc_samples is 128 in A, and 1 in B"),
        ({"likelihood_options": {"batch_size": 4}}, None),  # ar: it has no such thing
        ({"checkpoint": "dream", "score": 1.0, "sampling": []}, None),
        ({"task": "mmlu", "shots": {"mmlu": 0}}, None),
    ],
)
def test_rows_of_one_task_that_do_not_compare_are_warned_of(keys, words, tmp_path, capsys):
    files = files_of(tmp_path, line(), line(**keys))
    evaluation.main(["--table", *files])
    found = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
    expected = words and words.replace(" A", " " + files[0]).replace(" B", " " + files[1])
    assert found == ([f"warning: gsm8k: {expected}"] if words else [])


def test_published_scores_are_not_compared_silently(tmp_path, capsys):
    row = line(overridden=["steps=1, where the recipe has 2"], documents=[10, 1319], truncated=4)
    evaluation.main(["--table", *files_of(tmp_path, row)])
    assert capsys.readouterr().out.splitlines()[3:] == [
        "warning: llada, GSM8K: steps=1, where the recipe has 2",
        "warning: llada, GSM8K: the published score is that of all documents",
        "warning: llada, GSM8K: 4 prompts lost their beginning",
    ]
    evaluation.main(["--table", *files_of(tmp_path, {**row, "published": None})])
    assert capsys.readouterr().out.splitlines()[3:] == ["warning: llada, GSM8K: 4 prompts lost their beginning"]


def test_plots_and_what_is_no_results_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluation.main(["--plot", *files_of(tmp_path, line(), line(score=60.0, error=None, forwards=300))])
    assert (tmp_path / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out == "wrote accuracy.png\n"
    for content in ("no json", '{"a": 1}', "[1]", "7", '[{"task": 1}]'):
        (tmp_path / "bad.json").write_text(content)
        for command in ("--table", "--plot"):
            with pytest.raises(SystemExit, match="bad.json is no results file of eval.py"):
                evaluation.main([command, "bad.json"])
    measured = {"dataset": "d", "checkpoint": "c", "parameters": 3, "algorithm": "mdlm", "likelihood": {"NELBO": {}}}
    for row in (line(), measured):  # as of another version: without one of its facts, or with nothing there
        for content in [{k: v for k, v in row.items() if k != key} for key in row] + [{k: None for k in row}, {}]:
            (file,), _ = files_of(tmp_path, content), capsys.readouterr()
            try:
                evaluation.main(["--table", file])
            except SystemExit as e:
                assert "a.json is no results file of eval.py: " in e.code and not capsys.readouterr().out
    with pytest.raises(
        SystemExit, match="a.json is no results file of eval.py: ValueError: a row of it has no measure"
    ):
        evaluation.main(["--table", file])
    with pytest.raises(SystemExit, match="missing.json is no results file"):
        evaluation.main(["--table", "missing.json"])
    with pytest.raises(SystemExit, match="name the files"):
        evaluation.main(["--table"])
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(SystemExit, match="no results of tasks to plot"):
        evaluation.main(["--plot", "none.json"])


# ---- samples ---------------------------------------------------------------------------------------------------------


class Samples:
    """An algorithm that generates what it is told, row by row of a whole run."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def generate(self, model, prompts, options, *, mask_id, numbers):
        self.asked.append((len(prompts), options.max_new_tokens))
        return fast_mdlm.Output([torch.tensor(self.rows[i]) for i in numbers.tolist()], [4] * len(prompts))


def test_entropy_is_that_of_each_samples_tokens(made):
    checkpoint = ckpt.load(made / "mdlm")
    rows = [[1, 1, 1, 1], [1, 2, 1, 2], [1, 2, 3, 4]]
    s, samples = evaluation.Settings(num_samples=3, batch_size=2), Samples(rows)
    found = measures.sample_quality(checkpoint, samples, SampleOptions(500), s, None, None, "cpu")
    assert abs(found["nats"] - (0 + math.log(2) + math.log(4)) / 3) < 1e-12
    assert abs(found["error"] - np.std([0, math.log(2), math.log(4)], ddof=1) / 3**0.5) < 1e-12
    assert samples.asked == [(2, 96), (1, 96)] and found["forwards_per_sample"] == 4 and found["tokens"] == 96
    assert "perplexity" not in found


def test_samples_do_not_depend_on_the_batch_size(made):
    checkpoint, texts = ckpt.load(made / "mdlm"), []
    o = SampleOptions(5, order="random")  # on an empty canvas all positions tie
    for size in (2, 16):
        s = evaluation.Settings(num_samples=3, batch_size=size, judge=str(made / "ar"))
        held = torch.arange(30).view(3, 10)
        judge = measures.read_judge(s, [checkpoint], "cpu")
        texts.append(measures.sample_quality(checkpoint, fast_mdlm, o, s, held, judge, "cpu"))
    assert texts[0]["texts"] == texts[1]["texts"] and len(set(texts[0]["texts"])) == 3
    assert texts[0]["perplexity"] == pytest.approx(texts[1]["perplexity"], rel=1e-5)


def test_the_judges_perplexity_is_that_of_all_tokens(made, tmp_path):
    """With a begin-of-text of our own, or an end-of-text before a released model's; texts beyond the context."""
    texts = [TEXT[:40], TEXT[50:700], "", "a"]
    for path in (made / "ar", write_family(tmp_path / "gpt2", "gpt2")):
        c = ckpt.load(path)
        own = c.tokenizer.mask_id is not None
        size = c.model.config.seq_len - (not own)
        nats, tokens = 0.0, 0
        for text in texts:
            x = c.tokenizer.encode(text)
            for start in range(0, len(x), size):  # the last window is given as much as fits before it
                end = min(len(x), start + size)
                given = x[max(0, end - size) : start] if own or not start else x[end - size - 1 : start]
                given = given if own or start else [c.tokenizer.eos_id, *given]
                pair = [torch.tensor(v, dtype=torch.int64)[None] for v in ([*given, *x[start:end]], given)]
                with torch.no_grad():
                    first = torch.full((1, 1), c.tokenizer.mask_id or 0)
                    seen = torch.cat([first, pair[0]], 1)[:, :-1] if own else pair[0][:, :-1]
                    logits = c.model(seen).double()
                if own:
                    logits[..., c.tokenizer.mask_id] = -torch.inf
                n = end - start
                nats -= logits.log_softmax(-1)[0, -n:].gather(1, pair[0][0, -n:, None]).sum().item()
                tokens += n
        s = evaluation.Settings(judge=str(path), batch_size=2)
        found = measures.judge(texts, [], s, measures.read_judge(s, [], "cpu"), "cpu")
        assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found["perplexity_error"] > 0 and found["judge"] == str(path)


def test_judges_that_cannot_judge_are_refused_before_anything_is_written(made, tmp_path, monkeypatch):
    """What writes from left to right alone judges, and reads whatever may be written. Nor are samples without text
    judged, of a model that writes end-of-text alone."""
    s = evaluation.Settings(judge=str(made / "ar"))
    with pytest.raises(SystemExit, match="nothing to judge"):
        measures.judge(["", ""], [], s, measures.read_judge(s, [], "cpu"), "cpu")
    letters = tokenizers.load({"kind": "char", "chars": "abc"})
    save(tmp_path / "letters", letters, tmp_path, "ar")
    monkeypatch.setattr(fast_mdlm, "generate", lambda *_, **__: pytest.fail("it writes before the refusal"))
    monkeypatch.setattr(measures, "likelihood", lambda *_, **__: pytest.fail("it measures before the refusal"))
    corpus.write_dataset(tmp_path, letters, {"val": [0, 1, 2] * 50})
    words = [f"--checkpoint={made / 'mdlm'}", f"--dataset={tmp_path}", "--num_samples=1", "--device=cpu"]
    for judge, said in (
        (made / "mdlm", "is decoded by mdlm; a judge is autoregressive"),
        (tmp_path / "letters", "mdlm may write to the judge .*letters does not fit the vocabulary: the text has '"),
        (tmp_path / "nowhere", "no checkpoint in '.*nowhere'"),
    ):
        with pytest.raises(SystemExit, match=said) as e:
            evaluation.main([*words, f"--judge={judge}"])
        assert "\n" not in e.value.code
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="--mauve needs a library: pip install mauve-text"):
        evaluation.main([*words, f"--judge={made / 'ar'}", "--mauve"])


def test_the_machine_is_the_gpu_on_every_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H100")
    assert [tables.environment(d)["machine"] for d in ("cuda", "cuda:1")] == ["H100", "H100"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tasks=toy_mc dtype=bfloat16"], "dtype is a setting of a whole run"),
        (["--tasks=toy_mc", "--judge=x"], "judge does nothing beside tasks"),
        (["--run_code=true"], "run_code does nothing without tasks"),
        (["--judge=x"], "a judge reads samples"),
        (["--num_samples=1", "--mauve=true"], "mauve is the judge's"),
        (["--tasks=toy_mc", "--mc_samples=0"], "mc_samples = .0. .*of at least 1"),
        (["--tasks=toy_mc", "--method=confidence", "--mc_samples=3"], "mc_samples=3 .* does nothing with method=conf"),
        (["--tasks=toy_mc", "--mc_batch=3"], "mc_batch=3 .* does nothing with method=nelbo"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(words, said, made, toys, monkeypatch):
    monkeypatch.setattr(tasks, "task_manager", lambda _: harness.Tasks(include_path=str(toys), include_defaults=False))
    with pytest.raises(SystemExit, match=said):
        evaluation.main([f"--checkpoint={made / 'mdlm'}", "--device=cpu", *words])
