"""The paper's claims, measured: on tables made by hand, and in the README as in the committed runs."""

import re
import subprocess
import sys
from collections import Counter

import nbformat
import numpy as np
import pandas as pd
import pytest

from src.analysis import claims
from src.analysis.scores import sink_shares
from src.config import RunConfig
from src.model.attention import PAPER
from src.runs import COMMITTED, ROOT, load_runs


def induction_runs(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Runs of the main setting: the one head's sink score of each seed, by attention type."""
    return pd.DataFrame(
        RunConfig(attention_type=name, positional_type="add", seed=seed).to_dict()
        | {"state": "finished", "eval/acc_induction": 1.0}
        | dict.fromkeys(("1_0_rel_attn_bos_global", "1_0_mag_attn_bos_global"), score)
        for name, values in scores.items()
        for seed, score in enumerate(values)
    )


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0.8, 0.65, 0.951), "0.80 [0.65, 0.95]"), ((1, 1, 1), "1.00"), ((-0.5, -0.6, 0), "−0.50 [−0.60, 0.00]")],
)
def test_an_interval_in_words(numbers, text):
    assert claims.interval(*numbers) == text


def test_a_single_seed_is_said():
    assert claims.interval(1, 1, 1, seeds=1) == "1.00 (1 seed)"
    assert claims.sinks_by_type(induction_runs({"softmax": [0.95, 0.99], "sigmoid_unnorm": [0.1]})).endswith(
        "softmax 1.00, sigmoid_unnorm 0.00 (1 seed)"
    )


@pytest.mark.parametrize("field", ["num_epochs", "embed_dim", "precision", "batch_size"])
def test_runs_that_differ_in_more_than_seeds_are_not_pooled(field):
    other = {"num_epochs": 3, "embed_dim": 64, "precision": "bf16", "batch_size": 32}[field]
    runs = induction_runs({"softmax": [0.95, 0.99, 0.99], "sigmoid_unnorm": [0.1, 0.1, 0.1]})
    some = induction_runs({"softmax": [0.1, 0.1], "sigmoid_unnorm": [0.1, 0.1]}).assign(**{field: other})
    both = pd.concat([runs, some])
    assert claims.sinks_by_type(both) == claims.sinks_by_type(runs)
    assert f"{other} (6/4 runs)".split()[0] in claims.chosen(both)
    assert "the main ones, 6" in claims.chosen(both)


def test_the_same_run_twice_counts_once():
    runs = induction_runs({"softmax": [0.95, 0.1], "sigmoid_unnorm": [0.1, 0.1]})
    twice = pd.concat([runs, runs[:1], runs[:1]])
    assert claims.sinks_by_type(twice) == claims.sinks_by_type(runs)
    assert claims.learned(twice) == claims.learned(runs)


def test_rates_are_shown_apart_and_pooled_with_equal_weights():
    runs = induction_runs({"softmax": [0.95, 0.95, 0.95, 0.1]}).assign(lr=[1e-3, 1e-3, 1e-3, 1e-2])
    row = claims.rates_table(runs).splitlines()[2]
    assert row == "| softmax | 1.00 |  | 0.00 (1 seed) |  | 0.50 (1 seed) |  |"
    both = pd.concat([runs, runs[:2].assign(lr=1e-2)], ignore_index=True)  # two seeds at least of either
    assert " | 0.83 [" in claims.rates_table(both).splitlines()[2]


def test_numbers_of_heads_are_shown_apart():
    runs = induction_runs({"softmax": [0.95, 0.95, 0.1], "sigmoid_norm": [0.95], "sigmoid_unnorm": [0.1]})
    few = runs.assign(num_heads=1, **{"eval/acc_induction": [1, 0.9, 0.9, 0.5, 1]})
    few.loc[2, "state"] = "diverged"
    both = pd.concat([runs, few], ignore_index=True)
    assert claims.solved_by_heads(both).replace("\N{NO-BREAK SPACE}", " ").splitlines() == [
        "| runs that solve the task, lr 0.001 | 1 head | 4 heads |",
        "| --- | --- | --- |",
        "| softmax | 1 of 3 | 3 of 3 |",
        "| sigmoid | 0 of 1 / 1 of 1 | 1 of 1 / 1 of 1 |",
    ]
    assert claims.sinks_by_heads(both).splitlines()[2:] == [
        "| softmax | 1.00 (1 seed) |  | 0.67 [0.00, 1.00] |  |",
        "| sigmoid |  | 0.00 (1 seed) | 1.00 (1 seed) | 0.00 (1 seed) |",
    ]


