"""eval.py over several temperatures or thresholds: each point is a run of its own; lines compare at equal entropy."""

import json
import math
import shutil

import pytest
import torch
from evals import TEXT, made  # noqa: F401

import eval as evaluation
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_mdlm, files, frontier, measures


@pytest.fixture(scope="module")
def data(made, tmp_path_factory):  # noqa: F811
    path, tok = tmp_path_factory.mktemp("text"), ckpt.load(made / "ar").tokenizer
    shutil.copyfile(made / "tokenizer.json", path / "tokenizer.json")
    corpus.write_dataset(path, tok, {"val": tok.encode(TEXT)})
    return path


@pytest.fixture
def run(made, data, tmp_path, monkeypatch):  # noqa: F811
    """eval.py from its command line: the rows it writes."""
    monkeypatch.chdir(tmp_path)

    def run(*words, checkpoint="mdlm"):
        where = ",".join(str(made / c) for c in checkpoint.split(","))
        common = ["--windows=0", "--num_samples=3", "--max_new_tokens=16", "--device=cpu", "--out=r.json"]
        common += [f"--checkpoint={where}", f"--dataset={data}", f"--judge={made / 'ar'}"]
        evaluation.main([*common, *words])
        return json.loads((tmp_path / "r.json").read_text())

    return run


NUMBERS = ("nats", "error", "perplexity", "perplexity_error", "forwards_per_sample", "texts")


def test_each_point_is_what_a_run_of_its_own_measures(run, tmp_path, capsys):
    """In the temperature; in the threshold, which means its quota, and which an autoregressive model does not have."""
    both = run("--temperature=0.5,1", "--steps=4", "--frontier=line.png", checkpoint="mdlm,ar")
    assert (tmp_path / "line.png").stat().st_size > 10_000 and "wrote line.png" in capsys.readouterr().out
    shutil.copyfile("r.json", "again.json")
    for i, t in enumerate((0.5, 1.0)):
        alone = run(f"--temperature={t}", "--steps=4", checkpoint="mdlm,ar")
        for r, one in zip(both, alone):
            point = r["frontier"]["points"][i]
            assert point["temperature"] == t and "temperature" not in r["sampling"] and "frontier" not in one
            assert [point[k] for k in NUMBERS] == [one["sample_entropy"][k] for k in NUMBERS]
    evaluation.main(
        ["--plot", "again.json", "again.json"]
    )  # one checkpoint, decoded in two ways, is called by its file
    assert "| again.json | 0.5 |" in capsys.readouterr().out and (tmp_path / "frontier.png").exists()
    points = [r["frontier"]["points"] for r in run("--threshold=0.02,0.9", checkpoint="bd3lm,ar")]
    assert [[p["threshold"] for p in line] for line in points] == [[0.02, 0.9], [None]]
    assert points[0][0]["forwards_per_sample"] < points[0][1]["forwards_per_sample"]
    alone = run("--threshold=0.9", "--quota=threshold", checkpoint="bd3lm")[0]["sample_entropy"]
    assert [points[0][1][k] for k in NUMBERS] == [alone[k] for k in NUMBERS]


def test_held_out_text_is_measured_as_samples_of_its_length_are(run, made, data):  # noqa: F811
    held = run("--temperature=0.5,1", "--steps=2")[0]["frontier"]["held_out"]
    c = ckpt.load(made / "mdlm")
    windows = torch.from_numpy(corpus.eval_windows(data, corpus.load_meta(data, "val"), 16, 3).astype("int64"))
    assert held["texts"] == [c.tokenizer.decode(x.tolist()) for x in windows]
    s = evaluation.Settings(judge=str(made / "ar"))
    found = measures.judge(held["texts"], [], s, ckpt.load(made / "ar"), "cpu")
    assert held["perplexity"] == found["perplexity"] and len(held["entropies"]) == 3


def point(entropy, perplexity, **more):
    """A point at which all of four samples are alike, so that it has no error."""
    alike = {"entropies": [entropy] * 4, "judged_tokens": [8] * 4, "judged_nats": [8 * math.log(perplexity)] * 4}
    facts = {"nats": entropy, "error": 0.0, "perplexity": perplexity, "perplexity_error": 0.0, "judge": "j"}
    return {**facts, **alike, **more}


