"""train.py, as its users run it."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny import options, tiny

import train
from src.config import ConfigError, RunConfig
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


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({}, "quick"),
        ({"attention_type": "/a b/my.py:f", "seed": [0, 1], "lr": 1e-3}, "quick_f_seed0-1_lr0.001"),
        ({"positional_type": "../x"}, "quick_positional_type..-x"),
    ],
)
def test_pictures_of_part_of_a_sweep_are_called_otherwise(given, title):
    assert train.title_of("sweeps/quick.yaml", given) == title


def test_a_sweep_ends_with_a_table_and_pictures(tmp_path, capsys):
    sweep = sweep_file(tmp_path, attention_type=["softmax", "mlp_unnorm"], seed=[0, 1])
    for name in ("src.py", "torch.py", "numpy.py"):  # of another project, where the user is; workers too find ours
        (tmp_path / name).write_text("raise ImportError('not ours')")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: qtagg\n")  # neither LaTeX nor Qt is asked for
    paths = ["--sweep", sweep, "--log", "runs.db", "--figures", ".", "--keep_models", "models"]
    done = run(*paths, "--workers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 failed, 0 diverged, 0 resumed" in done.stderr
    assert "mlp_unnorm" in done.stdout
    for name in ("few_induction_sink_share", "few_induction_training"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert f"4 models are in {tmp_path}/models" in done.stdout
    assert len(list((tmp_path / "models").iterdir())) == 4
    # what is done is not done again; of what is left the log knows the time
    more = sweep_file(tmp_path, attention_type=["softmax", "mlp_unnorm"], seed=[0, 1, 2])
    assert train.main(["--sweep", f"{more}", "--log", f"{tmp_path}/runs.db", "--dry_run"]) == 0
    out, _ = capsys.readouterr()
    assert "6 runs; the first:" in out
    assert f"4 of them are in {tmp_path}/runs.db: 2 are left." in out
    assert "judged by the log's times of such runs (2 of 2)." in out
    assert train.main(["--sweep", f"{more}", "--seed=1", "--log", f"{tmp_path}/runs.db", "--dry_run"]) == 0
    assert f"2 of them are in {tmp_path}/runs.db: 0 are left." in capsys.readouterr().out


def test_shards_and_dry_run(tmp_path, capsys):
    sweep = sweep_file(tmp_path, seed=[0, 1, 2])
    arguments = ["--sweep", str(sweep), "--log", str(tmp_path / "runs.db")]
    assert train.main([*arguments, "--shard=3/3", "--dry_run", "--workers=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 runs; the first:")
    assert "with 1 workers, judged by a few steps of 4 of the runs" in out  # one run keeps one worker busy
    assert not (tmp_path / "runs.db").exists()
    assert train.main([*arguments, f"--log={'a' * 300}", "--shard=3/3", "--dry_run"]) == 0  # as one that is not there


def test_a_dry_run_by_a_log_without_runs(tmp_path, capsys):
    log = RunLog(tmp_path / "runs.db")
    arguments = ["--sweep", f"{sweep_file(tmp_path, seed=[0, 1])}", f"--log={log.path}", "--dry_run", "--workers=1"]
    assert train.main(arguments) == 0
    assert "judged by a few steps" in capsys.readouterr().out


def test_a_run_that_sweeps_name_twice_is_one_run(tmp_path, capsys):
    sweep = sweep_file(tmp_path, lr=[1e-3, None], seed=[0, 1])
    arguments = ["--sweep", f"{sweep}", "--sweep", f"{sweep}", f"--log={tmp_path}/runs.db", f"--figures={tmp_path}"]
    assert train.main([*arguments, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 runs; the first:")
    assert "are in" not in out
    assert train.main([*arguments, "--shard=2/2"]) == 0
    assert "All runs of shard 2/2 are runs of other shards too" in capsys.readouterr().out
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
        (["--config=missing.yaml"], "cannot read the file of --config missing.yaml: "),
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
        (["--seed="], "seed='' must be a whole number"),
        (["--lr="], "lr='' must be a number"),
        (["--lr"], "--lr needs a value: --lr=VALUE"),
        (["--task="], "task='' must be a name"),
        (["--log="], "log='' must be a name"),
        (["--lr=nan"], "lr=nan must be a positive number"),
        (["--lr=1e999"], "lr=inf must be a positive number"),
        (["--seed=1e300"], "seed=1e300 must be a whole number below 2**63"),
        (["--seed=0.5"], "seed=0.5 must be a whole number"),
        (["--seed=[0, .nan]"], "seed=.nan must be a whole number"),
        (["--seed=" + "[" * 1000], "is not valid YAML; write a list like [0, 1]"),
        (["--num-heads=3"], "embed_dim=128 must be a multiple of num_heads=3"),
        (["num_heads=3"], "embed_dim=128 must be a multiple of num_heads=3"),
        (["--num-head=3"], "num-head is no option; did you mean num_heads?"),
        (["atention_type=softmax"], "atention_type is no option; did you mean attention_type?"),
        (["softmax"], "softmax is no option; see --help"),
        (["--source=abc"], "source is no option"),
        (["--wandb=on"], "wandb=on is not allowed; choose one of online, offline, disabled"),
        (["--use_mlp=1"], "use_mlp=1 must be True or False"),
        (["--stack=²"], "stack=² must be auto or a number of at least 1"),
        (["--sweep=sweeps/quick.yaml", "--stack=" + "9" * 5000], "9999' must be auto or a number of at least 1"),
        ([f"--attention_type={'a' * 300}.py:f"], "aaa.py (of a"),
        (["--task=~no_such_user/my.py:f"], "there is no file ~no_such_user/my.py"),
        (["--embed_dim=1000000"], "embed_dim=1000000, num_layers=2, vocab_size=50, num_train=100000 need at least "),
        (["--sweep=sweeps/quick.yaml", "--dry_run", "--embed_dim=1000000"], "embed_dim=1000000, num_layers="),
        (["--sweep=sweeps/quick.yaml", "--dry_run", "--workers=100000"], "workers=100000 must be at most"),
        (["--config=README.md", "--config=LICENSE"], "config is given twice, as README.md and LICENSE; leave one out"),
        (["--sweep=sweeps/quick.yaml", "--sweep=missing.yaml"], "cannot read the sweep file missing.yaml"),
        (["--sweep="], "sweep='' must be a name"),
        (["--sweep=sweeps/quick.yaml", "--figures=README.md"], "--figures=README.md cannot be made (File exists)"),
        (["--keep_models=README.md"], "--keep_models=README.md cannot be made (File exists)"),
        (["--sweep=sweeps/quick.yaml", "--precision=tf32", "--device=cpu"], "precision=tf32 needs a CUDA GPU"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    log = [] if any(argument.startswith("--log") for argument in arguments) else [f"--log={tmp_path}/runs.db"]
    assert train.main([*arguments, *log]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_input_in_a_process_of_its_own(tmp_path):
    """Quickly, and without any letter outside ASCII where the terminal has none."""
    (tmp_path / "text.yaml").write_text("method: grid\nparameters: {lr: {values: [fast]}}")
    done = run("--sweep=text.yaml", "--log=runs.db", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "lr=fast must be a number" in done.stderr
    assert "names no task: induction, the default" in done.stderr
    assert done.stderr.count("\n") == 2
    assert not (tmp_path / "runs.db").exists()


CONFIG = tiny(num_heads=1, embed_dim=32, use_mlp=True, seed=1000)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num_heads=1.0", "--seed=1e3", "--use_mlp"],
        ["--num-heads=1", "--seed", "1000", "--use-mlp", "yes"],
        ["num_heads=1", "seed=1000", "use-mlp=True", "--_wandb={'cli_version': '1'}"],
        ["+num_heads=1", "++seed=1000", "--use_mlp=on", "--_wandb", "{}"],
        ["--num_heads=2", "--num_heads=1", "--seed=1000"],  # the last one counts
    ],
)
def test_spellings_of_others(arguments):
    rest = [o for o in options(CONFIG) if not o.startswith(("--num_heads", "--seed", "--use_mlp"))]
    _, given = train.parse([*rest, *arguments])
    assert RunConfig.from_dict(given) == CONFIG


def test_switches_and_lists():
    assert train.parse([])[0].keep_models is None
    assert train.parse(["--keep_models"])[0].keep_models == str(ROOT / "logs" / "models")
    assert train.parse(["--keep_models=True", "--dry_run"])[0].keep_models == str(ROOT / "logs" / "models")
    assert train.parse(["--keep-models=False"])[0].keep_models is None
    assert train.parse(["--keep_models=here", "--dry_run=False"])[0].keep_models == "here"
    assert train.parse(["--seed=[0, '1', 2.0, 1]", "--lr=['1e-3']"])[1] == {"seed": [0, 1, 2], "lr": [1e-3]}
    assert train.parse([])[0].figures == str(ROOT / "logs" / "figures")


def test_config_files_of_others(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("num-heads: '2'\nlr: 1e-2\nseed: [0, 1]\nlog: x.db\n_wandb: {a: 1}")
    chosen, given = train.parse(["--lr=0.5", f"--config={file}"])
    assert given == {"num_heads": 2, "lr": 0.5, "seed": [0, 1]}
    assert chosen.log == "x.db"
    for text, sentence in {
        "lr: 1\nlr: 2": "lr is there 2 times",
        "nm_heads: 2": "nm_heads is no option; did you mean num_heads?",
        "num-heads: 2\nnum_heads: 2": "an option is twice in",
        "source: abc": "source is no option",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            train.parse([f"--config={file}"])


def test_what_wandbs_agent_leaves_out(tmp_path, monkeypatch, capsys):
    """${args_no_boolean_flags} has no word for False; and a sweep of others may name no task."""
    file = tmp_path / "config.yaml"
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    file.write_text("wandb_version: 1\nuse_mlp: {value: false}\nlr: {value: '1e-2'}\ntask: {value: induction}")
    _, given = train.parse(["--lr=1e-2", "--task=induction"])
    assert given == {"task": "induction", "lr": 0.01, "use_mlp": False}
    file.write_text("wandb_version: 1\nnum_labels: {value: 2}\nlr: {value: 0.5}")
    assert train.parse(["--lr=0.5", "--num_labels=2"])[1] == {"task": "classification", "num_labels": 2, "lr": 0.5}
    assert "names no task: classification" in capsys.readouterr().err
    file.write_text("wandb_version: 1\nuse_mlp: {value: true}\nnum_layers: {value: 1}")
    with pytest.raises(ConfigError, match="names no task"):
        train.parse(["--use_mlp=True", "--num_layers=1"])


def test_a_huge_sweep_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "A_FEW", 4)
    sweep = tmp_path / "huge.yaml"
    parameters = {name: {"value": v} for name, v in tiny().to_dict().items() if v is not None}
    parameters |= {"seed": {"min": 0, "max": 10**9 - 1}}
    sweep.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    assert train.main(["--sweep", f"{sweep}", f"--log={tmp_path}/runs.db", "--dry_run", "--stack=1"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("1,000,000,000 runs; the first:")
    assert "more than the 100,000 that are trained at once" in out
    assert re.search(r"About \d+ days", out)
    assert train.main(["--sweep", f"{sweep}", f"--log={tmp_path}/runs.db", "--dry_run", f"--shard=7/{10**9}"]) == 0
    assert "1 runs; the first:\n  task=induction, seed=6," in capsys.readouterr().out


def test_failed_and_diverged_runs_end_a_sweep_with_status_1(tmp_path, capsys):
    sweep = sweep_file(tmp_path, fixed={"use_layernorm": False, "num_epochs": 1}, lr=[1e-3, 1e30])
    arguments = ["--sweep", f"{sweep}", f"--log={tmp_path}/runs.db", f"--figures={tmp_path}", "--workers=1"]
    assert train.main(arguments) == 1
    _, error = capsys.readouterr()
    assert "2 done, 0 failed, 1 diverged" in error
    assert "Of 2 runs 1 diverged; column `error` of the log says why" in error


def test_runs_that_nobody_trained_are_told(tmp_path, capsys, monkeypatch):
    log, sweep = f"--log={tmp_path}/runs.db", sweep_file(tmp_path, fixed={"num_epochs": 1}, seed=[0, 1, 2])
    assert train.main([*options(tiny(num_epochs=1)), log]) == 0
    monkeypatch.setattr(train, "run_job", lambda *_: iter(()))
    assert train.main(["--sweep", f"{sweep}", log, f"--figures={tmp_path}"]) == 1
    assert "Of 3 runs 2 not trained\n" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_closed_stream_ends_nothing(stream, tmp_path):
    done = subprocess.run(
        f"{sys.executable} {ROOT}/train.py --task= {stream}>&-",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert ("task='' must be a name" in done.stderr) == (stream == "1")


def test_streams_that_nobody_reads_end_nothing(tmp_path):
    """Of train.py and of its workers; here all print, since the user's file does."""
    (tmp_path / "own.py").write_text(
        "import sys\nfor stream in (sys.stdout, sys.stderr):\n    print('hello', file=stream, flush=True)\n"
        "def f(q, k, mask):\n    z = q @ k.mT\n"
        "    return (z if mask is None else z.masked_fill(~mask, -1e9)).softmax(-1)\n"
    )
    unread, pipe = os.pipe()
    os.close(unread)
    cell = [*options(tiny()), f"--attention_type={tmp_path}/own.py:f", "--seed=[0, 1]", "--stack=1", "--workers=1"]
    command = [sys.executable, ROOT / "train.py", *cell, f"--log={tmp_path}/runs.db"]
    assert subprocess.run(command, env=OUTSIDE, stdout=pipe, stderr=pipe).returncode == 0
    os.close(pipe)
    assert list(RunLog(tmp_path / "runs.db").states().values()) == ["finished"] * 2


def test_the_code_is_formatted_and_free_of_lint():
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