def test_sinks_are_counted_by_type():
    runs = induction_runs({"softmax": [0.95, 0.99], "sigmoid_unnorm": [0.95, 0.1]})
    assert claims.sinks_by_type(runs) == "share of heads: softmax 1.00, sigmoid_unnorm 0.50 [0.00, 1.00]"


def test_the_main_setting_is_taken_where_most_runs_are():
    runs = induction_runs({"softmax": [0.95, 0.1, 0.1]}).assign(lr=[1e-4, 2e-3, 2e-3])
    assert claims.induction_main(runs).index.tolist() == [1, 2]
    assert claims.induction_main(runs[:0]).empty
    elsewhere = runs.assign(positional_type="no")
    assert claims.induction_main(elsewhere).index.tolist() == [1, 2]  # of no run of the main setting, the commonest


def test_runs_that_solve_the_task_are_counted_by_learning_rate():
    induction = induction_runs({"softmax": [0.9, 0.9], "uniform": [0.1]}).assign(lr=[0.1, 1e-3, 1e-3])
    induction.loc[0, "eval/acc_induction"] = 0.95
    diverged = induction[:1].assign(seed=7, state="diverged")
    classification = pd.DataFrame([RunConfig(task="classification").to_dict() | {"state": "finished", "eval/acc": 1}])
    assert claims.learned(pd.concat([induction, diverged, classification])) == (
        "runs with accuracy above 0.95 (mean accuracy): induction with positions: lr 0.001 1 of 1 (1.00, 1 seed), "
        "lr 0.1 0 of 2 (0.95, 1 seed, 1 diverged); classification: lr 0.001 1 of 1 (1.00, 1 seed)"
    )


def test_the_effect_of_normalising_is_a_mean_over_pairs_of_a_seed():
    scores = {"sigmoid_norm": [0.95, 0.95, 0.1], "sigmoid_unnorm": [0.1, 0.1, 0.1, 0.95], "mlp_norm": [0.95]}
    runs = claims.induction_main(induction_runs(scores))
    effects = claims.effects_of_normalising_in(runs, sink_shares(runs))
    assert effects == "sigmoid +0.67 [−0.77, +1.00]"  # seed 3 has no pair, mlp no other run


def test_settings_show_what_was_not_solved_and_what_was_not_run():
    one = induction_runs({"softmax": [0.95]})
    unsolved = one.assign(aux_loss_weight=0.0, **{"eval/acc_induction": 0.5})
    lines = claims.settings_table(pd.concat([one, unsolved], ignore_index=True)).replace("\N{NO-BREAK SPACE}", " ")
    assert lines.startswith("| lr 0.001, 4 heads; 1 seed each | softmax |\n")
    assert "| aux 0.2, shift, positions add | 1.00 |\n" in lines
    assert "| aux 0, shift, positions add | – |\n" in lines
    assert "| aux 0, no shift, positions add |  |\n" in lines


def test_the_effect_of_normalising_in_every_setting():
    runs = [
        induction_runs({"sigmoid_norm": [high], "sigmoid_unnorm": [low], "mlp_norm": [0.95]}).assign(**setting)
        for setting, high, low in (
            ({}, 0.95, 0.1),
            ({"shift_query_token": False}, 0.1, 0.95),
            ({"positional_type": "no"}, 0.95, 0.91),
            ({"aux_loss_weight": 0.0}, 0.1, 0.1),
        )
    ]
    runs.append(runs[0].assign(seed=1))  # a second run in a setting is one more for its mean
    runs = pd.concat(runs, ignore_index=True)
    assert claims.effects_by_setting(runs).endswith(
        "aux 0 higher in 0, equal in 1, lower in 0; aux 0.2 higher in 1, equal in 1, lower in 1"
    )
    assert "| 1.00 / 0.00 |" in claims.settings_table(runs)


def test_scores_of_signed_kernels():
    runs = induction_runs({"mlp_norm": [3.4, -7.2, 0.95], "softmax": [99.0]})
    runs["1_0_mag_attn_bos_global"] = [0.4, 0.1, 0.92, 1.0]
    assert claims.range_of_signed_scores(runs) == (
        "sink scores from −7 to 3; 2 heads above 0.9, 1 of them above 1, with shares of abs(w) of at most 0.92"
    )


