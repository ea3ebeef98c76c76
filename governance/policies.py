"""The policy of an endpoint in the words of Databricks' AI Gateway, and which policy is in force.

`AiGatewayConfig` is that of https://docs.databricks.com/api/workspace/servingendpoints/putaigateway. Which limit counts for
whom follows https://docs.databricks.com/aws/en/ai-gateway/rate-limits-beta: the endpoint's limit always; beside it the limit
of the named user or service principal, else that of its groups (shared by a group's members; in several groups, the first
with room), else the default for each user by itself.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator
from sqlalchemy import Engine, delete, select, update

from governance import audit
from governance.call import Caller, CallError, unavailable
from governance.changes import Changes
from governance.explain import explain
from governance.redact import PATH
from governance.tables import policies as table


class RateLimit(BaseModel):
    """One limit: calls, tokens, money, or several of them, a minute, day or month (UTC).

    `cost` (US dollars), the periods beyond a minute and `soft` (over it warns and refuses nothing) are Smalti's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls: StrictInt | None = Field(default=None, ge=0)
    tokens: StrictInt | None = Field(default=None, ge=0)
    key: Literal["endpoint", "user", "user_group", "service_principal"] = "endpoint"
    cost: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    principal: str | None = None
    renewal_period: Literal["minute", "day", "month"] = "minute"
    soft: StrictBool | None = None

    @model_validator(mode="after")
    def _whole(self) -> RateLimit:
        if self.calls is None and self.tokens is None and self.cost is None:
            raise ValueError("a rate limit needs calls, tokens or cost")
        if self.renewal_period == "minute" and (self.cost is not None or self.soft):
            raise ValueError("cost and soft go with renewal_period day or month")
        if self.key == "user_group" and not self.principal:
            raise ValueError("key user_group needs principal, the group's name")
        if self.key == "endpoint" and self.principal:
            raise ValueError("key endpoint takes no principal; use key user, user_group or service_principal")
        return self


class InferenceTableConfig(BaseModel):
    """`enabled: false` keeps requests and answers out of the inference table; the row itself stays.

    Smalti's own: `sample_percentage` keeps them of that share of the calls, and `redact` lists paths (`request.metadata.email`,
    `response.output.*.text`) whose values are never written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: StrictBool | None = None
    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None
    sample_percentage: StrictInt | None = Field(default=None, ge=0, le=100)
    redact: tuple[Annotated[str, Field(pattern=rf"^{PATH.pattern}$")], ...] | None = Field(default=None, max_length=100)


class UsageTrackingConfig(BaseModel):
    """`enabled: false` keeps token counts out of the inference table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: StrictBool | None = None


class PresidioOptions(BaseModel):
    """What Presidio looks for beside what has a form, and the spaCy model (a package or a folder) that it reads with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, min_length=1, max_length=500)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    entities: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z_0-9]{1,60}$")], ...] = Field(
        default=("PERSON", "LOCATION"), min_length=1, max_length=50
    )
    score: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)


class PiiBehavior(BaseModel):
    """What happens to personal data: nothing, the call is refused, or typed placeholders take its place.

    `presidio` is Smalti's own: names and places are looked for too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    behavior: Literal["NONE", "BLOCK", "MASK"] | None = None
    presidio: PresidioOptions | None = None


Keyword = Annotated[str, Field(min_length=1, max_length=200)]


class GuardrailParameters(BaseModel):
    """What must not pass. `custom` is Smalti's own: callables `package.module:function` or `./file.py:function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    invalid_keywords: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        default=None, max_length=1000
    )
    pii: PiiBehavior | None = None
    safety: StrictBool | None = None
    valid_topics: tuple[Annotated[str, Field(min_length=1, max_length=500)], ...] | None = Field(default=None, max_length=100)
    custom: tuple[str, ...] | None = None

    @property
    def any(self) -> bool:
        pii = self.pii is not None and self.pii.behavior not in (None, "NONE")
        return bool(pii or self.invalid_keywords or self.safety or self.valid_topics or self.custom)


class Guardrails(BaseModel):
    """What is looked at before the model is called, and before its answer leaves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: GuardrailParameters | None = None
    output: GuardrailParameters | None = None


