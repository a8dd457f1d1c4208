"""Loading Hugging Face models: right, or refused in one sentence; each kind of fault that was silent once."""

import json
import os
import shutil

import pytest
import torch
import transformers
from architectures import ENCODERS, build
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from src.errors import ConfigError
from src.pretrained import loading
from src.pretrained.encoder import Encoder
from src.pretrained.huggingface import analyse_model
from src.pretrained.loading import find_source, load_model
from src.pretrained.texts import Prompts

WORDS = ["<pad>", "<s>", "</s>", "<unk>", ".", ",", *(f"w{i}" for i in range(44))]


def save_tokenizer(folder, **options):
    """One token a word, <s> put first."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A tiny decoder with its head, in two shards, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    build(config, head=True).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "maker" / "model")


def load(folder):
    return load_model(str(folder), "float32", "cpu")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, change):
    """Write the weights anew, in one file, after `change` (a function of the dict of tensors)."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TestIdentity:
    """What decides the numbers decides the identity; what does not, does not."""

    def test_of_what_runs(self, folder, tmp_path):
        before = load(folder).revision
        moved = shutil.copytree(folder, tmp_path / "elsewhere")
        assert load(moved).revision == before
        edit(moved / "config.json", rms_norm_eps=1e-3)
        assert load(moved).revision != before

    def test_every_shard(self, folder, tmp_path):
        before = load(folder).revision
        last = sorted(folder.glob("model-*.safetensors"))[-1]
        tensors = load_file(last)
        tensors[next(iter(tensors))] += 1e-3
        save_file(tensors, tmp_path / "other", metadata={"format": "pt"})
        last.unlink()
        last.symlink_to(tmp_path / "other")  # a link is read as what it points to
        assert load(folder).revision != before

    def test_title(self, folder, monkeypatch):
        assert find_source(str(folder)).title == "maker/model"
        monkeypatch.chdir(folder)
        assert find_source(".").title == "maker/model"
        monkeypatch.setenv("HOME", str(folder.parent))
        assert find_source("~/model").name == str(folder)


