"""Plain tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def printable(text: str) -> str:
    """Text from a file on one line: control characters become escapes such as ``\\n``."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print one line a pair, the second of each in one column."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:{width}}  {value}")


def show_columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print rows under a head; the first ``left`` columns are aligned left, the rest right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            f"{cell:{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def accuracy_pairs(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Clean accuracy, each attack's and the worst case's, from ``accuracy`` and ``attacks``."""
    from atmc.attacks import registry  # loads torch

    pairs = [("clean accuracy", f"{report['accuracy']['clean']:.4f}")]
    for attack in report["attacks"]:
        steps = f"-{attack['steps']}" if registry.is_numbered(attack["name"]) else ""
        restarts = attack["restarts"] or 1
        settings = [f"eps {attack['eps']:.4g}"] if attack["eps"] is not None else []
        settings += [f"{restarts} restarts"] if restarts > 1 else []
        settings += [f"loss {attack['loss']}"] if attack["loss"] == "dlr" else []
        settings += [f"made on {attack['source']}"] if "source" in attack else []
        settings += [f"{attack['examples']:,} examples"]
        pairs.append((attack["name"] + steps, f"{attack['accuracy']:.4f}  ({', '.join(settings)})"))
    pairs.append(("worst case", f"{report['accuracy']['worst']:.4f}"))
    if certified := report.get("certified"):
        settings = [certified["bound"], f"eps {certified['eps']:.4g}"]
        settings += [f"{certified['examples']:,} examples"]
        pairs.append(("certified", f"{certified['accuracy']:.4f}  ({', '.join(settings)})"))
    return pairs


def show_warnings(report: dict[str, Any]) -> None:
    """Print on stderr why the accuracies of a report are not to be trusted."""
    for warning in report.get("warnings", []):
        click.echo(f"Warning: {warning}", err=True)


def show_ladder(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rungs of "ladder": ε, the attack at it, and the accuracy it leaves."""
    show_columns(
        ("eps", "attack", "step size", "accuracy"),
        [
            (
                f"{row['eps']:.4g}",
                f"{row['name']}-{row['steps']}",
                f"{row['step_size']:.4g}",
                f"{row['accuracy']:.4f}",
            )
            for row in rows
        ],
        left=2,
    )


def show_checks(checks: Sequence[dict[str, Any]]) -> None:
    """Print each of "checks" with its outcome."""
    show_pairs(
        [(f"check {check['name']}", f"{_outcome(check)}  ({check['detail']})") for check in checks]
    )


def _outcome(check: dict[str, Any]) -> str:
    return "passed" if check["passed"] else "FAILED"
