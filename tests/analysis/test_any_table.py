"""Whatever table `load_runs` gives: tables, pictures, claims and notebooks run, and say what they cannot show."""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from tiny import PARITY, tiny

from src.analysis import claims, figures, report, scores
from src.analysis.figures import style
from src.analysis.selection import of_task, setting_in_words, settled, task_class, what_varies
from src.config import RunConfig
from src.runs import ROOT, RunLog, load_runs
from src.tasks import Classification
from src.training.workers import execute

OWN = (
    """
import torch

from src import metrics
from src.tasks import HeadScore, Solved, Task
from src.tasks.base import mean_clipped


def halved(q, k, mask):
    weights = torch.sigmoid(q @ k.mT) / 2
    return weights if mask is None else weights * mask


class Parity(Task):
    defaults = {"seq_length": 4, "num_train": 128, "positional_type": "no"}
    settings = ("lr", "num_layers", "num_heads")
    accuracy = "eval/right"
    solved = Solved("eval/error", below=0.3, words="error")
    scores = {"first": HeadScore(r"\\d+_\\d+_rel_attn_max", "weight of the first", mean_clipped, solved_only=True)}
    words = {"lr": "rate"}
"""
    + PARITY
)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Runs of three tasks, one of them own, that differ in more than seeds: own types, a diverged run, one layer."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    own, log = f"{folder / 'own.py'}", RunLog(folder / "runs.db")
    for config in (
        *(tiny(seed=seed) for seed in range(2)),
        *(tiny(**fields) for fields in ({"lr": 1e-2}, {"lr": 1e30}, {"num_heads": 1}, {"num_epochs": 1})),
        *(tiny(attention_type=name) for name in ("sigmoid_unnorm", f"{own}:halved", "uniform")),
        *(tiny("classification", attention_type=name) for name in ("softmax", f"{own}:halved")),
        *(RunConfig(task=f"{own}:Parity", embed_dim=16, num_eval=32, num_epochs=2, lr=lr) for lr in (1e-3, 1e-2)),
    ):
        log.claim(config)
        execute([config], log, "cpu")
        log.release(config)
    return log.path


@pytest.fixture
def drawn(monkeypatch) -> dict[str, str]:
    """Pictures that are saved, by folder and name, with their text, drawn but not written."""
    pictures = {}

    def save(figure, name, folder=None):
        figure.canvas.draw()
        pictures[f"{folder}/{name}"] = " ".join(text.get_text() for text in figure.findobj(plt.Text))
        plt.close(figure)
        return []

    monkeypatch.setattr(figures, "save", save)
    return pictures


