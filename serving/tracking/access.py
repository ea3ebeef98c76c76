"""Who may see, load, serve, register and change registered models, whichever registry API asks.

Of `model:CATALOG.SCHEMA.NAME`, or of `model:*` for all: CAN_VIEW (BROWSE) shows it; CAN_QUERY (EXECUTE) lets one download and
serve its versions; CAN_MANAGE (MANAGE) lets one register versions and change it. Making a new model needs CAN_MANAGE on
`model:*`, and gives CAN_MANAGE on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from governance.call import Caller, CallError, bad_request, forbidden
from governance.grants import Grants
from serving.endpoint import Endpoint
from serving.registry import Registry

EVERY = "model:*"
_READS = {"get": "CAN_VIEW", "get-latest-versions": "CAN_VIEW", "get-download-uri": "CAN_QUERY", "get-artifact": "CAN_QUERY"}


class ModelAccess:
    """Grants on registered models.

    Parameters
    ----------
    registry: knows the models.
    endpoints: gives the endpoints, whose models are not taken away under them.
    """

    def __init__(self, grants: Grants, registry: Registry, endpoints: Callable[[], Iterable[Endpoint]] = lambda: ()) -> None:
        self.grants, self.registry = grants, registry
        self._endpoints = endpoints
        self.follow: Callable[[str, str | None], None] = lambda name, new: None
        """Told of a model's new name, and of None where it is gone, for what else is known by its name."""

    def allowed(self, who: Caller, name: str, level: str = "CAN_QUERY") -> bool:
        return self.grants.allowed(who, f"model:{name}", level) or self.grants.allowed(who, EVERY, level)

    def check(self, who: Caller, name: str, level: str = "CAN_QUERY") -> None:
        """Raises `CallError` 403."""
        if not self.allowed(who, name, level):
            self.grants.check(who, f"model:{name}", level)

    def check_create(self, who: Caller) -> None:
        self.grants.check(who, EVERY, "CAN_MANAGE")

    def check_served(self, who: Caller, config: Any) -> None:
        """Serving a registered model needs EXECUTE on it. Raises `CallError` 403. Blocking.

        `config` is an endpoint's as it was sent, not yet checked.
        """
        lists = [config.get(key) for key in ("served_entities", "served_models")] if isinstance(config, Mapping) else []
        entities = [each for found in lists if isinstance(found, list) for each in found if isinstance(each, Mapping)]
        for name in (each.get(key) for each in entities for key in ("entity_name", "model_name")):
            if isinstance(name, str) and self.registry.known(name):
                self.check(who, name)

    def created(self, who: Caller, name: str) -> None:
        """Give the maker of a model the say over it."""
        self.grants.grant(f"{who.kind}:{who.name}", f"model:{name}", "CAN_MANAGE", by=who)

    def renamed(self, old: str, new: str) -> None:
        held = [(grant.principal, grant.level) for grant in self.grants.list(f"model:{old}")]
        self.grants.apply(f"model:{new}", held, replace=True)
        self.grants.forget(f"model:{old}")
        self.follow(old, new)

    def deleted(self, name: str) -> None:
        self.grants.forget(f"model:{name}")
        self.follow(name, None)

    def check_unserved(self, name: str, version: str | None = None) -> None:
        """Raises `CallError` (409) while an endpoint serves the model, or this version of it."""
        for endpoint in self._endpoints():
            api = endpoint.to_api()
            for config in (api.get("config") or {}, api.get("pending_config") or {}):
                for entity in config.get("served_entities") or ():
                    if entity.get("entity_name") == name and version in (None, str(entity.get("entity_version"))):
                        raise CallError(
                            f"{name} is served by endpoint {endpoint.name!r}: delete or update that one first.",
                            status=409,
                            code="RESOURCE_CONFLICT",
                        )

    def admit(self, who: Caller, resource: str, action: str, method: str, fields: Mapping[str, Any]) -> None:
        """Whether a call of MLflow's registry API may pass: `resource` is `registered-models` or `model-versions`.

        `fields` are those of its body or query. Raises `CallError`.
        """
        if action == "search":
            return  # the answer is narrowed to what the caller may see
        if resource == "registered-models" and action == "create":
            self.check_create(who)
            return
        name = fields.get("name")
        if not isinstance(name, str) or not name:
            raise bad_request("Missing field 'name': send the registered model's name.", "name")
        reading = method in ("GET", "HEAD") or action == "get-latest-versions"
        self.check(who, name, (_READS.get(action, "CAN_VIEW") if reading else "CAN_MANAGE"))
        if action == "rename":
            self.check_create(who)
            if not isinstance(fields.get("new_name"), str):
                raise bad_request("Missing field 'new_name'.", "new_name")
        if action in ("delete", "rename"):
            version = fields.get("version")
            self.check_unserved(name, None if resource == "registered-models" or version is None else str(version))

    def visible(self, who: Caller, found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of a search's results, what the caller may see."""
        return [each for each in found if self.allowed(who, str(each.get("name")), "CAN_VIEW")]


def check_unscoped(who: Caller) -> Caller:
    """The caller; raises `CallError` (403) where the key is good for named securables only: runs and their files are none."""
    if who.scopes is not None:
        raise forbidden(
            f"this key is good for {', '.join(sorted(who.scopes)) or 'nothing'} only, not for MLflow's tracking server"
        )
    return who
