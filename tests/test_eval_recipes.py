"""The evaluation recipes config/eval_*.py: each task and score exists in lm-eval, each published number is the one of
the papers' tables, and the settings that come out are the published ones."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks
import pytest

import eval as evaluation
from nanodlm import configurator, diffusion_gemma, fast_bd3lm, fast_mdlm, harness, tasks

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p.stem for p in (ROOT / "config").glob("eval_*.py"))
LAST = (126081, 126348)  # LLaDA's end-of-text and end-of-turn

# The presets that the checkpoints bring, by their architectures or, for bd3lm, their names.
PRESETS = dict.fromkeys(("dream_base", "dream_instruct"), "dream") | dict.fromkeys(
    ("illada", "illada_instruct"), "illada"
)
PRESETS |= dict.fromkeys(("fastdllm", "llada15", "llada_base", "llada_instruct", "modernbert_chat"), "llada")
PRESETS = {
    f"eval_{name}": preset
    for name, preset in (
        PRESETS
        | {
            "qwen3_bd3lm": "bd3lm",
            "qwen3_mdlm": "mdlm",
            "diffusion_gemma": "",
            "llada2": "llada2",
            "llada21": "llada2",
            "nemotron": "nemotron",
        }
    ).items()
}
BLOCKS = {"eval_sdar": "sdar", "eval_fastdllm_v2": "fast_dllm_v2"}  # decoded by bd3lm
PRESETS |= BLOCKS

# Label or task, and what is published, as the papers and repositories that the docstrings name have it.
PUBLISHED = {
    "eval_llada_base": """
        mmlu 65.9 bbh 49.7 arc_challenge 45.9 arc_challenge_cfg 47.9 hellaswag 70.5 hellaswag_cfg 72.5
        truthfulqa_mc2 46.1 truthfulqa_mc2_cfg 46.4 winogrande 74.8 piqa 73.6 piqa_cfg 74.4 gsm8k 70.3
        minerva_math 31.4 gpqa_main_n_shot 25.2 gpqa_main_n_shot_cfg 26.1 humaneval 35.4 mbpp 40
        ceval-valid 70.5 cmmlu 69.9""",
    "eval_llada_instruct": """
        mmlu_generative 65.5 mmlu_pro 37 arc_challenge_chat 88.5 gsm8k_cot 69.4 gsm8k_cot_blocks 78.6
        minerva_math 31.9 minerva_math_blocks 42.2 gpqa_diamond_generative_n_shot 33.3
        humaneval_instruct 49.4 mbpp 41""",
    "eval_llada15": """
        gsm8k_cot 83.8 minerva_math 42.6 gpqa_diamond_generative_n_shot 36.9 humaneval_instruct 52.4
        mbpp 42.8 ifeval 66.2""",
    "eval_llada2": """
        mmlu_generative 80.53 mmlu_pro 63.22 arc_challenge_chat 93.56 gpqa_diamond_cot_zeroshot 47.98 gsm8k_cot 94.24
        minerva_math 93.22 humaneval_instruct 86.59 mbpp_instruct 81.5 ifeval 80.78""",
    "eval_llada21": """
        mmlu_pro 64.84 gpqa_diamond_cot_zeroshot 53.28 ifeval 83.18 bbh 80.58 mmlu_pro_speed 63.42
        gpqa_diamond_speed 48.36 ifeval_speed 81.33 bbh_speed 78.42""",
    "eval_illada": """
        mmlu 74.8 bbh 71.3 arc_challenge 60.8 arc_challenge_likelihood 60.2 hellaswag 76.6
        hellaswag_likelihood 74.3 piqa 78.5 piqa_likelihood 77.2 gsm8k_cot 81.9 minerva_math 38.4 humaneval
        50 mbpp 57.8""",
    "eval_illada_instruct": """
        mmlu_generative 71.6 mmlu_pro 52.3 mmlu_redux_generative 76.4 gsm8k_cot 89 minerva_math 56.7
        humaneval_instruct 65.9 mbpp_instruct 58""",
    "eval_dream_base": """
        mmlu 69.5 arc_challenge 59.9 arc_easy 83.9 hellaswag 73.3 winogrande 74.8 piqa 75.8 gsm8k_cot
        77.2 minerva_math 39.6 bbh 57.9 gpqa_main_n_shot 36.6 humaneval 57.9 mbpp 56.2 race 44.7""",
    "eval_dream_instruct": """
        mmlu_generative 67 mmlu_pro 43.3 gsm8k_cot 81 minerva_math 39.2 gpqa_main_n_shot 33
        humaneval_instruct 55.5 mbpp_instruct 58.8 ifeval 62.5""",
    "eval_qwen3_mdlm": """
        gsm8k_cot 29.3 bbh 26.7 minerva_math 8.7 mmlu_generative 40 mmlu_pro 17.3 humaneval_instruct
        30.5 mbpp_instruct 29.2""",
    "eval_qwen3_bd3lm": """
        gsm8k_cot 46.3 bbh 26.6 minerva_math 12.9 mmlu_generative 39.1 mmlu_pro 13.8 humaneval_instruct
        46.3 mbpp_instruct 38.2""",
    "eval_sdar": """
        mmlu_generative 78.6 gsm8k_cot 91.3 minerva_math500 78.6 humaneval_instruct 78.7 mbpp_instruct 72""",
    "eval_fastdllm_v2": """
        humaneval_instruct 63.4 mbpp_instruct 63 gsm8k_cot 83.7 minerva_math 61.6 ifeval 61.4 mmlu_generative 66.6""",
    "eval_nemotron": """
        gpqa_diamond_cot_zeroshot 43.94 ifeval 68.32 mmlu_generative 78.71 humaneval_instruct 78.66
        mbpp_instruct 83.86 minerva_math500 85.8 gsm8k_cot 93.03""",
    "eval_diffusion_gemma": """
        gpqa_diamond_cot_zeroshot 73.2 gpqa_diamond_without_thoughts - mmlu_pro 77.6""",
    "eval_modernbert_chat": """
        gsm8k_cot 3.6 bbh 21.1 minerva_math 3.1 mmlu 26.2 hellaswag 34.5 lambada_openai 49.3 winogrande
        48.8 ceval-valid 25.1 cmmlu 26.1""",
}
# Fast-dLLM: accuracy and, where it can be compared, tokens per second.
FAST = """
    gsm8k_256 79.3 6.7; gsm8k_256_cache 79.5 21.2; gsm8k_256_parallel 79.2 16.5; gsm8k_256_both 78.5 54.4;
    gsm8k_256_dual - -; gsm8k_512 77.5 3.2; gsm8k_512_cache 77.0 10.4; gsm8k_512_parallel 77.6 18.6;
    gsm8k_512_both 77.2 35.3; gsm8k_1024 77.3 0.7; gsm8k_1024_dual 76.0 19.3; math_256 33.5 9.1;
    math_256_cache 33.3 23.7; math_256_parallel 33.4 24.8; math_256_both 33.2 51.7; humaneval_256 41.5 -;
    humaneval_256_cache 42.7 -; humaneval_256_parallel 43.9 -; humaneval_256_both 43.3 -; mbpp_256 29.4 6.0;
    mbpp_256_cache 29.6 17.0; mbpp_256_parallel 28.4 24.8; mbpp_256_both 28.2 44.8"""


def number(word):
    return None if word == "-" else float(word)


PUBLISHED = {recipe: text.split() for recipe, text in PUBLISHED.items()}
PUBLISHED = {r: dict(zip(words[::2], map(number, words[1::2]))) for r, words in PUBLISHED.items()}
FAST = {label: (number(score), number(speed)) for label, score, speed in map(str.split, FAST.split(";"))}
PUBLISHED["eval_fastdllm"] = {label: score for label, (score, _) in FAST.items()}

# What its docstring must say for a recipe whose table has a number that no task of lm-eval measures, or that is another
# checkpoint's.
TOLD = {
    "eval_llada_instruct": ["HellaSwag (74.6"],
    "eval_qwen3_mdlm": ["HellaSwag (42.1"],
    "eval_llada2": ["87.69, 95.93, 61.98, 95.44, 94.51 and 88.29", "2.55 tokens per forward"],
    "eval_llada21": ["63.90, 3.12", "62.07, 5.34", "2.41, speed 4.22", "76.59, 67.30, 83.55 and 88.69"],
    "eval_diffusion_gemma": ["AIME 2026 (69.1", "LiveCodeBench v6 (69.1"],
    "eval_qwen3_bd3lm": ["HellaSwag (39.3"],
    "eval_sdar": ["MathBench (76.9"],
    "eval_fastdllm_v2": ["(31.9)", "+ 58.5 and 52.3"],
    "eval_nemotron": [
        "LiveCodeBench 26.16",
        "AIME 2024 46.67",
        "GPQA 44.44",
        "GSM8K 94.01",
        "81.71  84.92  87.60  93.78",
    ],
    "eval_modernbert_chat": [
        *("GSM8K 9.3", "BBH 25.6", "MATH 3.6", "MMLU 29.6", "HellaSwag 40.9", "LAMBADA 46.3"),
        *("WinoGrande 49.0", "C-Eval 26.5", "CMMLU 26.5", "--checkpoint=dllm-hub/ModernBERT-large-chat-v0.1"),
    ],
    "eval_fastdllm": [
        *("75.0  9.1 ", "74.3  32.5", "74.2  14.2", "74.8  48.2", "38.4  11.4", "36.8  34.3", "37.9  27.3"),
        *("37.6  66.8", "49.4  23.3", "53.7  35.2", "49.4  45.6", "54.3  62.0", "56.6  11.2", "53.2  34.5"),
        *("53.8  31.8", "56.4  76.0"),
    ],
}


# ------------------------------------------------------------------------------------------------------------------
# a recipe's tasks, with the settings that come out


class Row(SimpleNamespace):
    """One task of a recipe: name, label, options, likelihood, and SampleOptions of what the task itself says."""


def stand_in(recipe):
    """What settings_of asks of a checkpoint, and its algorithm."""
    model = SimpleNamespace(config=SimpleNamespace(block_size=0, vocab_size=2**17))
    checkpoint = SimpleNamespace(facts={"preset": PRESETS[recipe]}, model=model)
    if recipe == "eval_diffusion_gemma":
        return checkpoint, diffusion_gemma
    return checkpoint, fast_bd3lm if PRESETS[recipe] in ("bd3lm", "llada2", "nemotron", *BLOCKS.values()) else fast_mdlm


def rows(recipe, index, *argv):
    values = configurator.read([str(ROOT / "config" / f"{recipe}.py"), *argv])
    own = {k: v for k, v in values.items() if hasattr(evaluation.Settings, k)}
    s = configurator.fill(own, evaluation.Settings, quiet=True)
    checkpoint, algorithm = stand_in(recipe)
    classes = (evaluation.Settings, tasks.Options, algorithm.SampleOptions, algorithm.LikelihoodOptions)
    out = {}
    for entry in s.tasks:
        name, own, overridden = tasks.settle(values, entry, classes)
        assert overridden == []
        options, likelihood, sampling = tasks.settings_of(own, s, checkpoint, algorithm, classes)
        made = [sampling(leaf.get("generation_kwargs") or {}) for leaf in leaves(name, index)]
        assert all(o == made[0] for o in made), f"{name}: its parts are decoded differently"
        label = options.label or name
        assert label not in out, f"{recipe} has two rows {label}"
        out[label] = Row(name=name, options=options, likelihood=likelihood, sampling=made[0], settings=s)
    return out


def leaves(name, index):
    """The YAML configs of the tasks of a task, group or tag."""
    entry = index[name]
    if entry.kind.name == "TASK":
        return [entry.cfg]
    return [leaf for part in members(entry) for leaf in leaves(part, index)]


def members(entry):
    """Names of the parts of a group or tag; groups that are written out inside of one are looked into."""

    def names(parts):
        for part in parts:
            if isinstance(part, str):
                yield part
            else:
                yield from names(part["task"] if isinstance(part["task"], list) else [part["task"]])

    return sorted(entry.tags) if entry.kind.name == "TAG" else list(names(entry.cfg["task"]))


def scores(config):
    """What lm-eval calls the scores of a task: metric,filter."""
    filters = [f["name"] for f in config.get("filter_list") or [{"name": "none"}]]
    found = []
    for m in config["metric_list"]:
        name = Path(m["metric"]).name.split(".")[-1]  # of a function: /…/utils.pass_at_k
        found += [f"pass@{k}" for k in m["k"]] if name == "pass_at_k" else [name]
    return [f"{name},{f}" for f in filters for name in found]


def group_scores(entry):
    """… and those that it sums up for a group."""
    filters = {m["metric"]: m.get("filter_list") or "none" for m in entry.cfg["aggregate_metric_list"]}
    filters = {k: [v] if isinstance(v, str) else v for k, v in filters.items()}
    return [f"{name},{f}" for name, fs in filters.items() for f in fs]


FOLDERS = (
    "arc bbh benchmarks ceval cmmlu gpqa gsm8k hellaswag humaneval ifeval lambada mbpp minerva_math mmlu mmlu-redux"
)
FOLDERS += " mmlu_pro piqa race truthfulqa winogrande"


@pytest.fixture(scope="module")
def manager():
    """The part of lm-eval's index that they need: all of it takes many seconds."""
    root = Path(lm_eval.tasks.__file__).parent
    return harness.Tasks(include_path=[str(root / name) for name in FOLDERS.split()], include_defaults=False)