def run_notebook(name: str, source: Path | str, **preset) -> None:
    """Its cells in this process, with SOURCE set after the cell for parameters, as papermill does."""
    names = dict(preset)
    for cell in nbformat.read(ROOT / "visualizations" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names["SOURCE"] = str(source)


def test_the_log_is_what_the_tests_are_about(log):
    runs = load_runs(log)
    assert runs["state"].value_counts().to_dict() == {"finished": len(runs) - 1, "diverged": 1}


@pytest.mark.parametrize("name", ["induction", "classification"])
def test_a_notebook_runs_on_any_log_and_saves_elsewhere(name, log, drawn, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run_notebook(name, log)
    assert drawn
    assert {key.rpartition("/")[0] for key in drawn} == {str(figures.OWN_FOLDER)}
    assert any("halved" in text for text in drawn.values())
    assert not any("Nothing to show" in text for text in drawn.values())


@pytest.mark.parametrize(("name", "task"), [("induction", "classification"), ("classification", "induction")])
def test_a_notebook_says_what_a_log_of_another_task_cannot_show(name, task, log, drawn, tmp_path, capsys):
    runs = load_runs(log, history=True)
    runs[runs["task"] == task].to_parquet(tmp_path / "other.parquet")
    run_notebook(name, tmp_path / "other.parquet")
    assert "0 runs" in capsys.readouterr().out
    assert drawn
    assert all("Nothing to show: " in text for text in drawn.values())


def test_a_run_is_compared_with_those_of_any_log(log):
    runs = of_task(load_runs(log), "classification")
    assert scores.scored(runs, Classification)[["eval/acc", "sparsity", "flip_rate"]].notna().all(axis=None)
    runs = of_task(load_runs(log), "induction")
    assert scores.scored(runs, Classification)[["sparsity", "flip_rate"]].isna().all(axis=None)


def test_claims_of_any_log(log, capsys):
    assert claims.main([str(log)]) == 0
    out = capsys.readouterr().out
    assert "9 runs of induction, 1 of them diverged, which differ in" in out
    assert "2 runs of other tasks" in out
    assert "(a) no run of softmax to measure this by" in out  # none solves the task
    assert "lr 1e+30 0 of 1 (1 diverged)" in out
    assert "halved" in out


def test_claims_of_another_task_are_sentences(log, tmp_path, capsys):
    runs = load_runs(log, history=True)
    runs[runs["task"].str.contains("Parity")].to_parquet(tmp_path / "parity.parquet")
    assert claims.main([str(tmp_path / "parity.parquet")]) == 0
    titles = {"", *(f"({name})" for name in claims.TABLES)}
    said = [line for line in capsys.readouterr().out.splitlines() if line not in titles]
    assert said[:3] == [
        "0 runs of induction",
        "0 runs of classification",
        "2 runs of other tasks, of which the paper claims nothing",
    ]
    assert all("no run of" in line for line in said[3:])


def test_a_closing_table_has_what_varies_as_rows(log):
    blocks = report.of_sweep(load_runs(log)).split("\n\n")
    assert [block.partition(":")[0] for block in blocks] == ["induction", "classification", "Parity"]
    induction = blocks[0].splitlines()
    assert induction[1].split() == ["finished", "diverged", "eval/acc_induction", "seconds"]  # no run solves the task
    assert induction[2].split()[:4] == ["lr", "num_epochs", "num_heads", "attention_type"]
    (diverged,) = [line.split() for line in induction if "1.000000e+30" in line or "1e+30" in line]
    assert diverged[-2] == "–"  # what it had measured is not averaged in
    assert len([line for line in blocks[2].splitlines() if "softmax" in line]) == 2


def test_pictures_of_any_log(log, drawn, tmp_path):
    report.save_figures(load_runs(log, history=True), "mine", tmp_path)
    assert {key.rpartition("/")[2] for key in drawn} == {
        *("mine_induction_sink_share", "mine_induction_training", "mine_classification_sparsity"),
        *("mine_classification_training", "mine_Parity_first", "mine_Parity_training"),
    }
    parity = drawn[f"{tmp_path}/mine_Parity_first"].replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert "weight of the first" in parity
    assert "rate 0.001" in parity
    assert "runs with error < 0.3" in parity


def test_a_picture_that_fails_is_a_sentence_and_costs_no_other(log, monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise RuntimeError("no LaTeX\nhere")

    runs = load_runs(log, history=True)
    monkeypatch.setattr(figures, "score_bars", broken)
    paths = report.save_figures(runs[runs["task"] == "classification"], "mine", tmp_path)
    assert [path.name for path in paths] == ["mine_classification_training.pdf", "mine_classification_training.png"]
    assert capsys.readouterr().err == "no picture mine_classification_sparsity: no LaTeX here\n"


def test_a_task_whose_file_is_gone_still_has_a_table(log, tmp_path, drawn):
    runs = load_runs(log, history=True)
    gone = runs[runs["task"].str.endswith("Parity")].assign(task="gone.py:Parity")
    assert report.of_sweep(gone).startswith("Parity: 2 runs\n")
    assert task_class("gone.py:Parity").scores == {}
    report.save_figures(gone, "mine", tmp_path)
    assert list(drawn) == [f"{tmp_path}/mine_Parity_training"]


@pytest.mark.parametrize("how", ["joined", "nullable", "arrow"])
def test_tables_from_elsewhere_say_the_same(how, log):
    runs = load_runs(log, history=True)
    plain = of_task(runs, "induction")
    if how == "joined":  # labels and runs twice, the second time only begun
        begun = runs.assign(state="running")
        other = pd.concat([begun, runs, runs[:3]])
    else:
        flat = runs[[name for name in runs if not name.startswith("history/")]]
        history = runs[[name for name in runs if name.startswith("history/")]]
        kind = "pyarrow" if how == "arrow" else "numpy_nullable"
        other = pd.concat([flat.convert_dtypes(dtype_backend=kind), history], axis=1)
    found = of_task(other, "induction")
    assert len(found) == len(plain) == 9
    for score in (scores.accuracies, scores.sink_shares):
        assert sorted(score(other)) == sorted(score(runs))
    assert scores.by_type(other, scores.accuracies(other)).equals(scores.by_type(runs, scores.accuracies(runs)))
    assert sorted(claims.told(claims.learned, other)) == sorted(claims.told(claims.learned, runs))
    figures.training_curves(found)
    figures.induction_accuracies(found)
    plt.close("all")


def test_a_settled_table_is_itself(log):
    runs = settled(load_runs(log))
    assert settled(runs).equals(runs)


def test_runs_that_differ_in_more_than_seeds_are_not_pooled(log):
    main = claims.induction_main(load_runs(log))
    assert what_varies(main).replace("\N{NO-BREAK SPACE}", " ") == "seed 0–1"
    assert set(main["num_epochs"]) == {2}
    assert "2 epochs" in setting_in_words(main).replace("\N{NO-BREAK SPACE}", " ")


def test_text_that_has_no_code_is_replaced(log, monkeypatch):
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii"))
    assert claims.main([str(log)]) == 0
    sys.stdout.flush()
    assert b"runs of induction" in bytes_out.getvalue()


def test_pictures_are_whole_or_not_there(tmp_path, monkeypatch):
    figure = plt.figure()
    style.save(figure, "whole", tmp_path)
    before = (tmp_path / "whole.png").read_bytes()

    def cut(self, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", cut)
    with pytest.raises(KeyboardInterrupt):
        style.save(figure, "whole", tmp_path)
    assert (tmp_path / "whole.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pdf", "whole.png"}


def test_a_matplotlibrc_of_ones_own_changes_nothing(tmp_path, monkeypatch):
    runs = pd.DataFrame([tiny(seed=s).to_dict() | {"state": "finished", "eval/acc_induction": 1.0} for s in (0, 1)])
    one = style.save(figures.induction_accuracies(runs), "one", tmp_path)
    figure = figures.induction_accuracies(runs)
    for name, value in {"text.usetex": True, "savefig.dpi": 20, "savefig.transparent": True}.items():
        monkeypatch.setitem(plt.rcParams, name, value)
    two = style.save(figure, "two", tmp_path)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