class TestRefused:
    def check(self, folder, *words):
        with pytest.raises(ConfigError) as caught:
            load(folder)
        sentence = str(caught.value)
        assert all(word in sentence for word in words), sentence
        assert "\n" not in sentence

    def test_dropped_scales(self, folder):
        def change(tensors):
            for name in [name for name in tensors if name.endswith("q_proj.weight")]:
                tensors[f"{name}_scale"] = torch.ones(1)

        edit_weights(folder, change)
        self.check(folder, "scales", "q_proj.weight_scale")

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
    def test_numbers_that_nobody_turns_back(self, folder, dtype):
        def change(tensors):
            for name in [name for name in tensors if "proj" in name]:
                tensors[name] = tensors[name].to(dtype)

        edit_weights(folder, change)
        self.check(folder, "proj.weight", "F8_E4M3" if dtype != torch.int8 else "I8")

    def test_pickles_of_integers(self, folder):
        tensors = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
            path.unlink()
        (folder / "model.safetensors.index.json").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        load(folder)
        torch.save({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
        self.check(folder, "torch.int8")

    def test_unknown_quantisation(self, folder):
        edit(folder / "config.json", quantization_config={"quant_method": "secret4bit"})
        self.check(folder, "quant_method=secret4bit")

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
    def test_missing_weights(self, folder, name):
        edit_weights(folder, lambda tensors: tensors.pop(name))
        self.check(folder, name, "random")

    def test_missing_shard(self, folder):
        sorted(folder.glob("model-*.safetensors"))[0].unlink()
        self.check(folder, "can't load")

    def test_wrong_shapes(self, folder):
        edit(folder / "config.json", intermediate_size=40)
        self.check(folder, "shapes")

    def test_lfs_pointer(self, folder):
        edit_weights(folder, lambda tensors: None)
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
        self.check(folder, "git lfs pull")

    def test_pickle_that_runs_code(self, folder):
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        torch.save({"weight": os.system}, folder / "pytorch_model.bin")
        self.check(folder, "pickle")

    def test_no_tokenizer(self, folder):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        self.check(folder, "has no tokenizer")

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        self.check(folder, "no config.json")

    def test_missing_folder_speaks_of_no_network(self, tmp_path):
        for name in (tmp_path / "nowhere", "./nowhere", "a/b/c", "~/nowhere"):
            with pytest.raises(ConfigError, match="there is no folder"):
                find_source(str(name))
        with pytest.raises(ConfigError, match="there is no file"):
            find_source(str(tmp_path / "x.gguf"))

    def test_damaged_gguf(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
        self.check(tmp_path / "x.gguf", "can't load")

    def test_code_is_not_run(self, folder):
        (folder / "modeling.py").write_text("raise SystemExit('run')")
        edit(
            folder / "config.json",
            model_type="own",
            auto_map={"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"},
        )
        self.check(folder, "--trust-remote-code true")

    def test_no_memory(self, folder, monkeypatch):
        def fails(*arguments, **options):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fails)
        self.check(folder, "memory", "--dtype bfloat16")


class TestAllowed:
    def test_checkpoint_without_head(self, folder):
        """Measured, without a loss."""
        edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
        assert isinstance(load(folder).model, transformers.LlamaModel)

    def test_checkpoint_without_pooler(self, tmp_path):
        model = build(ENCODERS["bert"]())
        model.pooler = None
        model.save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        assert load(tmp_path).model.config.model_type == "bert"

    def test_offline(self, monkeypatch):
        """Without a network the hub is asked once, and what to do is said."""
        import huggingface_hub

        def unreachable(*arguments, **options):
            raise OSError("no route")

        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
        with pytest.raises(ConfigError, match="--local-dir FOLDER, and give --model hf:FOLDER"):
            load("no/such-model")

    def test_positions_of_roberta(self):
        """Counted from the pad's id on: two of 130 rows are of no use, and a text of 129 is no traceback."""
        model = build(ENCODERS["roberta"]())
        tokenizer = type("Tokenizer", (), {"model_max_length": 10**30})
        limit = loading.Loaded(model, tokenizer, "", "", "").max_length
        assert limit == 128 - 2
        for length, fits in ((limit, True), (limit + 1, False)):
            ids = torch.full((1, length), 5)
            if fits:
                model(ids)
            else:
                with pytest.raises(ConfigError, match="does not run on 127 token ids"):
                    analyse_model(model, Prompts(ids, ids > 0), None, 1, "cpu")


class TestEncoder:
    def test_texts_are_cut_from_their_start(self, tmp_path):
        """Whatever side the tokenizer would cut, and the special tokens stay."""
        tokenizer = save_tokenizer(tmp_path, truncation_side="left")
        prompts = Encoder.of(tokenizer).encode(["w0 w1 . w3 w4", "w5"], 4)
        assert prompts.ids.tolist() == [[1, 6, 7, 4], [1, 11, 0, 0]]
        assert prompts.valid.sum(1).tolist() == [4, 2]
        assert prompts.delimiter.tolist() == [[False, False, False, True], [False] * 4]
        assert prompts.prefix == 1

    @pytest.mark.parametrize(("prefix", "ids"), [("none", []), ("bos", [1]), ("w7", [13]), ("</s>", [2])])
    def test_prefix(self, tmp_path, prefix, ids):
        assert Encoder.of(save_tokenizer(tmp_path), prefix).encode(["w0 w1"], 3).ids.tolist() == [(ids + [6, 7, 0])[:3]]

    def test_wrong_prefix(self, tmp_path):
        for prefix in ("w7 w8", "unheard"):
            with pytest.raises(ConfigError, match=f"prefix={prefix} is"):
                Encoder.of(save_tokenizer(tmp_path), prefix)

    def test_synthetic(self, tmp_path):
        """Special tokens are not drawn; repeated ones are one token each."""
        encoder = Encoder.of(save_tokenizer(tmp_path))
        drawn = encoder.synthetic("random", 20, 9, seed=3).ids
        assert drawn[:, 0].eq(1).all()
        assert drawn[:, 1:].min() >= 4
        assert len(drawn[:, 1:].unique()) > 30
        repeated = encoder.synthetic("repeated", 20, 9, seed=3).ids
        assert repeated[:, 1:].eq(repeated[:, 1:2]).all()
        assert len(repeated[:, 1].unique()) > 5
        assert encoder.synthetic("random", 20, 9, seed=3).sha256 == encoder.synthetic("random", 20, 9, seed=3).sha256


def test_nan_is_told_with_its_layer(folder, tmp_path):
    model = load(folder).model
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    prompts = Prompts.from_lists([[1, 6, 7]] * 3, 4, 0)
    with pytest.raises(ConfigError, match="layer 1 .* NaN or infinity at token 0 of text 0"):
        analyse_model(model, prompts, tmp_path, 2, "cpu")
