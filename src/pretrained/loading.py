"""A Hugging Face model with its tokenizer, from the hub, a folder or a GGUF file: loaded right, or refused.

Transformers fills weights that it doesn't find with random numbers, and drops those that it doesn't know. Both
are looked at here after loading, and what was stored in numbers that nobody turned back is refused.
"""

import contextlib
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.errors import ConfigError, require
from src.pretrained.analysis import TORCH_TYPES
from src.pretrained.hub import hub_answers
from src.pretrained.texts import one_line

PLAIN = {"F64", "F32", "F16", "BF16", "BOOL"}  # what a weight file stores numbers as that are what they say
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "spiece*", "merges.txt", "*.tiktoken", "tekken.json")
SCALE = re.compile(r"scale|zero_?point|qzeros|qweight|absmax|quant_state|g_idx|amax|_packed|SCB", re.I)
NO_WEIGHT = re.compile(r"position_ids|token_type_ids|\.bias$|masked_bias|num_batches_tracked|relative_position_index")


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer; `revision` is the SHA-256 of its weights and config as they were loaded.

    stored_as: what its weight files store, "F32" or "GGUF Q4_1".
    """

    model: nn.Module
    tokenizer: Any
    revision: str
    title: str
    stored_as: str

    @property
    def max_length(self) -> int | None:
        """Most tokens that the model takes, None if it has no limit."""
        config = self.model.config.get_text_config()
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
        limits.append(self.tokenizer.model_max_length)
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from the pad's id on
        known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]  # "no limit" is 10**30
        return min(known, default=None)


@dataclass(frozen=True)
class Source:
    """Where a model is: `name` of the hub, or a folder; in it perhaps a GGUF file."""

    name: str
    gguf: str | None
    title: str

    @property
    def options(self) -> dict[str, str]:
        return {"gguf_file": self.gguf} if self.gguf else {}


def find_source(name: str) -> Source:
    """Of what follows hf: on the command line; ConfigError if there is no such folder or file, or no hub."""
    require(bool(name), "--model hf: lacks a name; give hf:NAME of the hub, hf:FOLDER or hf:FILE.gguf")
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        require(path.is_file(), f"there is no file {path}; give --model hf:FILE.gguf")
        return Source(str(path.parent), path.name, path.stem)
    if path.exists():
        check_model_folder(path)
        return Source(str(path), None, "/".join(path.resolve().parts[-2:]).strip("/"))
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)
    require(bool(is_name), f"there is no folder {path}; give --model hf:FOLDER, or hf:NAME for one of the hub")
    return Source(name, None, name)


def check_model_folder(path: Path) -> None:
    require(path.is_dir(), f"{path} is no folder and no .gguf file; give the folder with the model's config.json")
    require((path / "config.json").exists(), f"{path} has no config.json: it is no folder of a Transformers model")
    found = any(next(path.glob(pattern), None) for pattern in TOKENIZERS)
    require(found, f"{path} has no tokenizer; put the model's tokenizer files (such as tokenizer.json) into it")


def load_model(name: str, dtype: str, device: str, trust_remote_code: bool = False) -> Loaded:
    """The model `name` of the hub, or in a folder or .gguf file of that name; ConfigError where it can't be had
    or would not be what was trained. Code that comes with a model is run only with `trust_remote_code`."""
    source = find_source(name)
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "Hugging Face models need the package transformers; install it with: uv sync --extra hf"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    options = source.options | {"trust_remote_code": trust_remote_code}
    options["local_files_only"] = not Path(source.name).is_dir() and not hub_answers(source.name)
    with explained(name):
        config = transformers.AutoConfig.from_pretrained(source.name, **options)
        check_config(config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.name, **options)
    stored = stored_types(source, options)
    if not source.gguf:  # whose types Transformers turns back, or refuses
        check_stored(stored, config)
    with explained(name):
        # other implementations return no weights, and say nothing
        options |= {"attn_implementation": "eager", "dtype": TORCH_TYPES[dtype], "output_loading_info": True}
        model, info = model_class(transformers, config).from_pretrained(source.name, **options)
    model = check_loaded(model, info)
    with explained(name):
        model = model.eval().to(device)
    return Loaded(model, tokenizer, revision(model), source.title, stored_as(source, stored))


def model_class(transformers, config):
    """With the head that predicts the next token, where the checkpoint says that it has one."""
    named = " ".join(getattr(config, "architectures", None) or ["ForCausalLM"])
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    has_head = causal and re.search("ForCausalLM|LMHead|ForConditionalGeneration", named)
    return transformers.AutoModelForCausalLM if has_head else transformers.AutoModel


@contextlib.contextmanager
def explained(name: str):
    """Within, any failure to load `name` is a ConfigError of one sentence."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever Transformers, Torch and the files' readers raise
        raise ConfigError(f"can't load hf:{name}: {reason_of(name, error)}") from error


