"""What must hold of every rule, whatever it looks for."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from stabkit.analyzers import ANALYZERS
from stabkit.analyzers.base import Thresholds
from stabkit.metric import METRICS
from stabkit.report.pages import SECTIONS, sections

each = pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda a: a.rule.code)

WITHOUT_NUMBERS = {"SK104", "SK416", "SK417", "SK419"}


def module(analyzer: Any) -> Any:
    return sys.modules[type(analyzer).__module__]


def thresholds(analyzer: Any) -> type[Thresholds] | None:
    kinds = [v for v in vars(module(analyzer)).values() if isinstance(v, type) and issubclass(v, Thresholds)]
    return next((kind for kind in kinds if kind is not Thresholds), None)


def test_codes_and_names_are_unique_and_in_order() -> None:
    codes, names = [a.rule.code for a in ANALYZERS], [a.rule.name for a in ANALYZERS]
    assert codes == sorted(set(codes))
    assert len(set(names)) == len(names)


@each
def test_it_can_be_made_without_arguments_and_keeps_nothing_of_a_run(analyzer: Any) -> None:
    assert vars(type(analyzer)()).keys() <= {"thresholds"}
    assert module(analyzer).RULE is analyzer.rule
    assert module(analyzer).__name__.rsplit(".", 1)[1] == analyzer.rule.name.replace("-", "_")


@each
def test_its_page_has_every_section_in_order(analyzer: Any) -> None:
    page = module(analyzer).__doc__
    assert page.startswith(f"{analyzer.rule.code} {analyzer.rule.name}.\n")
    assert tuple(sections(page)) == SECTIONS
    assert all(len(text) > 20 for text in sections(page).values())


@each
def test_it_asks_only_for_what_the_vocabulary_has(analyzer: Any) -> None:
    assert all(required in METRICS for required in analyzer.rule.requires + analyzer.rule.any_of)


@each
def test_its_thresholds_are_frozen_documented_and_checked(analyzer: Any) -> None:
    kind = thresholds(analyzer)
    if kind is None:
        assert analyzer.rule.code in WITHOUT_NUMBERS, "a rule with numbers in it names them"
        return
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert get_type_hints(type(analyzer).__init__)["thresholds"] == kind | None
    for node in ast.walk(ast.parse(Path(module(analyzer).__file__).read_text())):
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            after = zip(node.body, node.body[1:], strict=False)
            documented = {a.target.id for a, b in after if isinstance(a, ast.AnnAssign) and _is_text(b)}  # type: ignore[union-attr]
            assert documented == {field.name for field in fields(kind)}
    name = fields(kind)[0].name
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {name} must be above 0, not -1"):
        kind(**{name: -1})


@each
def test_its_file_is_short(analyzer: Any) -> None:
    assert len(Path(module(analyzer).__file__).read_text().splitlines()) < 300


def test_no_rule_needs_torch_or_scipy() -> None:
    code = "import sys, stabkit.analyzers; assert not {'torch', 'hooks', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