def test_the_order_when_attention_is_half_polarized():
    entropies = np.array([[1.0, 0.4, 0.1], [1.0, 0.9, 0.3]])
    orders = np.array([[0.5, 0.8, 1.0], [0.5, 0.6, 0.8]])
    assert claims.order_when_polarized(entropies, orders) == (
        "the entropy falls below 0.5 at step 2 to 3, when 0.80 of all pairs of tokens are in the order of the end"
    )
    never = np.vstack([entropies[:1], np.ones((2, 3))])
    assert claims.order_when_polarized(never, np.vstack([orders, orders[:1]])).startswith(
        "the entropy falls below 0.5 in 1 of 3 runs at step 2 to 2, when 0.80 (1 seed) of all pairs"
    )
    with pytest.raises(claims.LogError, match="in no run"):
        claims.order_when_polarized(never[1:], orders)


def test_a_table_has_a_row_for_each_kernel_and_leaves_blank_what_was_not_run():
    runs = induction_runs({"mlp_norm": [0.1], "mlp_unnorm": [0.1], "softmax": [0.95]})
    runs["attention_type"] = ["my.py:f", "mlp_unnorm", "softmax"]
    table = claims.sink_table(runs)
    assert table.replace(" (1 seed)", "").splitlines()[2:] == [
        "| softmax | 1.00 |  | 1.00 |  |",
        "| mlp |  | 0.00 |  | 0.00 |",
        "| f | 0.00 |  | 0.00 |  |",
    ]


def test_entropy_is_compared_at_the_start_and_at_the_end():
    history = {"history/step": np.array([0, 10]), "history/1_0_attn_entropy": np.array([1.0, 0.25])}
    runs = induction_runs({"softmax": [0.95]}).assign(**{name: [values] for name, values in history.items()})
    assert claims.entropy_fall(runs, "softmax", layer=1) == "1.00 → 0.25 (1 seed)"


RESULTS = ROOT / "results" / "README.md"


def test_the_results_say_what_the_committed_runs_say():
    readme, runs = RESULTS.read_text(), load_runs(COMMITTED, history=True)
    for claim, measure in claims.MEASURED.items():
        assert f"({claim})" in readme
        assert measure(runs) in readme
    for table in claims.TABLES.values():
        assert table(runs) in readme


def test_the_readme_says_what_the_notebook_measured():
    notebook = nbformat.read(ROOT / "visualizations" / "classification_with_sample_tracking.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (sentence,) = [line for line in printed.splitlines() if "in the order of the end" in line]
    assert sentence in RESULTS.read_text()


def test_the_front_page_says_what_the_results_say():
    """Each number of its table of claims (a) to (f) stands in the row of that claim."""
    front, results = ((path).read_text() for path in (ROOT / "README.md", RESULTS))
    for claim in "abcdef":
        (row,) = [line for line in front.splitlines() if line.startswith(f"| ({claim})")]
        found = "".join(line for line in results.splitlines() if line.startswith(f"| ({claim}"))
        numbers = re.findall(r"\+?\d\.\d\d|\d+ of \d+", row.split(" | ")[-1])
        assert numbers
        assert all(number in found for number in numbers), claim


def test_the_front_page_lists_the_attention_types():
    front = (ROOT / "README.md").read_text()
    for name, kind in PAPER.items():
        assert f"| `{name}` | `{kind.formula}` | {kind.label} |" in front


def test_the_committed_runs_are_accounted_for():
    """The table of commands in results/README.md has all of them, by the commit whose code trained them."""
    rows = re.findall(r"^\| ([\d,]+) \| .* \| (\w+) \| .* \|$", RESULTS.read_text(), re.M)
    counts = Counter()
    for count, code in rows:
        counts[code] += int(count.replace(",", ""))
    assert counts == Counter(load_runs(COMMITTED)["code"].str[:7])


def test_what_no_run_says_is_said(tmp_path, capsys):
    induction_runs({"sigmoid_norm": [0.95]}).to_parquet(tmp_path / "runs.parquet")
    assert claims.main([str(tmp_path / "runs.parquet")]) == 0
    out = capsys.readouterr().out
    assert "(a) no run of softmax to measure this by" in out
    assert "| sigmoid | 1.00 (1 seed) |" in out


@pytest.mark.parametrize(("source", "words"), [("nowhere.parquet", "nowhere.parquet"), ("empty.parquet", "empty")])
def test_a_source_without_runs_is_one_sentence(source, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame().to_parquet("empty.parquet")
    assert claims.main([source]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert words in message
    assert message.count("\n") == 1


def test_a_reader_who_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "src.analysis.claims"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
