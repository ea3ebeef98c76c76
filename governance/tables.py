"""Tables of the governance room: keys, principals, grants, policies, and the inference table.

Times of keys are Unix seconds; times of calls are ISO 8601 text in UTC, which sorts by time in every database.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Engine, Float, Index, Integer, MetaData, String, Table, Text, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

metadata = MetaData()

TOPICS = ("identity", "grants", "policies")
"""What a change counter is kept for."""

changes = Table(
    "governance_changes",
    metadata,
    Column("topic", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("pepper", String(16), nullable=False),  # which pepper the digest was made with
    Column("name", String(256), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("label", String(256), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("scopes", Text),  # JSON array of securables the key is good for; NULL for all its owner's
    Column("parent", String(16), index=True),  # the key it was made from, and with which it ends
    Column("changed", BigInteger, nullable=False, index=True),  # the change counter's value when this row was last written
)

oauth_secrets = Table(
    "oauth_secrets",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("client_id", String(256), nullable=False, index=True),  # the service principal's name
    Column("digest", String(64), nullable=False),
    Column("created", Float, nullable=False),
)

principals = Table(
    "principals",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("groups", Text, nullable=False),  # JSON array, sorted
    Column("changed", BigInteger, nullable=False, index=True),
)

grants = Table(
    "grants",
    metadata,
    Column("securable", String(512), primary_key=True),
    Column("principal", String(300), primary_key=True),
    Column("via", String(512), primary_key=True),  # the securable whose grant brought this one with it; '' for a direct grant
    Column("level", String(16), nullable=False),
    Column("granted_by", String(256)),
    Column("created", Float, nullable=False),
)

policies = Table(
    "ai_gateway_configs",
    metadata,
    Column("endpoint", String(256), primary_key=True),
    Column("config", Text, nullable=False),
    Column("changed_by", String(256)),
    Column("changed", Float, nullable=False),
)

inference_table = Table(
    "inference_table",
    metadata,
    Column("databricks_request_id", String(64), primary_key=True),
    Column("client_request_id", String(256)),
    Column("request_time", String(32), nullable=False),
    Column("status_code", Integer),  # NULL: dispatched, and the process ended before the answer did
    Column("execution_duration_ms", Float),
    Column("request", Text),
    Column("response", Text),
    Column("served_entity_id", String(256)),
    Column("served_entity_name", String(256)),
    Column("requester", String(256)),
    Column("requester_kind", String(32)),
    Column("endpoint_name", String(256), nullable=False),
    Column("task", String(32), nullable=False),
    Column("usage_context", Text),
    Column("time_to_first_byte_ms", Float),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("total_tokens", BigInteger),
    Column("parent_request_id", String(64)),
    Column("thread_id", String(256)),
    Column("error", Text),
    Column("trace_id", String(64)),
    Column("cost", Float),  # US dollars
    Column("price_version", String(64)),
    Column("guardrail_verdicts", Text),  # JSON array of guardrail, where, action, reason
    Index("inference_table_by_time", "request_time", "databricks_request_id"),
    Index("inference_table_by_endpoint", "endpoint_name", "request_time"),
    Index("inference_table_by_requester", "requester", "request_time", "databricks_request_id"),
)

hourly = Table(
    "usage_hourly",
    metadata,
    Column("requester", String(256), primary_key=True),  # '' for everyone
    Column("hour", String(13), primary_key=True),  # 2026-11-23T09, UTC
    Column("endpoint", String(256), primary_key=True),
    Column("inner_call", Integer, primary_key=True),  # 1 for calls that an answer made itself
    Column("band", Integer, primary_key=True),  # of latency; -1 for calls without an answer
    Column("requests", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("limited", BigInteger, nullable=False, server_default="0"),  # of those refused, by a limit or a budget
    Column("errors", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost", Float, nullable=False),  # US dollars
)

budget_counters = Table(
    "budget_counters",
    metadata,
    Column("endpoint", String(256), primary_key=True),
    Column("metric", String(16), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("whose", String(256), primary_key=True),
    Column("period", String(16), primary_key=True),  # 2026-11-23 or 2026-11, UTC
    Column("used", BigInteger, nullable=False),  # calls, tokens or millionths of a dollar
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", String(32), nullable=False),
    Column("actor", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(600), nullable=False),
    Column("before", Text),  # JSON
    Column("after", Text),  # JSON
    Index("audit_log_by_time", "time"),
)

experiments = Table(
    "experiments",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("endpoint", String(256), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("spec", Text, nullable=False),  # JSON of `governance.experiments.Spec`
    Column("before", Text, nullable=False),  # JSON of the traffic config that it found
    Column("creator", String(256), nullable=False),
    Column("started", String(32), nullable=False),
    Column("ended", String(32)),
    Column("reason", Text),
    Column("winner", String(256)),
    Column("report", Text),  # JSON of the last look
)

experiment_events = Table(
    "experiment_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("experiment", String(64), nullable=False, index=True),
    Column("request_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("value", Float, nullable=False),
    Column("time", String(32), nullable=False),
)

segments = Table(
    "journal_segments",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("position", BigInteger, nullable=False),  # bytes of the segment that are in the inference table
    Column("skipped", Integer, nullable=False),  # damaged or torn stretches passed over
)


def create(engine: Engine) -> None:
    """Create what is missing; safe when several processes start at once."""
    for attempt in range(5):
        try:
            metadata.create_all(engine)
            break
        except (OperationalError, ProgrammingError):  # another process made the same table between check and creation
            if attempt == 4:
                raise
    for topic in TOPICS:
        with engine.connect() as connection:
            known = connection.execute(select(changes.c.value).where(changes.c.topic == topic)).first()
        if known is None:
            try:
                with engine.begin() as connection:
                    connection.execute(insert(changes).values(topic=topic, value=1))
            except IntegrityError:
                continue  # another process was first
