"""Access: keys, grants, budgets and the audit log; for administrators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from governance.call import bad_request
from serving.ui.console.forms import choice, field, form
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import dollars, stamp
from serving.ui.parts import button, tag

LEVELS = ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE")
Row = Mapping[str, Any]


class AccessPage(ConsolePage):
    section = "Access"
    secret: str | None = None
    """A key that was just made; shown once."""

    async def load(self) -> tuple[Sequence[Row], ...] | None:
        who = await self.who()
        return await self.data.access(who) if who.admin else None

    def draw(self, loaded: tuple[Sequence[Row], ...] | None) -> None:
        if loaded is None:
            self.head("Access", "Keys, grants, budgets and the audit log are for administrators.")
            return
        keys, grants, budgets, audit = loaded
        self.head("Access", "Who may do what, how much is left, and who changed it.")
        if self.secret:
            with tag("div", "secret", role="status"):
                tag("p", text="This is the new key. It is shown once: copy it now.")
                tag("code", text=self.secret)
            self.secret = None
        self._keys(keys)
        self._grants(grants)
        self._budgets(budgets)
        self._audit(audit)

    def _keys(self, keys: Sequence[Row]) -> None:
        columns = [
            ("id", "Key id"), ("name", "Name"), ("kind", "Kind"), ("groups", "Groups"), ("rights", "Rights"), ("label", "Label"),
            ("state", "State"), ("created", "Made"), ("expires", "Expires"), ("revoke", ""),
        ]  # fmt: skip
        rows = [
            {
                "id": row["id"], "name": row["name"], "kind": row["kind"].replace("_", " "), "groups": ", ".join(row["groups"]),
                "rights": "admin" if row["admin"] else "", "label": row["label"], "created": stamp(row["created_at"]),
                "expires": stamp(row["expires_at"]) or "never", "state": "revoked" if row["revoked"] else "in force",
                "revoke": "" if row["revoked"] else "Revoke",
            }
            for row in keys
        ]  # fmt: skip
        with tag("section", "panel-section", id="keys", aria_label="Keys"):
            table("Keys", "No keys.", columns, rows, key="id", opens="revoke", on_open=self._revoking)
            self.revoke = tag("div")
            with form("Make a key", self.doing(self._create, "The key is made.")):
                field("Name", "name", required=True, maxlength=256)
                choice("Kind", "kind", [("user", "user"), ("service_principal", "service principal")])
                field("Groups, by comma", "groups", maxlength=1000)
                field("Label", "label", maxlength=256)

    async def _create(self, given: Mapping[str, str]) -> None:
        groups = [name.strip() for name in given.get("groups", "").split(",") if name.strip()]
        self.secret = await self.data.create_key(await self.who(), given["name"].strip(), given["kind"], groups, given["label"])

    def _revoking(self, key_id: str) -> None:
        self.revoke.clear()
        with self.revoke, tag("div", "confirm", role="alertdialog", aria_label="Revoke a key"):
            tag("span", text=f"Revoke key {key_id}? Whoever uses it is out at once, for good.")
            button("button danger small", "Revoke", self.doing(self._revoke, "The key is revoked.", key_id), text="Revoke")
            button("button quiet small", "Cancel", self.revoke.clear, text="Cancel")

    async def _revoke(self, key_id: str) -> None:
        await self.data.revoke_key(await self.who(), key_id)

    def _grants(self, grants: Sequence[Row]) -> None:
        columns = [("principal", "Who"), ("level", "May"), ("securable", "On"), ("via", "Came with"), ("remove", "")]
        rows = [
            {**row, "id": f"{row['principal']} on {row['securable']}", "remove": "" if row["via"] else "Remove"} for row in grants
        ]
        with tag("section", "panel-section", id="grants", aria_label="Grants"):
            by_id = {row["id"]: row for row in rows}

            async def remove(key: str) -> None:
                row = by_id[key]
                await self.doing(partial(self._ungrant, row["principal"], row["securable"]), "The grant is taken back.")()

            empty = "Nobody but administrators may call anything yet."
            table("Grants", empty, columns, rows, key="id", opens="remove", on_open=remove)
            with form("Grant", self.doing(self._grant, "The grant is in force.")):
                field(
                    "Who",
                    "principal",
                    required=True,
                    maxlength=300,
                    placeholder="user:NAME, group:NAME or service_principal:NAME",
                )
                choice("May", "level", [(level, level) for level in LEVELS], "CAN_QUERY")
                field("On", "securable", required=True, maxlength=500, placeholder="endpoint:NAME or index:NAME")

    async def _grant(self, given: Mapping[str, str]) -> None:
        try:
            await self.data.grant(await self.who(), given["principal"].strip(), given["securable"].strip(), given["level"])
        except ValueError as error:
            raise bad_request(str(error)) from None

    async def _ungrant(self, principal: str, securable: str) -> None:
        await self.data.revoke_grant(await self.who(), principal, securable)

    def _budgets(self, budgets: Sequence[Row]) -> None:
        columns = [
            ("endpoint", "Endpoint"), ("whose", "Whose"), ("period", "A"), ("limit", "Limit"), ("used", "Used"), ("left", "Left"),
            ("spent", "Used %"), ("soft", "Over it"),
        ]  # fmt: skip
        rows = [
            {
                "id": str(i), "endpoint": row["endpoint"], "period": row["period"], "limit": _amount(row, row["limit"]),
                "whose": "all" if row["kind"] == "endpoint" else f"{row['kind'].replace('_', ' ')} {row['whose']}",
                "used": _amount(row, row["used"]), "left": _amount(row, max(0, row["limit"] - row["used"])),
                "spent": round(100 * row["used"] / row["limit"]) if row["limit"] else 100,
                "soft": "warns" if row["soft"] else "refuses",
            }
            for i, row in enumerate(budgets)
        ]  # fmt: skip
        empty = "No budget is set. A limit by day or month on an endpoint makes one."
        with tag("section", "panel-section", id="budgets", aria_label="Budgets"):
            table("Budgets", empty, columns, rows, key="id")

    def _audit(self, entries: Sequence[Row]) -> None:
        columns = [
            ("time", "Time (UTC)"), ("actor", "Who"), ("action", "Did"), ("subject", "On"), ("before", "From"), ("after", "To")
        ]  # fmt: skip
        rows = [
            {**row, "time": stamp(row["time"], "%Y-%m-%d %H:%M:%S"), "before": _said(row["before"]), "after": _said(row["after"])}
            for row in entries
        ]
        by_id = {str(row["id"]): row for row in entries}

        def opened(key: str) -> None:
            self.entry.clear()
            with self.entry:
                self._entry(by_id[key])
            self.client.run_javascript("smalti.to('#audit')")

        with tag("section", "panel-section", id="audit", aria_label="Audit log"):
            self.entry = tag("div", aria_live="polite")
            table("Audit log", "Nothing was changed yet.", columns, rows, key="id", size=15, opens="action", on_open=opened)

    def _entry(self, entry: Row) -> None:
        """One change with all of what was there before and after it."""
        with tag("article", "detail tile"):
            with tag("div", "section-head"):
                tag("h2", text=f"{entry['action']} on {entry['subject']}")
                button("button quiet small", "Close", self.entry.clear, text="Close")
            tag("p", "hint", f"{stamp(entry['time'], '%Y-%m-%d %H:%M:%S')} (UTC) by {entry['actor']}")
            for name in ("before", "after"):
                if entry[name] not in (None, {}, []):
                    tag("h3", text={"before": "From", "after": "To"}[name])
                    tag("pre", "payload", json.dumps(entry[name], indent=2, ensure_ascii=False), tabindex="0", aria_label=name)


def _amount(budget: Row, amount: int) -> str:
    """An amount of what a budget counts; money is in millionths of a dollar."""
    return dollars(amount / 1e6) if budget["metric"] == "cost" else f"{amount:,} {budget['metric']}"


def _said(value: Any) -> str:
    return "" if value in (None, {}, []) else json.dumps(value, ensure_ascii=False)
