"""The console's pages, made known to NiceGUI."""

from __future__ import annotations

import asyncio

from fastapi import Request
from nicegui import background_tasks, ui

from serving.ui.console.access import AccessPage
from serving.ui.console.endpoints import EndpointsPage
from serving.ui.console.evaluations import EvaluationsPage
from serving.ui.console.experiments import ExperimentsPage
from serving.ui.console.finetuning import FineTuningPage
from serving.ui.console.frame import PATIENCE, SECTIONS, ConsolePage
from serving.ui.console.home import HomePage
from serving.ui.console.indexes import IndexesPage
from serving.ui.console.journal import JournalPage
from serving.ui.console.review import ReviewPage
from serving.ui.parts import frameless
from serving.ui.plain import HEAD
from serving.ui.services import SCOPE_KEY


def register() -> None:
    """Make the console's pages known to NiceGUI, once in a process."""
    pages = (HomePage, EndpointsPage, JournalPage, IndexesPage, ExperimentsPage, FineTuningPage, EvaluationsPage)
    for kind in (*pages, ReviewPage, AccessPage):
        _register(kind)


def _register(kind: type[ConsolePage]) -> None:
    async def shown(request: Request) -> None:
        services, caller, credential = request.scope[SCOPE_KEY]
        frameless(ui.context.client)
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        page = kind(services, caller, credential)
        page.build()
        page.open(dict(request.query_params))
        showing = background_tasks.create(page.show(), name=f"first drawing of {kind.section}")
        await asyncio.wait([showing], timeout=PATIENCE)

    ui.page(SECTIONS[kind.section], title=f"{kind.section} – Smalti console")(shown)
