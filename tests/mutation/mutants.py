"""Small wrong changes to a module, one each: which there are, a seeded sample of them, and a module with one.

The operators are those of cosmic-ray and mutmut (comparisons, arithmetic, logic, numbers, strings, arguments,
statements), and swapped arguments. Only docstrings, annotations and the words of errors are left as they are.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd,),
}
# functions that have a counterpart which takes the same arguments
SYMMETRIC = {"min": "max", "minimum": "maximum", "fmin": "fmax"}  # a swap of arguments changes nothing
COUNTERPARTS = {"all": "any", "floor": "ceil", "argmin": "argmax", **SYMMETRIC}
COUNTERPARTS |= {other: name for name, other in COUNTERPARTS.items()}
# what a node of a tree may become
Change = tuple[str, ast.AST]


@dataclass(frozen=True)
class Mutant:
    """One wrong change.

    Attributes:
        module: path of the file, from the project's root.
        line: where it is.
        operator: what kind of change.
        before: the expression or statement as it is.
        after: as it becomes.
        place: number of the node in a walk over the module, and of the change among those of the node.
    """

    module: str
    line: int
    operator: str
    before: str
    after: str
    place: tuple[int, int]

    @property
    def name(self) -> str:
        """What it is known by as long as its module stays as it is."""
        return f"{self.module}:{self.place[0]}.{self.place[1]}"


def mutants_of(source: str, module: str) -> list[Mutant]:
    """All wrong changes to a module.

    >>> [mutant.after for mutant in mutants_of("def f(a, b): return a < b", "f.py")]
    ['return None', 'a <= b', 'a > b']
    """
    tree = ast.parse(source)
    untouched = _untouched(tree)
    return [
        Mutant(module, node.lineno, operator, _shown(node), _shown(after), (number, turn))
        for number, node in enumerate(ast.walk(tree))
        if id(node) not in untouched and isinstance(node, ast.expr | ast.stmt)
        for turn, (operator, after) in enumerate(_changes(node))
        if ast.dump(after) != ast.dump(node)
    ]


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module with the wrong change in it."""
    tree = ast.parse(source)
    number, turn = mutant.place
    wanted = next(node for place, node in enumerate(ast.walk(tree)) if place == number)
    after = list(_changes(wanted))[turn][1]

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return ast.copy_location(after, node) if node is wanted else self.generic_visit(node)

    return ast.fix_missing_locations(Put().visit(tree))


def sample(by_module: Mapping[str, Sequence[Mutant]], size: int, seed: int) -> list[Mutant]:
    """At least `size` mutants: of each module as large a share as it has of all, and at least five.

    A module's draws depend on the seed and its own name alone, so another module changes none of them.
    """
    total = sum(map(len, by_module.values()))
    drawn: list[Mutant] = []
    for module, found in sorted(by_module.items()):
        share = min(len(found), max(5, -(-size * len(found) // total)))
        key = int.from_bytes(hashlib.sha256(f"{seed}/{module}".encode()).digest()[:8], "little")
        drawn += sorted(random.Random(key).sample(found, share), key=lambda mutant: mutant.place)
    return drawn


def _changes(node: ast.AST) -> Iterator[Change]:
    """What a node may become; always in the same order."""
    for make in (_operators, _constants, _calls, _statements):
        yield from make(node)


def _operators(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in COMPARED[type(operator)]:
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield "comparison", _with(node, ops=ops)
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        for other_operator in COMPUTED.get(type(node.op), ()):
            yield "arithmetic", _with(node, op=other_operator())
    elif isinstance(node, ast.BoolOp):
        yield "logic", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield "sign or not", node.operand
    elif isinstance(node, ast.IfExp):
        yield "condition", _with(node, test=_not(node.test))
    elif isinstance(node, ast.Slice):
        if node.lower is not None:
            yield "slice", _with(node, lower=None)
        if node.upper is not None:
            yield "slice", _with(node, upper=None)


def _constants(node: ast.AST) -> Iterator[Change]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", ast.Constant(value + 1)
        yield "constant", ast.Constant(value / 2 if isinstance(value, float) and value else value - 1)
    elif isinstance(value, str):
        yield "text", ast.Constant(f"XX{value}")


def _calls(node: ast.AST) -> Iterator[Change]:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in COUNTERPARTS:
        yield "counterpart", _with(node, func=ast.Name(COUNTERPARTS[node.func.id], ast.Load()))
    if isinstance(node.func, ast.Attribute) and node.func.attr in COUNTERPARTS:
        yield "counterpart", _with(node, func=_with(node.func, attr=COUNTERPARTS[node.func.attr]))
    plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if len(node.args) == 2 and plain and called not in (*SYMMETRIC, *SYMMETRIC.values()):
        yield "swapped arguments", _with(node, args=node.args[::-1])
    for index in range(len(node.keywords)):
        yield "argument left out", _with(node, keywords=[*node.keywords[:index], *node.keywords[index + 1 :]])


def _statements(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.If | ast.While):
        yield "condition", _with(node, test=_not(node.test))
    elif isinstance(node, ast.For):
        yield "no iteration", _with(node, iter=ast.List([], ast.Load()))
    elif isinstance(node, ast.Break):
        yield "loop", ast.Continue()
    elif isinstance(node, ast.Continue):
        yield "loop", ast.Break()
    elif isinstance(node, ast.Raise | ast.Expr | ast.AugAssign):
        yield "left out", ast.Pass()


def _untouched(tree: ast.Module) -> set[int]:
    """Nodes that are no behaviour: docstrings, annotations, imports, the words of errors and type names."""
    skipped: set[int] = set()

    def skip(node: ast.AST | None) -> None:
        if node is not None:
            skipped.update(id(each) for each in ast.walk(node))

    for node in ast.walk(tree):
        if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or isinstance(
            node, ast.Import | ast.ImportFrom
        ):
            skip(node)
        elif isinstance(node, ast.AnnAssign | ast.arg):
            skip(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            skip(node.returns)
        elif isinstance(node, ast.Raise):
            skip(node.exc)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in ast.walk(node) if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and _is_type(node.value):
            skip(node)
    return skipped


def _is_type(node: ast.Subscript) -> bool:
    """Whether `X[...]` names a type: `Pairs = tuple[Ints, Ints]`."""
    return isinstance(node.value, ast.Name) and (
        node.value.id[0].isupper() or node.value.id in ("tuple", "list", "dict", "set")
    )


def _with(node: ast.AST, **changes: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _not(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 120 else text[:117] + "..."