def test_the_table_and_perplexities_at_equal_entropy_are_those_of_a_known_line(tmp_path, capsys):
    """b does not reach held-out text's entropy; a and b have entropies from 2 to 2.5."""
    lines = {"a": [(1.0, 4, 1000), (0.5, 2, 10)], "b": [(0.5, 1, 10), (1.0, 2.5, 10)], "c": [(None, 3, 7)]}
    rows = []
    for name, points in lines.items():
        points = [point(e, p, temperature=t, tokens=8, forwards_per_sample=4) for t, e, p in points]
        found = {"over": "temperature", "points": points, "held_out": point(3.0, 20.0)}
        rows.append({"checkpoint": name, "dataset": "d", "frontier": found})
    frontier.show(rows, tmp_path / "line.svg")
    assert (
        capsys.readouterr().out.splitlines()[:-1]
        == """
samples of 8 tokens, judged by j; held-out text: d
| checkpoint | temperature | entropy | generative perplexity | forwards per token | samples |
|---|---|---|---|---|---|
| a | 1 | 4.000 ± 0.000 | 1000.00 ± 0.00 | 0.5 | 4 |
| a | 0.5 | 2.000 ± 0.000 | 10.00 ± 0.00 | 0.5 | 4 |
| b | 0.5 | 1.000 ± 0.000 | 10.00 ± 0.00 | 0.5 | 4 |
| b | 1 | 2.500 ± 0.000 | 10.00 ± 0.00 | 0.5 | 4 |
| c |  | 3.000 ± 0.000 | 7.00 ± 0.00 | 0.5 | 4 |
| held-out text |  | 3.000 ± 0.000 | 20.00 ± 0.00 |  | 4 |

Perplexity at equal entropy, on straight lines (of its logarithm) between points next to each other:
| entropy | checkpoint | generative perplexity | times the first |
|---|---|---|---|
| 3.000, held-out text's | a | 100.00 ± 0.00 | 1 |
| 3.000, held-out text's | b | not reached: from 1.000 to 2.500 |  |
| 3.000, held-out text's | c | not reached: from 3.000 to 3.000 |  |
| 2.250, amid what all lines have | a | 17.78 ± 0.00 | 1 |
| 2.250, amid what all lines have | b | 10.00 ± 0.00 | 0.562 ± 0.000 |
| 2.250, amid what all lines have | c | not reached: from 3.000 to 3.000 |  |""".splitlines()
    )
    assert "held-out text" in (tmp_path / "line.svg").read_text()
    with pytest.raises(SystemExit, match="of different data, judges, lengths or options; plot those of one kind"):
        frontier.show([*rows, rows[0] | {"dataset": "e"}], "line.png")