class FallbackConfig(BaseModel):
    """Whether the endpoint's next served entity is tried when one fails before its first word."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: StrictBool


class AiGatewayConfig(BaseModel):
    """The policy of one endpoint. Immutable; `parse` makes it from what was written in a file or sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_limits: tuple[RateLimit, ...] | None = None
    guardrails: Guardrails | None = None
    fallback_config: FallbackConfig | None = None
    inference_table_config: InferenceTableConfig | None = None
    usage_tracking_config: UsageTrackingConfig | None = None

    @classmethod
    def parse(cls, data: Any, where: str = "ai_gateway") -> AiGatewayConfig:
        """Raises `ValueError` in one line that names the key at fault and what is accepted there."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(explain(error, where, cls)) from None

    def as_dict(self) -> dict[str, Any]:
        """As it was written or sent."""
        return self.model_dump(exclude_none=True, exclude_unset=True, mode="json")

    @cached_property
    def guarded(self) -> Guardrails | None:
        """The guardrails, where there is something to do."""
        rails = self.guardrails
        return rails if rails and ((rails.input and rails.input.any) or (rails.output and rails.output.any)) else None

    @property
    def custom(self) -> bool:
        """Whether code of the operator's is to be run, which only the file may ask for."""
        rails = self.guardrails
        sides = (rails.input, rails.output) if rails is not None else ()
        return any(side is not None and bool(side.custom or (side.pii and side.pii.presidio)) for side in sides)

    def check_keywords(self, where: str = "") -> None:
        """Raises `ValueError` for one that no text can hold; not as it is parsed, since policies that are stored must be read."""
        from governance.guardrails.fold import fold  # which most policies need not know

        for side in ("input", "output"):
            given = getattr(self.guardrails, side, None)
            for number, word in enumerate((given.invalid_keywords if given else None) or ()):
                if not fold(word, words=True)[0].strip():
                    raise ValueError(f"{where}guardrails.{side}.invalid_keywords.{number}: {word!a} has no letter to look for")

    def logs_payload(self, request_id: str) -> bool:
        """Whether the call's request and answer are kept; of a sample, the same calls whoever asks."""
        config = self.inference_table_config
        if config is None:
            return True
        if config.enabled is False:
            return False
        return config.sample_percentage is None or zlib.crc32(request_id.encode()) % 100 < config.sample_percentage

    @cached_property
    def redactions(self) -> tuple[str, ...]:
        """Paths whose values are not written."""
        return (self.inference_table_config.redact if self.inference_table_config else None) or ()

    @cached_property
    def usage_tracked(self) -> bool:
        return self.usage_tracking_config is None or self.usage_tracking_config.enabled is not False

    @cached_property
    def rules(self) -> tuple[tuple[str, Rules], ...]:
        """Limits a minute as they are looked up, by metric; metrics without a limit are left out."""
        minute = [limit for limit in self.rate_limits or () if limit.renewal_period == "minute"]
        found = ((metric, Rules(minute, metric)) for metric in ("calls", "tokens"))
        return tuple((metric, rules) for metric, rules in found if rules.any)

    @cached_property
    def budgets(self) -> tuple[tuple[str, str, bool, Rules], ...]:
        """Limits a day and a month: metric, period, whether soft, rules. Money is counted in millionths of a dollar."""
        found = []
        for period in ("day", "month"):
            for soft in (False, True):
                limits = [each for each in self.rate_limits or () if each.renewal_period == period and bool(each.soft) == soft]
                found += [(metric, period, soft, Rules(limits, metric)) for metric in ("calls", "tokens", "cost")]
        return tuple(entry for entry in found if entry[3].any)


