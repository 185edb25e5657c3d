"""Repeats, medians, tables and targets, shared by all questions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class BenchmarkError(Exception):
    """A competitor did not do its part; a figure of it would mean nothing."""


@dataclass(frozen=True)
class Target:
    """What one of our rows is held to.

    With a `peer`, `at_least` is how many times faster than it our row has to be, and `at_most`
    how many times its figure our row may cost; without a peer, `at_most` is in the unit of the
    table.
    """

    ours: str
    peer: str | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass
class Verdict:
    """One target, after measuring."""

    question: str
    text: str
    reached: bool | None  # None: nothing to compare with in this run


@dataclass
class Table:
    """The figures of one question, one row a competitor; smaller figures are better."""

    title: str
    unit: str
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    figures: dict[str, list[float]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def measure(self, competitors: Mapping[str, Callable[[], float]], repeats: int) -> None:
        """Run every competitor `repeats` times, taking turns, so that drift hits all alike."""
        for _ in range(repeats):
            for name, run in competitors.items():
                if name in self.failures:
                    continue
                try:
                    self.figures.setdefault(name, []).append(run())
                except BenchmarkError as error:
                    self.failures[name] = str(error)
                    del self.figures[name]

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])

    def ratio(self, name: str, reference: str) -> float:
        """The median of what each round says: a machine that changes its speed between rounds,
        or in one, is a small part of that, and a large one of the ratio of two medians.
        """
        rounds = zip(self.figures[name], self.figures[reference], strict=True)
        return statistics.median(a / b if b else float("inf") for a, b in rounds)

    def print(self) -> list[Verdict]:
        """Print the rows, then what became of each target."""
        print(f"\n{self.title}  [{self.unit}]")
        for note in self.notes:
            print(f"  ({note})")
        if not self.figures and not self.failures:
            print("  nothing to measure in this environment")
            return []
        width = max(34, *(len(name) for name in self.figures))
        reference = self._reference()
        heading = f"times the figure of {reference}" if reference else ""
        print(f"  {'':{width}} {'median':>10} {'lowest':>10} {'highest':>10}   {heading}")
        for name, figures in self.figures.items():
            median = self.median(name)
            against = f"{self.ratio(name, reference):8.2f}" if reference else ""
            row = " ".join(f"{number(value):>10}" for value in (median, min(figures), max(figures)))
            print(f"  {name:{width}} {row}   {against}  {self.remarks.get(name, '')}".rstrip())
        for name, failure in self.failures.items():
            print(f"  {name:{width}} FAILED: {failure}")
        verdicts = [self._judge(target) for target in self.targets]
        for verdict in verdicts:
            print(f"  -> {verdict.text}: {word(verdict.reached)}")
        return verdicts

    def _reference(self) -> str | None:
        """The row that all are divided by: the first of ours that has a target."""
        return next((t.ours for t in self.targets if t.ours in self.figures), None)

    def _judge(self, target: Target) -> Verdict:
        versus = f" against {target.peer}" if target.peer else ""
        if target.ours in self.failures:
            return Verdict(self.title, f"{target.ours}{versus}: failed", reached=False)
        missing = [n for n in (target.ours, target.peer) if n and n not in self.figures]
        if missing:
            text = f"{target.ours}{versus}: {' and '.join(missing)} not in this run"
            return Verdict(self.title, text, None)
        if target.peer is None:
            ours = self.median(target.ours)
            text = f"{target.ours}: {number(ours)} {self.unit}, at most {number(target.at_most)}"
            return Verdict(self.title, text, ours <= target.at_most)
        if target.at_least is not None:
            ratio = self.ratio(target.peer, target.ours)
            text = f"{target.ours}{versus}: {ratio:.2f} times as fast, at least {target.at_least}"
            return Verdict(self.title, text, ratio >= target.at_least)
        ratio = self.ratio(target.ours, target.peer)
        text = f"{target.ours}{versus}: {ratio:.2f} times its figure, at most {target.at_most}"
        return Verdict(self.title, text, ratio <= target.at_most)


def word(reached: bool | None) -> str:
    return {True: "pass", False: "SHORT", None: "not judged"}[reached]


def number(value: float) -> str:
    """Three significant digits or whole numbers, whichever says more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summary(verdicts: Sequence[Verdict]) -> None:
    """All targets at one glance, at the end of a run."""
    print("\nTargets")
    width = max((len(v.question) for v in verdicts), default=0)
    for verdict in verdicts:
        print(f"  {word(verdict.reached):10} {verdict.question:{width}}  {verdict.text}")
    counts = [sum(v.reached is state for v in verdicts) for state in (True, False, None)]
    print("  {} reached, {} short, {} not judged".format(*counts))
