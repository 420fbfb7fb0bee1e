"""Hashes of the code that runs, by parts that have names: not of a file, which may have been edited since.

1. The parts are the functions that are reached from the one that is called, and the values that are bound to it.
2. A function's part is its byte code with constants and names, and those of its defaults that cannot change; the
   text, its comments and docstrings are not looked at. It differs between versions of Python.
3. Functions are reached by global names, through modules, classes, objects, decorators, and lists and dicts of
   them, as far as they are the user's: libraries are named in the record of versions. What a function imports while
   it runs is not reached.
4. Values are bound by `functools.partial`, a closure, a default, or as attributes of an object that is called; their
   hash is of what they hold, as pickle would take them apart, not of which objects they are.
5. What cannot be taken apart, such as a lock or an open file, counts by its type, and is named.
6. Values of globals are not looked at: they may be those of a machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from torchreg.penalties import Penalty
from torchreg.penalties.spec import canonical, describe

CODE = "code of "  # begins the names of parts that are code
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_PATHS = (*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), site.getusersitepackages())
_LIBRARIES = (*(f"{path}{os.sep}" for path in (*_PATHS, Path(__file__).parents[1])), "<frozen")
_DOCSTRING = 0x4000000  # a code's flag, from Python 3.13 on; before, a function's first constant is its docstring


class Fingerprint:
    """What a function does, as hashes.

    Attributes:
        parts: hashes by name, such as ``code of train`` or ``width, bound by partial``.
        unknown: names of bound values, or of what they hold, that cannot be compared, with their types.
    """

    def __init__(self, run: Any) -> None:
        self.parts: dict[str, str] = {}
        self.unknown: list[str] = []
        self._values: dict[int, tuple[Any, str]] = {}  # with the value: a number is given again once it is gone
        self._met: dict[int, Any] = {}
        self._waiting: list[FunctionType] = []
        self._label = ""
        self._bind(run)
        while self._waiting:
            function = self._waiting.pop()
            self._add(f"{CODE}{function.__qualname__}", _code_of(function))
            self._name(f"default {{}} of {function.__qualname__}", _made_defaults(function))
            for value in (*_reached(function.__code__, function.__globals__), *_closure(function).values()):
                self._reach(value)

    @property
    def sha256(self) -> str:
        """One hash of all parts."""
        return _all(self.parts)

    @property
    def code(self) -> str:
        """One hash of the parts that are code, which every process that runs it must have."""
        return _all({name: part for name, part in self.parts.items() if name.startswith(CODE)})

    def _bind(self, run: Any) -> None:
        """The values that a callable holds."""
        if isinstance(run, functools.partial):
            named = {f"argument {k}": value for k, value in enumerate(run.args)} | run.keywords
            self._name("{}, bound by partial", named)
            self._bind(run.func)
        elif isinstance(run, MethodType):
            self._name("attribute {}", _state(run.__self__))
            self._bind(run.__func__)
        elif isinstance(run, FunctionType):
            self._reach(run)
            self._name("{} in the closure", _closure(run))
        elif isinstance(run, (type, BuiltinFunctionType)):
            self._add("name", _hash(_named(run)))
            self._reach(run)
        else:
            self._name("attribute {}", _state(run))
            self._reach(type(run))

    def _name(self, how: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._label = how.format(name)
            self._add(self._label, self._digest(value))

    def _add(self, name: str, part: str) -> None:
        before = self.parts.get(name)
        self.parts[name] = part if before in (None, part) else _hash(f"{before}{part}")

    def _reach(self, value: Any) -> None:
        """Note the user's functions in a value that code names."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if id(value) not in self._met:
                self._met[id(value)] = value
                if isinstance(value, FunctionType) and not _is_library(value.__code__.co_filename):
                    self._waiting.append(value)
                waiting += _within(value)

    def _digest(self, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return _hash(f"{type(value).__name__} {value!r}")
        if id(value) in self._values:
            return self._values[id(value)][1]
        self._values[id(value)] = value, "itself"
        try:
            found = _hash(f"{_named(type(value))} {self._text(value)}")
        except Exception:  # what a value does when it is taken apart is its own affair; deep ones end the stack
            self.unknown.append(f"{self._label} ({type(value).__name__})")
            found = _hash(_named(type(value)))
        self._values[id(value)] = value, found
        return found

    def _text(self, value: Any) -> str:
        """What a value holds."""
        if isinstance(value, Penalty):
            return canonical(value.spec())
        if isinstance(value, Tensor):
            return canonical(describe(value))
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"{value.dtype.str} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
        if isinstance(value, PurePath):
            return str(value)
        if type(value) in (list, tuple):
            plain = all(type(inner) in _PLAIN for inner in value)
            return repr(value) if plain else self._each(value)
        if type(value) is dict:
            return str(sorted((self._digest(name), self._digest(inner)) for name, inner in value.items()))
        if type(value) in (set, frozenset):
            return str(sorted(map(self._digest, value)))
        if isinstance(value, (FunctionType, type, ModuleType, BuiltinFunctionType)):
            self._reach(value)
            return f"{_named(value)} {self._digest(_closure(value)) if isinstance(value, FunctionType) else ''}"
        self._reach(type(value))
        taken = value.__reduce_ex__(4)
        if isinstance(taken, str):
            return taken
        make, arguments, *rest = taken
        state, items, pairs = (*rest, None, None, None)[:3]
        return self._each([make, arguments, state, list(items or ()), list(pairs or ())])

    def _each(self, values: Iterable[Any]) -> str:
        return " ".join(map(self._digest, values))


def _all(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _code_of(function: FunctionType) -> str:
    fixed = {name: repr(value) for name, value in _defaults(function).items() if _is_fixed(value)}
    return _hash(f"{_told(function.__code__)}{sorted(fixed.items())}")


def _told(code: CodeType) -> str:
    """What is run of a code object: no line numbers, no file."""
    constants = list(code.co_consts)
    has_text = code.co_flags & _DOCSTRING if sys.version_info >= (3, 13) else not code.co_name.startswith("<")
    if has_text and constants and isinstance(constants[0], str):
        constants[0] = None
    head = (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable)
    return f"{head} {counts} {[_constant(value) for value in constants]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _told(value)
    if isinstance(value, frozenset):
        return str(sorted(map(_constant, value)))
    return str([_constant(inner) for inner in value]) if isinstance(value, tuple) else repr(value)


def _reached(code: CodeType, space: Mapping[str, Any]) -> Iterator[Any]:
    """What the names in a code, and in the functions that it makes, stand for; those of modules by attribute."""
    found = [space[name] for name in code.co_names if name in space]
    modules: list[Any] = []
    for value in found:  # which grows
        if not issubclass(type(value), ModuleType):  # isinstance asks the value, which may answer by an error
            yield value
        elif value not in modules and not _is_library(_place(value)):
            modules.append(value)
            found += [vars(value)[name] for name in code.co_names if name in vars(value)]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _reached(inner, space)


def _within(value: Any) -> list[Any]:
    """What else runs where a value is used: what it wraps, what it lists, its methods or those of its type."""
    kind = type(value)
    if issubclass(kind, type):
        if value.__module__ == "builtins" or _is_library(getattr(sys.modules.get(value.__module__), "__file__", None)):
            return []
        return [kind, *value.__bases__, *vars(value).values()]
    if issubclass(kind, (FunctionType, type(functools.cache(repr)))):
        return [vars(value).get("__wrapped__")]
    if issubclass(kind, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if issubclass(kind, (MethodType, staticmethod, classmethod)):
        return [value.__func__, getattr(value, "__self__", None)]
    if issubclass(kind, property):
        return [value.fget, value.fset]
    if issubclass(kind, functools.cached_property):
        return [value.func]
    if kind in (dict, list, tuple):  # such as models by name
        return [inner for inner in (value.values() if kind is dict else value) if callable(inner)]
    return [kind]


def _place(module: ModuleType) -> str:
    """Its file; of a package without one, which has no __init__.py, its directory."""
    file = getattr(module, "__file__", None)
    return str(file or next(iter(getattr(module, "__path__", ())), "<frozen"))


def _is_library(file: str | None) -> bool:
    return bool(file) and str(file).startswith(_LIBRARIES)


def _closure(function: FunctionType) -> dict[str, Any]:
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # it has no value yet
            held[name] = None
    return held


def _defaults(function: FunctionType) -> dict[str, Any]:
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(values) :], values, strict=True)) | (function.__kwdefaults__ or {})


def _made_defaults(function: FunctionType) -> dict[str, Any]:
    """Defaults that can change, such as lists; not those that begin with _, in which functions keep what they found."""
    made = {name: value for name, value in _defaults(function).items() if not _is_fixed(value)}
    return {name: value for name, value in made.items() if not name.startswith("_")}


def _is_fixed(value: Any) -> bool:
    return all(map(_is_fixed, value)) if type(value) is tuple else type(value) in _PLAIN


def _state(value: Any) -> dict[str, Any]:
    """What an object holds, by name; all of it under one name where it has none."""
    held = getattr(value, "__dict__", None)
    return dict(held) if held and not isinstance(value, type) else {type(value).__name__: value}


def _named(value: Any) -> str:
    """Where it is imported from; a script is ``__main__`` in its workers too."""
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{'__main__' if module == '__mp_main__' else module}.{name}"
