"""Live experiments: what is declared, what is known of it at any look, and in words. Nothing here moves traffic.

Every number is valid at every look (`governance.sequential`), so an experiment may be watched and stopped at will.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from governance.call import bad_request
from governance.exposures import ADJUSTED, LOWER_IS_BETTER, Exposures
from governance.sequential import (
    HORIZON,
    MIN_UNITS,
    Interval,
    Sample,
    adjusted,
    best_shares,
    difference,
    mean,
    sample_ratio,
)

Goal = Literal["increase", "decrease"]
RATIO_ALPHA = 0.001
"""Below it the split is told to be wrong, and nothing else of the experiment is believed."""
SHARED = ("latency_ms", "ttfb_ms", "cost", "error", "turns", "retry", "abandoned", "fallback", "user_feedback")
"""Metrics that are shown of every experiment, where there are values."""
_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guardrail(_Strict):
    """What no arm may do to a metric: be worse than the control by more than `margin` (its unit), or `ratio` times as bad."""

    metric: str
    margin: float = Field(default=0.0, ge=0)
    ratio: float | None = Field(default=None, ge=1)
    goal: Goal | None = None


class Arm(_Strict):
    served_entity_name: str
    traffic_percentage: int = Field(ge=0, le=100)


class Spec(_Strict):
    """An experiment as it is asked for; the fields of `POST /api/2.0/smalti/experiments`.

    Parameters
    ----------
    control: the arm that others are compared with and rolled back to; default: the first.
    arms: default: the endpoint's own routes. Shadow: the control has 100, others get copies of this share.
    sticky: what is dealt to an arm and counted.
    metric, goal: what the winner is better in.
    alpha: chance of naming a wrong winner, over all looks.
    alias: alias of the registered model that `promote` sets to the winner's version.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    endpoint: str = Field(min_length=1, max_length=256)
    mode: Literal["fixed", "shadow", "track-and-stop"] = "fixed"
    control: str = ""
    arms: list[Arm] = Field(default_factory=list, max_length=15)
    sticky: Literal["thread", "user", "request"] = "thread"
    metric: str = "user_feedback"
    goal: Goal | None = None
    metrics: list[str] = Field(default_factory=list, max_length=20)
    guardrails: list[Guardrail] = Field(default_factory=lambda: [Guardrail(metric="error", margin=0.02)], max_length=20)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    horizon: int = Field(default=HORIZON, ge=100)
    """Units at which the intervals are narrowest."""
    alias: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")

    @field_validator("metric", "metrics")
    @classmethod
    def _named(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            if not _METRIC.fullmatch(name):
                raise ValueError(f"{name!r} is no metric's name")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Spec:
        names = [arm.served_entity_name for arm in self.arms]
        if names:
            if len(names) < 2:
                raise ValueError("an experiment has at least two arms")
            if len(set(names)) < len(names):
                raise ValueError("two arms have one name")
            if self.control and self.control not in names:
                raise ValueError(f"control {self.control!r} is none of the arms")
            if self.mode != "shadow" and sum(arm.traffic_percentage for arm in self.arms) != 100:
                raise ValueError("the arms' traffic_percentage must add to 100")
        return self

    @classmethod
    def parse(cls, body: Any) -> Spec:
        """A checked experiment. Raises `CallError` (400) that names the field."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise bad_request(
                f"{f'Field {place!r}: ' if place else ''}{first['msg'].removeprefix('Value error, ')}.", place or None
            ) from None

    def higher(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        given = [self.goal] if metric == self.metric and self.goal else [g.goal for g in self.guardrails if g.metric == metric]
        told = next(filter(None, given), None)
        return told == "increase" if told else metric not in LOWER_IS_BETTER

    @property
    def names(self) -> list[str]:
        return [arm.served_entity_name for arm in self.arms]

    @property
    def shown(self) -> list[str]:
        """Metrics of the report, the one that decides first."""
        wanted = [self.metric, *(guardrail.metric for guardrail in self.guardrails), *self.metrics, *SHARED]
        return list(dict.fromkeys(wanted))


def report(spec: Spec, seen: Exposures) -> dict[str, Any]:
    """Everything that is known now: `arms`, `metrics`, `sample_ratio`, `guardrail` (the first that broke) and `verdict`."""
    counted = seen.counts()
    ratio = _ratio(spec, [arm["units"] for arm in counted])
    known = set(seen.metrics())
    metrics = [_metric(spec, seen, name) for name in spec.shown if name in known or name == spec.metric]
    broken = _broken(spec, metrics)
    arms = [{**arm.model_dump(), **count} for arm, count in zip(spec.arms, counted, strict=True)]
    return {
        "arms": arms,
        "crossed_calls": seen.crossed,
        "metrics": metrics,
        "sample_ratio": ratio,
        "guardrail": broken,
        "verdict": _verdict(spec, arms, metrics[0], ratio, broken),
    }


def allocation(spec: Spec, seen: Exposures) -> list[int]:
    """The percentages that track-and-stop deals by from now on."""
    found = seen.values(spec.metric)
    samples = [Sample.of(found.values[found.arms == number]) for number in range(len(spec.arms))]
    shares = best_shares(samples, higher=spec.higher(spec.metric))
    whole = [math.floor(100 * share) for share in shares]
    for number in sorted(range(len(shares)), key=lambda n: whole[n] - 100 * shares[n])[: 100 - sum(whole)]:
        whole[number] += 1
    return whole


def _ratio(spec: Spec, units: Sequence[int]) -> dict[str, Any]:
    """Whether units were dealt as they should be; only where shares stay as they are."""
    shares = [arm.traffic_percentage / 100 for arm in spec.arms]
    total = sum(units)
    p = sample_ratio(units, shares) if spec.mode == "fixed" else None
    expected = [round(total * share, 1) for share in shares] if spec.mode == "fixed" else None
    return {"p_value": p, "ok": p is None or p >= RATIO_ALPHA, "observed": list(units), "expected": expected}


def _metric(spec: Spec, seen: Exposures, name: str) -> dict[str, Any]:
    found = seen.values(name)
    values = adjusted(found.values, found.covariates) if name in ADJUSTED else found.values
    samples = [Sample.of(values[found.arms == number]) for number in range(len(spec.arms))]
    higher, control = spec.higher(name), spec.names.index(spec.control)
    pairs = len(spec.arms) * (len(spec.arms) - 1) / 2
    means = [mean(sample, spec.alpha / len(spec.arms), spec.horizon) for sample in samples]
    compared = []
    for number, arm in enumerate(spec.names):
        if number == control:
            continue
        told = difference(samples[control], samples[number], spec.alpha / pairs, spec.horizon)
        base = samples[control].mean
        relative = told.estimate / abs(base) if base and math.isfinite(told.estimate) and math.isfinite(base) else None
        better = told.lower > 0 if higher else told.upper < 0
        worse = told.upper < 0 if higher else told.lower > 0
        compared.append(
            {
                "served_entity_name": arm,
                **_shown("difference", told),
                "relative": relative,
                "verdict": "better" if better else "worse" if worse else "not shown",
            }
        )
    roles = ["primary"] if name == spec.metric else []
    roles += ["guardrail"] if name in [guardrail.metric for guardrail in spec.guardrails] else []
    return {
        "name": name,
        "goal": "increase" if higher else "decrease",
        "role": roles[0] if roles else "secondary",
        "adjusted": values is not found.values,
        "arms": [
            {"served_entity_name": arm, "units": sample.n, **_shown("mean", told)}
            for arm, sample, told in zip(spec.names, samples, means, strict=True)
        ],
        "differences": compared,
        "winner": _winner(spec, samples, means, higher, spec.alpha / pairs),
    }


def _winner(spec: Spec, samples: Sequence[Sample], means: Sequence[Interval], higher: bool, alpha: float) -> str | None:
    """The arm that is shown to be better than every other."""
    if any(sample.n < MIN_UNITS for sample in samples):
        return None
    sign = 1 if higher else -1
    best = max(range(len(samples)), key=lambda number: sign * samples[number].mean)
    others = [number for number in range(len(samples)) if number != best]
    if spec.mode == "track-and-stop":  # shares follow the values, so each arm's own sequence decides
        low = means[best].lower if higher else -means[best].upper
        return spec.names[best] if all(low > (means[n].upper if higher else -means[n].lower) for n in others) else None
    for number in others:
        told = difference(samples[number], samples[best], alpha, spec.horizon)
        if not (told.lower > 0 if higher else told.upper < 0):
            return None
    return spec.names[best]


def _broken(spec: Spec, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first guardrail that an arm is shown to break."""
    for guardrail in spec.guardrails:
        metric = next((metric for metric in metrics if metric["name"] == guardrail.metric), None)
        if metric is None:
            continue
        base = next(arm["mean"] for arm in metric["arms"] if arm["served_entity_name"] == spec.control)
        margin = guardrail.margin + ((guardrail.ratio or 1) - 1) * abs(base or 0.0)
        for each in metric["differences"]:
            harm = each["lower"] if metric["goal"] == "decrease" else None if each["upper"] is None else -each["upper"]
            if harm is not None and harm > margin:
                text = (
                    f"{each['served_entity_name']} breaks the guardrail on {metric['name']}: it differs from {spec.control} by "
                    f"{_between(each)}, where {margin:.3g} is allowed"
                )
                return {
                    "metric": metric["name"],
                    "served_entity_name": each["served_entity_name"],
                    "margin": margin,
                    "text": text,
                }
    return None


def _verdict(
    spec: Spec,
    arms: Sequence[Mapping[str, Any]],
    primary: Mapping[str, Any],
    ratio: Mapping[str, Any],
    broken: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`decision`, `winner` and what to tell people."""
    idle = [arm["served_entity_name"] for arm in arms if not arm["units"]]
    if broken:
        return {"decision": "guardrail", "winner": spec.control, "text": f"{broken['text']}."}
    if not ratio["ok"]:
        text = (
            f"The units are not dealt out as configured ({ratio['observed']} where {ratio['expected']} were expected, "
            f"p = {ratio['p_value']:.2g}): something loses or adds units of one arm, so do not believe the differences; "
            "find it first."
        )
        return {"decision": "sample_ratio_mismatch", "winner": None, "text": text}
    if idle:
        text = f"Nothing is known yet: {' and '.join(idle)} got no traffic.{_few(spec, arms)}"
        return {"decision": "no_traffic", "winner": None, "text": text}
    told = "; ".join(
        f"{each['served_entity_name']} is {_WORDS[each['verdict']]} than {spec.control} in {primary['name']} ({_between(each)})"
        for each in primary["differences"]
    )
    if primary["winner"]:
        text = f"{primary['winner']} is the best in {primary['name']}: {told}. Promote it when its other metrics please you."
        return {"decision": "winner", "winner": primary["winner"], "text": text}
    least = min(arm["units"] for arm in primary["arms"])
    if least < MIN_UNITS:
        return {
            "decision": "undecided",
            "winner": None,
            "text": f"Too early to tell: an arm has {least} units with {primary['name']}, and {MIN_UNITS} are the least.",
        }
    return {"decision": "undecided", "winner": None, "text": f"Undecided: {told}."}


def _few(spec: Spec, arms: Sequence[Mapping[str, Any]]) -> str:
    """Why an arm waits although there are calls: they are those of few units, and each of these stays where it is."""
    units, calls = (sum(arm[key] for arm in arms) for key in ("units", "calls"))
    if spec.sticky == "request" or not units or calls < 10 * units:
        return ""
    told = {"thread": "conversations or users", "user": "users"}[spec.sticky]
    return (
        f" All {calls} calls are those of {units} {told}, who stay with their arm; with sticky: request each call is dealt anew."
    )


_WORDS = {"better": "better", "worse": "worse", "not shown": "not shown to be better or worse"}


def _shown(key: str, told: Interval) -> dict[str, float | None]:
    """JSON knows no infinity: null where nothing is known."""
    values = zip((key, "lower", "upper"), told, strict=True)
    return {name: float(value) if math.isfinite(value) else None for name, value in values}


def _between(each: Mapping[str, Any]) -> str:
    if each["difference"] is None:
        return "no values yet"
    if each["lower"] is None or each["upper"] is None:
        return f"{each['difference']:+.3g}, too few units for an interval"
    relative = f", {each['relative']:+.1%}" if each["relative"] is not None else ""
    return f"{each['difference']:+.3g}{relative}, interval {each['lower']:+.3g} to {each['upper']:+.3g}"
