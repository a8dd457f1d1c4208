"""RunConfig: everything that decides the result of a run, and the only vocabulary for it.

A field has the same name on the command line, in sweep files, in the run log, in tables and in figures.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from src.errors import ConfigError, require
from src.extensions import canonical, is_external, short_name, source_hash
from src.model.registry import find_attention
from src.model.transformer import MAX_POSITIONS
from src.optimizers import LR_BELOW, OPTIMIZERS, USE_BETA2
from src.tasks import USUAL, find_task
from src.values import as_type, shown

# The fields that RunConfig had when logs began, in their order: every run's hash has them, and every log names
# them as its schema. Never to be changed.
# fmt: off
IN_EVERY_HASH = (
    "task", "seed", "attention_type", "lr", "num_epochs", "batch_size", "embed_dim",
    "num_layers", "num_heads", "use_mlp", "use_layernorm", "positional_type", "vocab_size", "seq_length",
    "num_train", "num_eval", "aux_loss_weight", "shift_query_token", "num_labels", "precision",
)
# fmt: on

STACKABLE = ("seed", "lr", "aux_loss_weight")  # fields in which runs that train as one stack may differ


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Fields left None take their task's value in the paper.

    Raises ConfigError for a value that is not allowed or does not fit the others. A new field needs a default
    under which runs are what they were before: logs written earlier are read with it.

    Args:
        task: What is learned: induction (Section 4.1 of the paper), classification (4.2), or FILE.py:NAME, your own.
        seed: Decides data, initialisation, order and label mixing.
        attention_type: How attention weights are computed: one of src/model/registry.py, or FILE.py:NAME, your own.
        lr: Learning rate, constant.
        num_epochs: Passes over the training sequences.
        batch_size: Sequences in a training step.
        embed_dim: Width of the residual stream.
        num_layers: Transformer blocks.
        num_heads: Attention heads in each block.
        use_mlp: Whether blocks have an MLP.
        use_layernorm: Whether blocks and head have LayerNorm.
        positional_type: Position embeddings concatenated to the token's, added, or none ("no").
        vocab_size: Token ids, the special one included, the shifted query tokens not.
        seq_length: Ids in a sequence: BOS, context, query and answer (induction), or context and CLS.
        num_train: Training sequences.
        num_eval: Evaluation sequences.
        aux_loss_weight: Weight of the loss at the positions before the last (induction).
        shift_query_token: Whether the query is a token of its own (induction).
        num_labels: Groups of tokens (classification).
        precision: Arithmetic of training: float32, tf32 (float32 whose products a GPU rounds), or bf16 by autocast.
        optimizer: How gradients change the parameters, one of src/optimizers.py.
        weight_decay: How much of each parameter a step takes off, times lr.
        beta2: The decay of the mean square gradient (adamw, and muon, which leaves vectors and embeddings to it).
        use_residual: Whether blocks add to what they get (skip connections) or replace it.
        use_bos: Whether a sequence begins with BOS, an anchor for attention (trigger).
        source: Hash of the files that FILE.py:NAME names, filled in: an edited function is a new run.
    """

    task: str = "induction"
    seed: int = 0
    attention_type: str = "softmax"
    lr: float | None = None
    num_epochs: int | None = None
    batch_size: int | None = None
    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    use_mlp: bool | None = None
    use_layernorm: bool | None = None
    positional_type: Literal["concat", "add", "no"] | None = None
    vocab_size: int | None = None
    seq_length: int | None = None
    num_train: int | None = None
    num_eval: int = 1000
    aux_loss_weight: float | None = None
    shift_query_token: bool | None = None
    num_labels: int | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    beta2: float = 0.999
    use_residual: bool = True
    use_bos: bool | None = None
    source: str | None = None

    def __post_init__(self):
        for name in FIELDS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        if self.source is not None:  # a logged config, complete, whose code may be elsewhere by now
            return
        self._find_own_code()
        self._fill_in_task_defaults()
        self._check_sizes()
        self._check_optimizer()
        find_task(self.task).check(self)

    def _find_own_code(self):
        """Check task and attention type, and take the hash of the user's files among them."""
        find_attention(self.attention_type)
        find_task(self.task)
        for name in ("attention_type", "task"):
            if is_external(getattr(self, name)):
                object.__setattr__(self, name, canonical(getattr(self, name)))
        object.__setattr__(self, "source", self.own_source())

    def own_source(self) -> str | None:
        """The hash of the user's files among task and attention type, as they are now; None if there are none."""
        places = [name for name in (self.attention_type, self.task) if is_external(name)]
        return " ".join(map(source_hash, places)) or None

    def _fill_in_task_defaults(self):
        own = USUAL | find_task(self.task).defaults
        if unknown := ", ".join(name for name in own if name not in TASK_FIELDS):
            raise ConfigError(f"task={self.task} has a default of {unknown}; only {', '.join(TASK_FIELDS)} can")
        for name in TASK_FIELDS:
            given = getattr(self, name)
            if name in own and given is None:
                object.__setattr__(self, name, checked(name, own[name]))
            require(name in own or given is None, f"{name}={given} has no meaning for task={self.task}; leave it out")

    def _check_sizes(self):
        for name in FIELDS:
            value = getattr(self, name)
            if name == "seed":
                require(0 <= value < 2**63, f"seed={value} must be from 0 to 2**63 - 1")
            elif name == "lr":
                require(0 < value < math.inf, f"lr={value} must be a positive number")
            elif name == "aux_loss_weight" and value is not None:
                require(0 <= value < math.inf, f"aux_loss_weight={value} must be a number of at least 0")
            elif name == "weight_decay":
                require(0 <= value < math.inf, f"weight_decay={value} must be a number of at least 0")
            elif name == "beta2":
                require(0 <= value < 1, f"beta2={value} must be at least 0 and below 1")
            elif isinstance(value, int) and not isinstance(value, bool):
                require(value > 0, f"{name}={value} must be at least 1")
        require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}",
        )
        require(
            self.positional_type != "concat" or self.embed_dim % 2 == 0,
            f"embed_dim={self.embed_dim} must be even with positional_type=concat, whose halves are tokens and "
            "positions",
        )
        require(
            self.positional_type == "no" or self.seq_length <= MAX_POSITIONS,
            f"seq_length={self.seq_length} must be at most {MAX_POSITIONS}, the number of position embeddings",
        )

    def _check_optimizer(self):
        if self.optimizer not in OPTIMIZERS:
            near = difflib.get_close_matches(self.optimizer, OPTIMIZERS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            allowed = ", ".join(OPTIMIZERS)
            raise ConfigError(f"optimizer={self.optimizer} is not allowed; choose one of {allowed}{hint}")
        require(
            self.optimizer in USE_BETA2 or self.beta2 == FIELDS["beta2"].default,
            f"beta2={self.beta2} has no meaning for optimizer={self.optimizer}; leave it out",
        )
        bound, reason = LR_BELOW.get(self.optimizer, (math.inf, ""))
        require(
            self.lr < bound,
            f"lr={self.lr} must be above 0 and below {bound} for optimizer={self.optimizer}, {reason}",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The config with these fields; ConfigError names an unknown field and the nearest known one."""
        for name in values:
            check_name(name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def title(self) -> str:
        return f"{short_name(self.task)}, {short_name(self.attention_type)}, seed {self.seed}"

    @functools.cached_property
    def hash(self) -> str:
        """The run's identity: 16 hexadecimal digits that depend on every field.

        A field that is not among IN_EVERY_HASH counts only where it differs from its default, so that a new field
        leaves the identity of all runs before it as it was, for older code too.
        """
        values = self.to_dict()
        counted = {k: v for k, v in values.items() if k in IN_EVERY_HASH or v != FIELDS[k].default}
        text = json.dumps(counted, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}
FIELD_TYPES = get_type_hints(RunConfig)
DEFAULTS = {name: USUAL.get(name, field.default) for name, field in FIELDS.items()}  # None: the task decides
TASK_FIELDS = [name for name, field in FIELDS.items() if field.default is None and name != "source"]  # set by tasks


def check_name(name: str) -> None:
    """ConfigError if no field of RunConfig has this name."""
    if name not in FIELDS:
        near = difflib.get_close_matches(str(name), FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the parameters are {', '.join(FIELDS)}"
        raise ConfigError(f"{shown(name)} is no parameter of a run; {hint}")


def checked(name: str, value: Any) -> Any:
    """`value` as the type of field `name`, where it is one without loss; else ConfigError."""
    return as_type(name, value, FIELD_TYPES[name])


def checked_list(name: str, value: Any) -> tuple[Any, ...]:
    """The values of field `name` in a cell: `value`, or each item of it if it is a list; else ConfigError."""
    if not isinstance(value, list):
        return (checked(name, value),)
    require(name not in STACKABLE or bool(value), f"{name}=[] is an empty list; give at least one value, or no list")
    require(
        name in STACKABLE,
        f"{name}={shown(value)} is a list, which only {', '.join(STACKABLE)} may be: a stack trains runs of one shape",
    )
    return tuple(dict.fromkeys(checked(name, item) for item in value))


def members(values: Mapping[str, Any]) -> list[RunConfig]:
    """The runs of a cell: STACKABLE fields may be lists, of which the runs are all combinations."""
    for name in values:
        check_name(name)
    lists = [checked_list(name, value) for name, value in values.items()]
    return [RunConfig(**dict(zip(values, choice, strict=True))) for choice in itertools.product(*lists)]
