"""train.py, as its users run it."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny import options, tiny

import train
from src.runs import RunLog, load_runs

ROOT = Path(__file__).parents[1]
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch):
    for name in set(os.environ) - set(OUTSIDE):
        monkeypatch.delenv(name)


def run(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=OUTSIDE | environment, capture_output=True, text=True)


def here(*arguments):
    """The same in this process, which has imported torch already."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = train.main([str(argument) for argument in arguments])
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def sweep_file(folder, **values):
    config = {k: v for k, v in tiny(**values.pop("fixed", {})).to_dict().items() if v is not None and k not in values}
    parameters = {k: {"value": v} for k, v in config.items()} | {k: {"values": v} for k, v in values.items()}
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    return path


def test_a_single_run_from_any_directory(tmp_path):
    config = tiny("classification", seed=3)
    done = run(*options(config), "--log", "here.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "classification, softmax, seed 3: finished" in done.stdout
    assert "abs_attn_max" in done.stdout
    assert "layer 1 head 1" in done.stdout
    assert "accuracy=" in done.stderr
    assert "loss=" in done.stderr
    assert RunLog(tmp_path / "here.db").states() == {config.hash: "finished"}


def test_what_wandbs_agent_passes(tmp_path, capsys):
    log = tmp_path / "runs.db"
    arguments = [*options(tiny()), "--lr=1e-05", "--use_mlp=True", "--num_labels=None", "--aux_loss_weight=1"]
    assert train.main([*arguments, "--log", str(log)]) == 0
    (row,) = load_runs(log).to_dict("records")
    assert (row["lr"], row["use_mlp"], row["aux_loss_weight"]) == (1e-5, True, 1.0)


def test_a_config_file_and_what_overrides_it(tmp_path, capsys):
    file, log = tmp_path / "config.yaml", tmp_path / "runs.db"
    file.write_text(yaml.safe_dump({k: v for k, v in tiny().to_dict().items() if v is not None}))
    assert train.main(["--config", str(file), "--seed=7", "--log", str(log)]) == 0
    assert list(RunLog(log).states()) == [tiny(seed=7).hash]
    assert train.main(["--config", str(file), "--seed=7", "--log", str(log)]) == 0
    assert "is not repeated" in capsys.readouterr().out


def test_a_sweep_ends_with_a_table_and_pictures(tmp_path, capsys):
    sweep = sweep_file(tmp_path, attention_type=["softmax", "mlp_unnorm"], seed=[0, 1])
    for name in ("src.py", "torch.py", "numpy.py"):  # of another project, where the user is; workers too find ours
        (tmp_path / name).write_text("raise ImportError('not ours')")
    paths = ["--sweep", sweep, "--log", "runs.db", "--figures", ".", "--keep_models", "models"]
    done = run(*paths, "--workers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 failed, 0 diverged, 0 resumed" in done.stderr
    assert "mlp_unnorm" in done.stdout
    for name in ("few_sink_share", "few_induction_training"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert "4 models are in models" in done.stdout
    assert len(list((tmp_path / "models").iterdir())) == 4
    # what is done is not done again; of what is left the log knows the time
    more = sweep_file(tmp_path, attention_type=["softmax", "mlp_unnorm"], seed=[0, 1, 2])
    assert train.main(["--sweep", f"{more}", "--log", f"{tmp_path}/runs.db", "--dry_run"]) == 0
    out, _ = capsys.readouterr()
    assert "6 runs; the first:" in out
    assert f"4 of them are in {tmp_path}/runs.db: 2 are left." in out
    assert "judged by the log's times of such runs (2 of 2)." in out
    assert train.main(["--sweep", f"{sweep}", "--log", f"{tmp_path}/runs.db", "--dry_run"]) == 0
    assert "0 are left." in capsys.readouterr().out


def test_shards_and_dry_run(tmp_path, capsys):
    sweep = sweep_file(tmp_path, seed=[0, 1, 2])
    arguments = ["--sweep", str(sweep), "--log", str(tmp_path / "runs.db")]
    assert train.main([*arguments, "--shard=3/3", "--dry_run", "--workers=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 runs; the first:")
    assert "with 1 workers, judged by a few steps of 4 of the runs" in out  # one run keeps one worker busy
    assert not (tmp_path / "runs.db").exists()


def test_a_cell_as_an_agent_passes_it(tmp_path):
    """Trained as a stack; a sweep over the same runs repeats none of them."""
    log, once = tmp_path / "runs.db", [o for o in options(tiny()) if not o.startswith(("--seed", "--lr"))]
    done = here(*once, "--seed=[0, 1]", "--lr=[0.01, 1e-05]", "--stack=4", "--workers=1", "--log", log)
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 failed, 0 diverged, 0 resumed" in done.stderr
    rows = load_runs(log)
    assert sorted(zip(rows["seed"], rows["lr"], strict=True)) == [(0, 1e-5), (0, 0.01), (1, 1e-5), (1, 0.01)]
    assert rows["process"].nunique() == 1
    sweep = sweep_file(tmp_path, seed=[0, 1, 2], lr=[0.01])
    done = here("--sweep", sweep, "--stack=2", "--log", log, "--figures", tmp_path)
    assert "3 done, 0 failed, 0 diverged, 2 resumed" in done.stderr
    assert len(load_runs(log)) == 5


def test_shards_with_a_log_each_are_one_table(tmp_path):
    sweep = sweep_file(tmp_path, attention_type=["softmax", "linear"], seed=[0, 1, 2])
    for i in (1, 2):
        arguments = ["--sweep", sweep, "--shard", f"{i}/2", "--stack=3", "--workers=1", "--figures", tmp_path]
        done = here(*arguments, "--log", tmp_path / f"shard-{i}.db")
        assert done.returncode == 0, done.stderr
        assert load_runs(tmp_path / f"shard-{i}.db")["attention_type"].nunique() == 1  # stacks stay whole
    assert train.main(["--sweep", f"{sweep}", "--workers=1", f"--log={tmp_path}/all.db", f"--figures={tmp_path}"]) == 0
    shards, whole = (load_runs(tmp_path / name).set_index("hash").sort_index() for name in ("shard-*.db", "all.db"))
    assert shards.index.tolist() == whole.index.tolist()
    for name in ("eval/loss", "1_0_rel_attn_bos_global"):
        assert shards[name].tolist() == pytest.approx(whole[name].tolist(), rel=1e-4)


def test_the_job_array_script(tmp_path):
    """As a task of a SLURM array runs it; `uv run` is replaced by what it would start."""
    (tmp_path / "uv").write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} "$@"\n')
    (tmp_path / "uv").chmod(0o755)
    sweep = sweep_file(tmp_path, seed=[0, 1, 2])
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "1",  # alone submitted again
    }
    done = subprocess.run(
        ["bash", ROOT / "sweeps" / "slurm.sh", sweep, "3", "--workers=1", "--dry_run"],
        cwd=ROOT, env=OUTSIDE | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 runs; the first:")
    assert "seed=1" in done.stdout


def test_a_diverging_run_ends_with_status_1(tmp_path, capsys):
    bad = [*options(tiny(lr=1e30, use_layernorm=False)), "--log", str(tmp_path / "runs.db")]
    assert train.main(bad) == 1
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--atention_type=softmax"], "atention_type is no option; did you mean attention_type?"),
        (["--attention_type=relu"], "attention_type=relu is not allowed; choose one of softmax, "),
        (["--num_heads=3"], "embed_dim=128 must be a multiple of num_heads=3"),
        (["--num_heads=two"], "num_heads=two must be a whole number"),
        (["--embed_dim=33", "--num_heads=1"], "embed_dim=33 must be even with positional_type=concat"),
        (["--task=classification", "--vocab_size=40"], "vocab_size=40 must be 1 more than a multiple of num_labels=4"),
        (["--seq_length=60"], "seq_length=60 needs 57 distinct context tokens"),
        (["--lr=-1"], "lr=-1.0 must be a positive number"),
        (["--use_mlp=maybe"], "use_mlp=maybe must be True or False"),
        (["--device=tpu"], "device=tpu is not allowed; choose one of auto, cpu, cuda"),
        (["--shard=1/2"], "--shard goes with --sweep"),
        (["--figures=here"], "--figures goes with --sweep"),
        (["--config=missing.yaml"], "--config needs a YAML file of parameters"),
        (["--sweep=missing.yaml"], "cannot read the sweep file missing.yaml"),
        (["--sweep=sweeps/quick.yaml", "--shard=3/2"], "shard=3/2 must be i/n with i from 1 to n"),
        (["--sweep=sweeps/quick.yaml", "--workers=0"], "workers=0 must be at least 1"),
        (["--log=README.md"], "README.md"),
        (["--num_heads=[1, 2]"], "num_heads=[1, 2] is a list, which only seed, lr, aux_loss_weight may be"),
        (["--seed=[]"], "seed=[] is an empty list; give at least one value"),
        (["--seed=[0, a]"], "seed=a must be a whole number"),
        (["--seed=[0, 1"], "seed=[0, 1 is not valid YAML"),
        (["--sweep=sweeps/quick.yaml", "--shard=20/20"], "shard=20/20 asks for more parts than the sweep has runs"),
        (["--sweep=sweeps/quick.yaml", "--stack=0"], "stack=0 must be auto or a number of at least 1"),
        (["--stack=2"], "--stack goes with --sweep and with lists"),
        (["--seed=[0, 1]", "--shard=1/2"], "--shard goes with --sweep"),
        (["--precision=tf32", "--device=cpu"], "precision=tf32 needs a CUDA GPU"),
        (["--sweep=sweeps/quick.yaml", "--precision=tf32", "--device=cpu"], "precision=tf32 needs a CUDA GPU"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    log = [] if "--log=README.md" in arguments else [f"--log={tmp_path}/runs.db"]
    assert train.main([*arguments, *log]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_input_in_a_process_of_its_own(tmp_path):
    (tmp_path / "text.yaml").write_text("method: grid\nparameters: {lr: {values: [1e-2]}}")
    done = run("--sweep=text.yaml", "--log=runs.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "(YAML reads 1e-2 as text: write it with a point, like 1.0e-2)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs.db").exists()


def test_the_code_is_formatted_and_free_of_lint():
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