def test_the_error_at_an_entropy_is_that_of_both_coordinates_of_both_points():
    """To first order, of what each sample adds to either; the samples of one number have much in common."""
    torch.manual_seed(0)
    n, common, points = 400, torch.randn(400, dtype=torch.float64), []
    for e, y in ((2.0, 3.0), (4.0, 7.0)):
        x = e + 0.3 * common + 0.2 * torch.randn(n, dtype=torch.float64)
        nats = y + 0.8 * common + 0.3 * torch.randn(n, dtype=torch.float64)
        points.append((x, nats))
    (x0, y0), (x1, y1) = points
    slope, entropy = (y1.mean() - y0.mean()) / (x1.mean() - x0.mean()), 2.5
    w = (entropy - x0.mean()) / (x1.mean() - x0.mean())
    each = (1 - w) * y0 + w * y1 - slope * ((1 - w) * x0 + w * x1)
    keys = ("entropies", "judged_nats", "judged_tokens")
    found = [dict(zip(keys, (x.tolist(), y.tolist(), [1] * n))) for x, y in reversed(points)]
    logs = frontier.where(frontier.line(found), entropy)
    assert logs[0].item() == pytest.approx((y0.mean() + w * (y1.mean() - y0.mean())).item(), rel=1e-12)
    assert logs[1:].std().item() == pytest.approx(each.std().item() / n**0.5, rel=0.1)
    said, error = map(float, frontier.spoken(logs, 6).split(" ± "))
    assert error / said == pytest.approx(each.std().item() / n**0.5, rel=0.1)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--temperature=,"], "temperature=, is a list of 0; a line needs two values or more"),
        (["--temperature=0.5,"], "temperature=0.5, is a list of 1"),
        (["--temperature=0.5,-1"], "temperature = '-1' .* does not fit: it takes a number from 0"),
        (["--temperature=0.5,x"], "temperature = 'x' .* does not fit"),
        (["--steps=4,2.5"], "steps = '2.5' .* does not fit: it takes a whole number"),
        (["--top_p=0,1"], "top_p = '0' .* does not fit"),
        (
            ["--temperature=0.5,1", "--threshold=0.5,0.9"],
            "temperature and threshold are lists; a line is drawn over one",
        ),
        (["--temperature=0.5,1", "--judge="], "a list of temperature draws .* under a judge: say judge"),
        (["--temperature=0.5,1", "--num_samples=1"], "say judge, and num_samples of at least 2"),
        (["--temperature=0.5", "--frontier=a.png"], "frontier=a.png shows a line of samples: say several values"),
        (["--temperature=0.5,1", "--frontier=a.txt"], "frontier=a.txt must end in .png or .pdf or .svg"),
        (["--temperature=0.5,1", "--frontier=no/a.png"], "frontier=no/a.png: there is no directory no"),
        (["--threshold=0.5,0.9", "--quota=steps"], "threshold=0.5 .* does nothing with quota=steps"),
        (["--temperature=0,1", "--top_p=0.5"], "top_p=0.5 .* does nothing with temperature=0"),
        (["--seed=0,1"], "seed = '0,1' .* does not fit"),
        (["--dataset=chat.jsonl"], "samples are not compared with conversations, as chat.jsonl are"),
        (["--tasks=x", "--frontier=a.png", "--judge="], "does nothing beside tasks"),
    ],
)
def test_bad_lists_are_refused_in_one_sentence_before_any_work(words, said, run, tmp_path, monkeypatch):
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.setattr(fast_mdlm, "generate", lambda *_, **__: pytest.fail("it writes before the refusal"))
    with pytest.raises(SystemExit, match=said) as e:
        run(*words)
    assert "\n" not in e.value.code


def test_checkpoints_whose_entropies_differ_in_meaning_are_refused(run, made, data, tmp_path):  # noqa: F811
    c = ckpt.load(made / "mdlm")
    short = type(c.model.config)(**{**vars(c.model.config), "seq_len": 12})
    ckpt.save(tmp_path / "short", dict(c.model.named_parameters()), short, c.tokenizer, made, "mdlm", {"seq_len": 12})
    both = f"--checkpoint={made / 'mdlm'},{tmp_path / 'short'}"
    with pytest.raises(SystemExit, match="mdlm and of .*short do not compare: max_new_tokens is 16 and 12"):
        run("--temperature=0.5,1", both)
    assert len(run("--temperature=0.5,1", "--steps=2", "--max_new_tokens=12", both)) == 2


def test_bounds_are_marked_where_a_table_holds_some_of_different_slack(run, capsys):
    words = ["--windows=2", "--samples=1", "--chain_rule=left_to_right", "--chain_windows=1"]
    for names, marked, plain in (("mdlm", 0, 1), ("mdlm,bd3lm", 2, 0), ("mdlm,mdlm", 0, 2), ("mdlm,ar", 1, 0)):
        run(*words, "--num_samples=0", "--judge=", checkpoint=names)
        out = capsys.readouterr().out
        assert (out.count("| NELBO, a bound |"), out.count("| NELBO |")) == (marked, plain)
        assert out.count("A bound lies above") == bool(marked) and "| exact, left_to_right |" in out


@pytest.mark.parametrize("nats", [1.0, 709.0, 710.0, 1e300, math.inf, math.nan])
def test_a_broken_network_has_a_line_of_its_own_and_costs_no_other(nats, tmp_path, capsys):
    """Also in a table of what was written, where JSON has null."""
    row = {"checkpoint": "c", "algorithm": "ar", "parameters": 1, "dataset": "d", "policy": "p"}
    row["likelihood"] = {"exact": measures.row(torch.tensor([nats, nats], dtype=torch.float64), 1.0)}
    for results in ([row], json.loads(files.to_json([row]))):
        (tmp_path / "r.json").write_text(json.dumps(results))
        evaluation.main(["--table", str(tmp_path / "r.json")])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| c |"))
        assert (f"| {math.e:.2f} |" in line) == (nats == 1) and line.count("|") == 8