def reason_of(name: str, error: Exception) -> str:
    """What went wrong, and what to do about it."""
    text = one_line(error)
    if is_memory_error(error):
        return "it does not fit into memory; try --dtype bfloat16"
    if re.search(
        "header|Header|deserializ|invalid load key|UnpicklingError|weights_only|Weights only|magic", repr(error)
    ):
        return (
            f"a weight file is damaged, a git-lfs pointer (then: git lfs pull) or a pickle that is not only weights "
            f"({text})"
        )
    if "size mismatch" in str(error) or "mismatch" in str(error):
        return f"its weights have other shapes than its config.json says ({text})"
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return "it comes with code of its own, which is not run unless you trust it and add --trust-remote-code true"
    if not Path(name).expanduser().exists():
        return (
            f"{text}; without network, fetch its files elsewhere with: hf download {name} --local-dir FOLDER, and give "
            "--model hf:FOLDER"
        )
    return text or type(error).__name__


def is_memory_error(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        isinstance(error, RuntimeError) and re.search("allocate memory|out of memory|bad_alloc", str(error), re.I)
    )


def check_config(config) -> None:
    """ConfigError for a model that can't be analysed, or that is quantised in a way that nobody here knows."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    kind = config.model_type
    text = config.get_text_config()
    require(
        not getattr(config, "is_encoder_decoder", False) and not getattr(text, "is_encoder_decoder", False),
        f"{kind} is an encoder-decoder, which is not supported; choose a decoder or an encoder",
    )
    require(
        getattr(text, "vocab_size", None) is not None,
        f"{kind} reads no text but pictures or sound, which is not supported; choose a language model",
    )
    method = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if method is not None:
        method = method if isinstance(method, dict) else method.to_dict()
        name = method.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in method else None)
        require(
            str(getattr(name, "value", name)) in {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"},
            f"config.json says quant_method={name}, which Transformers can't turn back into weights; choose the model "
            "as it was before quantising",
        )


def weight_files(source: Source, options: dict) -> list[Path]:
    """The files that the model's weights are read from, wherever its index has them."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "local_files_only": options["local_files_only"]}

    def find(name: str) -> Path | None:
        found = cached_file(source.name, name, **quiet)
        return Path(found) if found else None

    for kind in ("model.safetensors", "pytorch_model.bin"):
        whole, index = find(kind), find(f"{kind}.index.json")
        if whole:
            return [whole]
        if index:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return [path for path in map(find, shards) if path]
    return []


def stored_types(source: Source, options: dict) -> dict[str, str]:
    """What each tensor of the weight files is stored as, in safetensors' words: F32, F8_E4M3, I8; or GGUF's."""
    with explained(source.name):
        if source.gguf:
            import gguf

            tensors = gguf.GGUFReader(Path(source.name) / source.gguf).tensors
            return {tensor.name: tensor.tensor_type.name for tensor in tensors}
        found = {}
        for path in weight_files(source, options):
            found |= safetensors_types(path) if path.suffix == ".safetensors" else pickle_types(path)
        return found


def safetensors_types(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        require(
            0 < size <= path.stat().st_size,
            f"{path} is no safetensors file but {path.stat().st_size} bytes of something else: damaged, or a git-lfs "
            "pointer (then: git lfs pull)",
        )
        header = json.loads(file.read(size))
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__" and entry["shape"]}


def pickle_types(path: Path) -> dict[str, str]:
    kinds = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.bool: "BOOL",
    }
    tensors = torch.load(path, map_location="meta", weights_only=True)
    return {name: kinds.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()}


def check_stored(stored: dict[str, str], config) -> None:
    """ConfigError for weights stored in float8 or integers that no quantisation of the config turns back."""
    if getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None):
        return
    odd = {name: kind for name, kind in stored.items() if kind not in PLAIN and not NO_WEIGHT.search(name)}
    require(
        not odd,
        f"{len(odd)} tensors, {next(iter(odd), '')} first, are stored as {', '.join(sorted(set(odd.values())))}, and "
        "config.json has no quantization_config that says how to turn them back; choose the model as it was before",
    )


def check_loaded(model: nn.Module, info: dict) -> nn.Module:
    """The model, without its head where the checkpoint has none. ConfigError if weights inside it are missing, so
    random, or if scales of quantised weights were left unused."""
    unused = sorted(key for key in info["unexpected_keys"] if SCALE.search(key))
    require(
        not unused,
        f"the checkpoint has {len(unused)} tensors that nobody uses and that look like scales of quantised weights, "
        f"{unused[:1]} first; choose the model as it was before quantising",
    )
    base = getattr(model, model.base_model_prefix, model)
    inside = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    if base is not model:
        inside = {name for name in inside if name.startswith(f"{model.base_model_prefix}.")}
    missing = sorted(key for key in info["missing_keys"] if key in inside and "pooler" not in key)
    require(
        not missing,
        f"the checkpoint lacks {len(missing)} weights, {missing[:1]} first, which would be random; fetch all of its "
        "files, or choose another checkpoint",
    )
    lacks_head = any("pooler" not in key for key in info["missing_keys"])
    return base if lacks_head else model


def revision(model: nn.Module) -> str:
    """SHA-256 of the config and of every parameter and buffer, by name, type and shape: of what runs, so whatever
    files it came from. Names of places and versions are left out."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version", "_commit_hash"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def stored_as(source: Source, stored: dict[str, str]) -> str:
    """The commonest type of the weight files' tensors."""
    kinds = [kind for name, kind in stored.items() if not NO_WEIGHT.search(name)]
    if source.gguf:  # whose norms are float32
        kinds = [kind for kind in kinds if kind != "F32"] or kinds
    commonest = max(set(kinds), key=kinds.count, default="unknown")
    return f"GGUF {commonest}" if source.gguf else commonest
