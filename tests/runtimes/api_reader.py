"""Finds, by reading code, every name of the TensorRT module that it uses; `test_trt_contract.py` runs it.

A value is TensorRT's if it comes from a parameter of a known name whose type is Any, from a constructor, or
from a method that is known to return one; what is looked up on it is a use. A name that the function asks for
with `hasattr` is guarded there. A parameter of type Any with an unknown name is an error: nothing may hide.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

MODULE = "module"

PARAMETERS = {
    "trt": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "refusal": "ParserError",
}
# Of type Any and not TensorRT's, but for an enum of which the name alone is asked.
OTHERS = {"severity"}
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("INetworkDefinition", "get_layer"): "ILayer",
    ("ILayer", "get_input"): "ITensor",
    ("ILayer", "get_output"): "ITensor",
    ("OnnxParser", "get_error"): "ParserError",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("ITimingCache", "serialize"): "IHostMemory",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("IExecutionContext", "engine"): "ICudaEngine",
}
OWN_FUNCTIONS = {"load_engine": ("ICudaEngine", "Runtime")}
# The first argument of these is an enum, or bits made from one.
TAKE_ENUMS = {
    "create_network",
    "set_flag",
    "clear_flag",
    "get_flag",
    "set_memory_pool_limit",
    "set_preview_feature",
    "get_engine_information",
    "get_layer_information",
}

Value = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Use:
    """A name looked up on the module or on one of its classes; `guarded` by a feature test beside it."""

    owner: str
    name: str
    line: int
    guarded: bool = False


@dataclass
class Reader:
    """Reads one file; `problems` are what makes its reading incomplete, or a number in an enum's place."""

    uses: list[Use] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    attributes: dict[str, Value] = field(default_factory=dict)

    def read(self, source: str) -> None:
        tree = ast.parse(source)
        for _ in range(2):  # the second time with what the first found of attributes
            self.uses, self.problems = [], []
            for node in tree.body:
                self._scope(node, {}, frozenset())

    def _scope(self, node: ast.AST, known: dict[str, Value], guards: frozenset[tuple[str, str]]) -> None:
        if isinstance(node, ast.ClassDef):
            self._class(node, known, guards)
        elif isinstance(node, ast.FunctionDef):
            self._function(node, known, guards)

    def _class(self, node: ast.ClassDef, known: dict[str, Value], guards: frozenset[tuple[str, str]]) -> None:
        for base in node.bases:
            value = self._value(base, known)
            if isinstance(value, str) and value.startswith("type:"):
                owner = value.removeprefix("type:")
                self.uses.append(Use(MODULE, owner, base.lineno))
                overridden = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                self.uses += [Use(owner, f.name, f.lineno) for f in overridden if not f.name.startswith("_")]
        for part in node.body:
            self._scope(part, known, guards)

    def _function(
        self, node: ast.FunctionDef, outer: dict[str, Value], guards: frozenset[tuple[str, str]]
    ) -> None:
        known = dict(outer)
        arguments = node.args
        for parameter in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            known.pop(parameter.arg, None)
            if isinstance(parameter.annotation, ast.Name) and parameter.annotation.id == "Any":
                if parameter.arg in PARAMETERS:
                    known[parameter.arg] = PARAMETERS[parameter.arg]
                elif parameter.arg not in OTHERS:
                    self.problems.append(f"line {node.lineno}: what is the parameter '{parameter.arg}'?")
        own = list(_own_nodes(node))
        for part in own:
            if isinstance(part, ast.Assign):
                for target in part.targets:
                    self._bind(target, part.value, known)
            elif isinstance(part, ast.NamedExpr):
                self._bind(part.target, part.value, known)
        asked = guards | {
            (owner, str(part.args[1].value))
            for part in own
            if isinstance(part, ast.Call)
            and isinstance(part.func, ast.Name)
            and part.func.id == "hasattr"
            and isinstance(part.args[1], ast.Constant)
            and isinstance(owner := self._value(part.args[0], known), str)
        }
        for part in own:
            self._look(part, known, asked)
            self._scope(part, known, asked)

    def _look(self, node: ast.AST, known: dict[str, Value], guards: frozenset[tuple[str, str]]) -> None:
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            owner = self._value(node.value, known)
            if isinstance(owner, str):
                owner = owner.removeprefix("type:")
                self.uses.append(Use(owner, node.attr, node.lineno, (owner, node.attr) in guards))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in TAKE_ENUMS
        ):
            named = any(
                str(self._value(part, known)).startswith("type:")
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Attribute)
            )
            if self._value(node.func.value, known) and not named:
                self.problems.append(f"line {node.lineno}: {node.func.attr} is given a number, not an enum")

    def _bind(self, target: ast.expr, value: ast.expr, known: dict[str, Value]) -> None:
        found = self._value(value, known)
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else None
            for index, part in enumerate(target.elts):
                if values is not None:
                    self._bind(part, values[index], known)
                elif isinstance(found, tuple) and isinstance(part, ast.Name):
                    known[part.id] = found[index]
        elif isinstance(target, ast.Name):
            known.pop(target.id, None)
            if found is not None:
                known[target.id] = found
        elif isinstance(target, ast.Attribute) and found is not None:
            self.attributes[target.attr] = found

    def _value(self, node: ast.expr, known: dict[str, Value]) -> Value:
        """Return whose instance this is, "type:NAME" for a class or an enum, None if not TensorRT's."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.attributes.get(node.attr)
            owner = self._value(node.value, known)
            if owner == MODULE:
                return None if node.attr.startswith("__") or node.attr.islower() else f"type:{node.attr}"
            return RETURNS.get((str(owner), node.attr))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                return OWN_FUNCTIONS.get(node.func.id)
            called = self._value(node.func, known)
            if isinstance(called, str) and called.startswith("type:"):
                return called.removeprefix("type:")
            return called
        return None


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield what is in a function and not in one within it, the inner definitions themselves included."""
    waiting: list[ast.AST] = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            waiting += reversed(list(ast.iter_child_nodes(node)))