@pytest.fixture(scope="module")
def index(manager):
    return manager.task_index


@pytest.fixture(scope="module")
def recipes(index):
    return {recipe: rows(recipe, index) for recipe in RECIPES}


def docstring(recipe):
    return ast.get_docstring(ast.parse((ROOT / "config" / f"{recipe}.py").read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------------------------------
# lm-eval has what they ask for


def test_every_recipe_is_known_here():
    assert RECIPES == sorted(PRESETS) == sorted(PUBLISHED)


@pytest.mark.parametrize("recipe", RECIPES)
def test_tasks_exist_and_give_the_score_that_is_compared(recipe, recipes, manager, index):
    tasks.check_names([row.name for row in recipes[recipe].values()], manager)
    for label, row in recipes[recipe].items():
        entry, metric = index[row.name], row.options.metric
        assert entry.kind.name in ("TASK", "GROUP"), label
        parts = [scores(config) for config in leaves(row.name, index)]
        given = group_scores(entry) if entry.kind.name == "GROUP" else parts[0]
        assert metric, f"{label} leaves the choice of the score to lm-eval"
        found = [s for s in given if metric in (s, s.partition(",")[0])]
        assert len(found) == 1, f"{label}: {metric} is {found} of {given}"
        assert all(found[0] in part for part in parts), label


@pytest.mark.parametrize("recipe", RECIPES)
def test_shots_are_said_and_obeyed(recipe, recipes, index):
    """lm-eval ignores what is asked of a task whose own number is 0; others need somewhere to take examples from."""
    for label, row in recipes[recipe].items():
        shots = row.options.num_fewshot
        assert shots is not None, label
        for config in leaves(row.name, index):
            if config.get("num_fewshot") == 0:
                assert shots == 0, f"{label}: lm-eval would ask with 0 shots, not {shots}"
            examples = (config.get("fewshot_config") or {}).get("samples")
            if isinstance(examples, list):
                assert shots <= len(examples), label
            splits = ("fewshot_split", "training_split", "validation_split")
            assert not shots or examples or any(config.get(split) for split in splits), label


@pytest.mark.parametrize("recipe", RECIPES)
def test_code_is_run_only_by_who_says_so(recipe, recipes, index):
    code = {row.name for row in recipes[recipe].values() if any(c.get("unsafe_code") for c in leaves(row.name, index))}
    assert all(row.settings.run_code == "false" for row in recipes[recipe].values())
    assert ("--run_code" in docstring(recipe)) == bool(code)
    assert code <= {"humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"}


# ------------------------------------------------------------------------------------------------------------------
# numbers


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_numbers_are_those_of_the_tables(recipe, recipes):
    assert {label: row.options.published for label, row in recipes[recipe].items()} == PUBLISHED[recipe]
    speeds = {label: row.options.published_speed for label, row in recipes[recipe].items()}
    assert speeds == ({k: v for k, (_, v) in FAST.items()} if recipe == "eval_fastdllm" else dict.fromkeys(speeds))


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstrings_have_the_table_the_command_and_what_is_left_out(recipe):
    text = docstring(recipe)
    assert re.search(r"^ +published +here$", text, re.M)
    assert f"eval.py config/{recipe}.py" in text and "Not run by us" in text
    for words in TOLD.get(recipe, ()):
        assert words in text


# ------------------------------------------------------------------------------------------------------------------
# settings


def sees(row, **expected):
    """Whether the row's options, likelihood or sampling have these values: the first of them that has such a field."""
    for key, value in expected.items():
        where = next(o for o in (row.sampling, row.likelihood, row.options) if hasattr(o, key))
        assert getattr(where, key) == value, f"{row.name}: {key} = {getattr(where, key)}, published {value}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_answers_are_decoded_greedily_and_a_token_per_step_unless_published_otherwise(recipe, recipes, index):
    dream = PRESETS[recipe] == "dream"
    for label, row in recipes[recipe].items():
        if leaves(row.name, index)[0]["output_type"] != "generate_until":
            continue
        o = row.sampling
        if recipe == "eval_diffusion_gemma":
            assert o == diffusion_gemma.SampleOptions(32768) and row.options.thoughts == (
                "empty" if label.endswith("without_thoughts") else "think"
            )
            continue
        if PRESETS[recipe] == "llada2":
            rules = dict(eval_llada2=(0.95, 1.0), eval_llada21=(0.5, 0.0) if label.endswith("_speed") else (0.7, 0.5))
            assert (o.threshold, o.edit_threshold, o.edit_steps) == (*rules[recipe], 16)
            assert (o.quota, o.measure, o.temperature, o.block_size) == ("threshold", "token", 0.0, 32)
            assert o.overhang and o.max_new_tokens == 4096 and not o.exact
            continue
        if recipe == "eval_dream_instruct":
            assert (o.temperature, o.top_p) == (0.1, 0.9)
        elif recipe == "eval_dream_base":
            assert (o.temperature, o.top_p) == (0.2 if row.name in ("humaneval", "mbpp") else 0.0, 0.95)
        else:
            assert (o.temperature, o.top_p) == (0.0, 1.0)
        assert o.steps == (o.max_new_tokens if dream else 0), label
        assert (o.order, o.measure) == (("entropy", "draw") if dream else ("confidence", "token"))
        assert o.schedule == ("dream" if dream else "linear")
        sure = recipe == "eval_nemotron" or any(word in label for word in ("_parallel", "_both", "_dual"))
        assert o.quota == ("threshold" if sure else "steps")
        blocks = recipe in ("eval_nemotron", "eval_fastdllm_v2")
        assert getattr(o, "opening", "rule") == ("next" if blocks else "rule")
        assert o.lookahead == (PRESETS[recipe] != "illada")
        assert not o.cfg_scale and not o.exact


def test_llada_base(recipes):
    r = recipes["eval_llada_base"]
    for row in r.values():
        sees(row, method="llada", mc_batch=8, apply_chat_template=False, prefix="", last=(), suppress=())
    shots = dict(gpqa_main_n_shot=5, truthfulqa_mc2=0, arc_challenge=0, hellaswag=0, winogrande=5, piqa=0, mmlu=5)
    shots |= {"cmmlu": 5, "ceval-valid": 5, "bbh": 3, "gsm8k": 5, "minerva_math": 4, "humaneval": 0, "mbpp": 3}
    assert {row.name: row.options.num_fewshot for row in r.values()} == shots
    masks = {label: row.likelihood.mc_samples for label, row in r.items()}
    assert masks == {label: 1 if label in ("mmlu", "cmmlu", "ceval-valid") else 128 for label in r}
    guided = {row.name: row.likelihood.cfg_scale for label, row in r.items() if label.endswith("_cfg")}
    assert guided == dict(gpqa_main_n_shot=0.5, truthfulqa_mc2=2.0, arc_challenge=0.5, hellaswag=0.5, piqa=0.5)
    assert all(not row.likelihood.cfg_scale for label, row in r.items() if not label.endswith("_cfg"))
    for name in ("bbh", "gsm8k", "minerva_math", "humaneval", "mbpp"):
        sees(r[name], max_new_tokens=1024, block_size=0)


def test_llada_instruct(recipes):
    r = recipes["eval_llada_instruct"]
    sees(r["mmlu_generative"], max_new_tokens=3, block_size=0, last=(), suppress=())
    sees(r["mmlu_pro"], max_new_tokens=256, block_size=0, last=(), suppress=())
    sees(r["arc_challenge_chat"], max_new_tokens=512, block_size=0, last=(), suppress=())
    sees(r["gsm8k_cot"], max_new_tokens=512, block_size=0, last=LAST, suppress=())
    sees(r["minerva_math"], max_new_tokens=512, block_size=0, last=LAST, suppress=())
    sees(r["gpqa_diamond_generative_n_shot"], max_new_tokens=64, block_size=0, last=LAST, suppress=())
    sees(r["humaneval_instruct"], max_new_tokens=512, block_size=0, last=(), suppress=(126081,))
    sees(r["mbpp"], max_new_tokens=256, block_size=0, last=LAST, suppress=())
    sees(r["gsm8k_cot_blocks"], max_new_tokens=256, block_size=8, last=(), suppress=())
    sees(r["minerva_math_blocks"], max_new_tokens=512, block_size=64, last=(), suppress=())
    assert all(row.options.apply_chat_template for row in r.values())


def test_llada15(recipes):
    r = recipes["eval_llada15"]
    sees(r["gsm8k_cot"], max_new_tokens=256, block_size=16, last=LAST)
    sees(r["minerva_math"], max_new_tokens=1024, block_size=128, last=LAST)
    sees(r["gpqa_diamond_generative_n_shot"], max_new_tokens=256, block_size=16, last=())
    sees(r["humaneval_instruct"], max_new_tokens=512, block_size=32, last=LAST)
    sees(r["mbpp"], max_new_tokens=512, block_size=32, last=LAST)
    sees(r["ifeval"], max_new_tokens=256, block_size=16, last=LAST)
    assert all(row.options.apply_chat_template and not row.sampling.suppress for row in r.values())


def test_illada(recipes):
    r = recipes["eval_illada"]
    for label, row in r.items():
        likelihood = label.endswith("_likelihood")
        sees(row, method="llada" if likelihood else "illada", apply_chat_template=False)
        if likelihood:
            sees(row, mc_samples=128, mc_batch=8)
        sees(row, seen_end=label in ("mmlu", "arc_challenge", "hellaswag", "piqa"))
    for name in ("bbh", "gsm8k_cot", "minerva_math", "mbpp"):
        sees(r[name], max_new_tokens=1024, block_size=32)
    sees(r["humaneval"], max_new_tokens=512, block_size=512)
    r = recipes["eval_illada_instruct"]
    lengths = {label: (row.sampling.max_new_tokens, row.sampling.block_size) for label, row in r.items()}
    assert lengths["mmlu_redux_generative"] == (4, 4) and lengths["mmlu_generative"] == (3, 3)
    assert lengths["gsm8k_cot"] == lengths["humaneval_instruct"] == (2048, 32)
    assert lengths["minerva_math"] == lengths["mmlu_pro"] == (4096, 32)
    assert lengths["mbpp_instruct"] == (2048, 16)


def test_dream(recipes):
    r = recipes["eval_dream_base"]
    for row in r.values():
        sees(row, method="dream", mc_samples=128, prefix="<|beginoftext|>", max_length=2048, block_size=0)
    shots = dict(mmlu=5, arc_easy=0, arc_challenge=0, hellaswag=0, piqa=0, gpqa_main_n_shot=5, winogrande=5, race=0)
    shots |= dict(humaneval=0, gsm8k_cot=8, mbpp=3, minerva_math=4, bbh=3)
    assert {label: row.options.num_fewshot for label, row in r.items()} == shots
    for name in ("humaneval", "mbpp", "minerva_math", "bbh"):
        sees(r[name], max_new_tokens=512)
    sees(r["gsm8k_cot"], max_new_tokens=256)

    r = recipes["eval_dream_instruct"]
    told = {label: (row.options.num_fewshot, row.sampling.max_new_tokens) for label, row in r.items()}
    assert told.pop("gpqa_main_n_shot")[0] == 5
    lengths = dict(mmlu_generative=(4, 128), mmlu_pro=(4, 128), gsm8k_cot=(0, 256), minerva_math=(0, 512))
    lengths |= dict(humaneval_instruct=(0, 768), mbpp_instruct=(0, 1024), ifeval=(0, 1280))
    assert told == lengths
    for label, row in r.items():
        sees(row, apply_chat_template=True, fewshot_as_multiturn=False, prefix="", block_size=0)
        if label in lengths:
            assert row.options.max_length - row.sampling.max_new_tokens == 1024  # tokens of a prompt
    sees(r["gpqa_main_n_shot"], method="dream", mc_samples=32, mc_batch=1, max_length=0)


def test_dllm(recipes):
    for recipe, block in (("eval_qwen3_mdlm", 0), ("eval_qwen3_bd3lm", 32), ("eval_modernbert_chat", 32)):
        for label, row in recipes[recipe].items():
            length = 3 if label == "mmlu_generative" else 256
            sees(row, max_new_tokens=length, block_size=block, apply_chat_template=True, fewshot_as_multiturn=False)
    assert all(row.sampling.cache == "kept" for row in recipes["eval_qwen3_bd3lm"].values())
    for row in recipes["eval_modernbert_chat"].values():
        sees(row, method="llada", mc_samples=32, mc_batch=32)


def test_fastdllm(recipes, index):
    for label, row in recipes["eval_fastdllm"].items():
        shots = {"gsm8k": 8 if "1024" in label else 5, "minerva_math": 4, "humaneval_instruct": 0, "mbpp": 3}
        sees(row, block_size=32, apply_chat_template=True, fewshot_as_multiturn=False, threshold=0.9)
        sees(row, max_new_tokens=int(label.split("_")[1]), num_fewshot=shots[row.name])
        cached = {"cache": "prefix", "both": "prefix", "dual": "dual"}
        assert row.sampling.cache == cached.get(label.split("_")[-1], "none")
        assert row.settings.batch_size == 1


def test_fastdllms_commands_for_dream_are_understood(index):
    text = docstring("eval_fastdllm")
    command = " ".join(re.search(r"(--batch_size.*?MORE\")", text, re.S)[1].split())
    more = dict(re.findall(r"^ {4}(baseline|both|\+ cache|\+ parallel) {2,}(.+)$", text, re.M))
    assert len(more) == 4
    for which, words in more.items():
        flags = re.findall(r'--(\w+)=("[^"]*"|\S+)', command.replace("MORE", words))
        argv = [f"--{key}={value.strip(chr(34))}" for key, value in flags]
        (row,) = rows("eval_dream_base", index, *argv).values()
        sees(row, num_fewshot=5, max_new_tokens=256, temperature=0.0, top_p=1.0, prefix="<|beginoftext|>")
        sees(row, metric="exact_match,flexible-extract", max_length=2048)
        assert row.settings.batch_size == 1
        cached, parallel = which in ("+ cache", "both"), which in ("+ parallel", "both")
        sees(row, cache="prefix" if cached else "none", block_size=32 if cached else 0)
        sees(row, quota="threshold" if parallel else "steps", order="confidence" if parallel else "entropy")
        sees(row, opening="first" if cached else "rule", capped=which == "+ parallel")
        if which != "both":  # whose threshold counts no steps
            sees(row, steps=8 if parallel else 256, schedule="dream")