class Rules:
    """The limits of one metric. Where two say something about the same key, the lower one counts."""

    def __init__(self, limits: Sequence[RateLimit], metric: str) -> None:
        self.endpoint: int | None = None
        self.default: dict[str, int] = {}
        self.named: dict[tuple[str, str], int] = {}
        groups: dict[str, int] = {}
        for limit in limits:
            allowed = getattr(limit, metric)
            if allowed is None:
                continue
            if metric == "cost":
                allowed = round(allowed * 1e6)
            if limit.key == "endpoint":
                self.endpoint = allowed if self.endpoint is None else min(self.endpoint, allowed)
            elif not limit.principal:
                self.default[limit.key] = min(allowed, self.default.get(limit.key, allowed))
            elif limit.key == "user_group":
                groups[limit.principal] = min(allowed, groups.get(limit.principal, allowed))
            else:
                name = (limit.key, limit.principal)
                self.named[name] = min(allowed, self.named.get(name, allowed))
        self.groups = sorted(groups.items(), key=lambda item: -item[1])
        self.any = self.endpoint is not None or bool(self.default or self.named or groups)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Kind and name of everything that has a limit of its own."""
        everyone = [("endpoint", "")] if self.endpoint is not None else []
        return [*everyone, *(("user_group", group) for group, _ in self.groups), *self.named]

    def limit(self, kind: str, whose: str) -> int | None:
        """What that key may use; None for one that no limit speaks of."""
        if kind == "endpoint":
            return self.endpoint
        if kind == "user_group":
            return dict(self.groups).get(whose)
        return self.named.get((kind, whose), self.default.get(kind, self.default.get("user")))

    def applying(self, caller: Caller) -> list[list[tuple[int, str, str]]]:
        """What must have room: of each inner list, one. Items are limit, kind of key, whose."""
        needed: list[list[tuple[int, str, str]]] = []
        if self.endpoint is not None:
            needed.append([(self.endpoint, "endpoint", "")])
        own = self.named.get((caller.kind, caller.name))
        shared = [(limit, "user_group", group) for group, limit in self.groups if group in caller.groups] if own is None else []
        if own is not None:
            needed.append([(own, caller.kind, caller.name)])
        elif shared:
            needed.append(shared)
        else:
            default = self.default.get(caller.kind, self.default.get("user"))
            if default is not None:
                needed.append([(default, caller.kind, caller.name)])
        return needed


class Policies:
    """The policy of each endpoint: declared in a file, or stored through the API. What the file declares wins. Thread-safe.

    Parameters
    ----------
    engine: the state database; None for declared policies only.
    declared: policy by endpoint, as read from a file.
    """

    def __init__(self, engine: Engine | None = None, declared: Mapping[str, Any] | None = None) -> None:
        self.changes = Changes.of(engine) if engine is not None else None
        self._lock = threading.Lock()
        self._seen = 0
        self._declared: dict[str, AiGatewayConfig] = {}
        self._stored: dict[str, AiGatewayConfig | ValueError] = {}
        self._current: Mapping[str, AiGatewayConfig | ValueError] = {}
        self.declare(declared or {})

    def declare(self, declared: Mapping[str, Any]) -> None:
        """Swap in the file's policies. Raises `ValueError` naming endpoint and key, and then changes nothing."""
        parsed = {
            name: data if isinstance(data, AiGatewayConfig) else AiGatewayConfig.parse(data, f"{name}.ai_gateway")
            for name, data in declared.items()
        }
        for name, policy in parsed.items():
            policy.check_keywords(f"{name}.ai_gateway.")
        with self._lock:
            self._declared = parsed
            self._current = {**self._stored, **parsed}

    def get(self, endpoint: str) -> AiGatewayConfig | None:
        """The policy in force now. Raises `CallError` 503 for one that is stored but cannot be read: that is not no policy."""
        if self.changes is not None:
            version = self.changes.versions().get("policies", 0)
            if version != self._seen:
                self._load(version)
        policy = self._current.get(endpoint)
        if isinstance(policy, ValueError):
            raise unavailable(f"the stored ai_gateway policy of {endpoint} cannot be read ({policy}): an admin must set it again")
        return policy

    def set(self, endpoint: str, config: Mapping[str, Any] | AiGatewayConfig, *, by: str | None = None) -> AiGatewayConfig:
        """Store a policy, in force on the next request.

        Raises `ValueError` for a wrong one, and `CallError` 409 where the file declares it.
        """
        parsed = config if isinstance(config, AiGatewayConfig) else AiGatewayConfig.parse(config)
        parsed.check_keywords()
        if endpoint in self._declared:
            raise CallError(
                f"the ai_gateway policy of {endpoint} is declared in smalti.yaml, which wins: change it there",
                status=409,
                code="RESOURCE_CONFLICT",
            )
        if parsed.custom:
            raise ValueError(
                "guardrails.custom and pii.presidio run what is on the server, so they are accepted in smalti.yaml only"
            )
        if self.changes is None:
            raise RuntimeError("these policies have no database to be stored in")
        values = {"config": orjson.dumps(parsed.as_dict()).decode(), "changed_by": by, "changed": time.time()}
        with self.changes.write("policies") as (connection, _):
            old = connection.execute(select(table.c.config).where(table.c.endpoint == endpoint)).scalar()
            before = orjson.loads(old) if old else None
            audit.record(connection, by, "policy.set", f"endpoint:{endpoint}", before, parsed.as_dict())
            if connection.execute(update(table).where(table.c.endpoint == endpoint).values(**values)).rowcount == 0:
                connection.execute(table.insert().values(endpoint=endpoint, **values))
        return parsed

    def forget(self, endpoint: str, *, by: str | None = None) -> None:
        """Remove the stored policy of an endpoint that is gone."""
        if self.changes is not None:
            with self.changes.write("policies") as (connection, _):
                old = connection.execute(select(table.c.config).where(table.c.endpoint == endpoint)).scalar()
                if old:
                    audit.record(connection, by, "policy.remove", f"endpoint:{endpoint}", orjson.loads(old))
                connection.execute(delete(table).where(table.c.endpoint == endpoint))

    def list(self) -> dict[str, AiGatewayConfig]:
        """The policies in force, by endpoint."""
        self.get("")
        return {name: found for name, found in sorted(self._current.items()) if isinstance(found, AiGatewayConfig)}

    def _load(self, version: int) -> None:
        assert self.changes is not None
        with self._lock:
            rows = self.changes.fetch("SELECT endpoint, config FROM ai_gateway_configs")
            self._stored = {endpoint: _stored(config) for endpoint, config in rows}
            self._current = {**self._stored, **self._declared}
            self._seen = version


def _stored(config: str) -> AiGatewayConfig | ValueError:
    try:
        return AiGatewayConfig.parse(orjson.loads(config))
    except ValueError as error:
        return error
