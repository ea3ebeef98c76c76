"""Tables of the serving room: endpoints made through the API, and the secrets their entities hold.

Times are Unix milliseconds, as the API gives them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, String, Table, Text

metadata = MetaData()

endpoints = Table(
    "serving_endpoints",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("creator", String(256), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("config_version", Integer, nullable=False),
    Column("config", Text),  # JSON of what serves; NULL until a first config does
    Column("pending", Text),  # JSON of what it is being brought to, or could not be
    Column("failure", Text),  # why `pending` does not serve; NULL while it is being tried
    Column("details", Text, nullable=False),  # JSON: description, tags, email_notifications, route_optimized, rate_limits
)

secrets = Table(
    "serving_secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("endpoint", String(256), nullable=False, index=True),
    Column("value", Text, nullable=False),  # encrypted under a key made from the state folder's pepper
)

deleted_responses = Table(
    "deleted_responses",
    metadata,
    Column("id", String(64), primary_key=True),  # the request's
    Column("deleted", BigInteger, nullable=False),
)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("conversation", String(128), nullable=False, index=True),
    Column("place", BigInteger, nullable=False),  # the order in which they were added
    Column("item", Text, nullable=False),  # JSON
)

secret_scopes = Table(
    "secret_scopes",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("creator", String(256), nullable=False),
    Column("created", BigInteger, nullable=False),
)

scope_secrets = Table(
    "scope_secrets",
    metadata,
    Column("scope", String(128), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", Text, nullable=False),  # encrypted under a key made from the state folder's pepper
    Column("updated", BigInteger, nullable=False),
)

secret_acls = Table(
    "secret_acls",
    metadata,
    Column("scope", String(128), primary_key=True),
    Column("principal", String(300), primary_key=True),  # KIND:NAME
    Column("permission", String(16), nullable=False),  # READ, WRITE or MANAGE
)

connections = Table(
    "connections",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("creator", String(256), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updater", String(256), nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("options", Text, nullable=False),  # JSON: host, port, base_path, private_network, and references to secrets
    Column("details", Text, nullable=False),  # JSON: comment, properties, reach
    Column("secret", Text),  # encrypted under a key made from the state folder's pepper
)

model_activities = Table(
    "model_activities",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(256), nullable=False, index=True),
    Column("version", String(32), nullable=False),
    Column("creator", String(300), nullable=False),  # KIND:NAME
    Column("stage", String(16)),  # that is asked for; NULL for a comment
    Column("comment", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
)

model_authors = Table(
    "model_authors",
    metadata,
    Column("model", String(256), primary_key=True),
    Column("version", String(32), primary_key=True),  # empty for the model itself
    Column("created_by", String(256)),  # NULL for what was made before, or by a training job
    Column("updated_by", String(256)),
)

registry_webhooks = Table(
    "registry_webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(256), index=True),  # NULL for all
    Column("creator", String(300), nullable=False),  # KIND:NAME
    Column("events", Text, nullable=False),  # JSON: a list
    Column("status", String(16), nullable=False),  # ACTIVE, DISABLED or TEST_MODE
    Column("description", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("verify", Boolean, nullable=False),  # whether a certificate must be one for the host
    Column("secret", Text),  # encrypted under a key made from the state folder's pepper, as is the next
    Column("authorization", Text),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
)
