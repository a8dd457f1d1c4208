"""Code of one's own, without editing the package: an attention function or a task named FILE.py:NAME.

`package.module:NAME` works as well. A file is sought from the working directory, then from the checkout. Its source
alone is part of a run's identity, not that of what it imports: after an edit there, runs in the log are not repeated.
"""

import difflib
import hashlib
import importlib.util
import os
import sys
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from src.errors import ConfigError, require

ROOT = Path(__file__).parents[1]
_modules: dict[tuple[Path, str], ModuleType] = {}  # by file and the hash of its source: an edited file is read anew


def is_external(name: Any) -> bool:
    """Whether a name is meant as FILE.py:NAME or package.module:NAME."""
    return isinstance(name, str) and ":" in name


def short_name(name: str) -> str:
    """NAME of FILE.py:NAME, by which tables and figures call it; any other name as it is."""
    return name.rpartition(":")[2]


def canonical(name: str) -> str:
    """The same for ./my.py:f and my.py:f."""
    place, _, attribute = name.rpartition(":")
    return f"{PurePath(place).as_posix()}:{attribute}"


def locate(name: str) -> Path:
    """The file that FILE.py:NAME or package.module:NAME is about; ConfigError where there is none."""
    place, _, attribute = name.rpartition(":")
    require(bool(place and attribute), f"{name} is not complete; write FILE.py:NAME or package.module:NAME")
    if place.endswith(".py"):
        for folder in (Path.cwd(), ROOT):
            if os.path.isfile(path := folder / os.path.expanduser(place)):  # which no path is too long for
                return path.resolve()
        raise ConfigError(f"there is no file {place} (of {name}) in {Path.cwd()} or {ROOT}; give its path")
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        found = None
    require(
        found is not None and found.origin is not None and Path(found.origin).is_file(),
        f"there is no module {place} (of {name}); write FILE.py:NAME, or install the package",
    )
    return Path(found.origin).resolve()


def source_hash(name: str) -> str:
    """12 hexadecimal digits of the file's source: an edited function is another function."""
    return _hash(locate(name).read_bytes())


def _hash(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


def load(name: str) -> Any:
    """The object that FILE.py:NAME or package.module:NAME names; ConfigError in one sentence where it cannot be had."""
    path, attribute = locate(name), short_name(name)
    module = _import(path, name)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(_public(module)) or 'nothing'}"
        raise ConfigError(f"{path.name} has no {attribute} (of {name}){hint}")
    return getattr(module, attribute)


def _public(module: ModuleType) -> list[str]:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in own if not name.startswith("_")]


def _import(path: Path, name: str) -> ModuleType:
    try:
        return _run(path, name.rpartition(":")[0])
    except Exception as error:
        raise ConfigError(f"{name} cannot be imported ({type(error).__name__}: {error}); mend {path}") from error


def _run(path: Path, place: str) -> ModuleType:
    """The module of the very bytes that are hashed: what Python has compiled or imported may be of older ones."""
    source = path.read_bytes()
    key = path, _hash(source)
    if key not in _modules:
        unique = f"{f'own_{path.stem}' if place.endswith('.py') else place}_{key[1]}"
        spec = importlib.util.spec_from_file_location(unique, path)
        module = sys.modules[unique] = importlib.util.module_from_spec(spec)
        if place.endswith(".py") and str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # it may import what lies beside it; last, to hide nothing
        try:
            exec(compile(source, path, "exec"), vars(module))
        except BaseException:
            del sys.modules[unique]
            raise
        _modules[key] = module
    return _modules[key]
