"""What a governed run adds to each event of a bare graph, and how long a stop takes to reach the node that works.

`python -m tests.bench.runs [--events N] [--stops N]` prints JSON, times in milliseconds. A node tells the time at which it emits;
`bare` is what `graph.astream` takes to give the event, `governed` what it takes through thread, gateway and journal, and
`background` with every event committed to the run's log before it is told. Each is paced like a model's tokens, 5 ms apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, StateGraph

from agents import Agent, AgentState, Runtime, emit_delta
from agents.log import RunLog
from governance.call import Call, Caller
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.runs import Runs
from serving.server import SWITCH_SECONDS
from serving.state import open_database
from tests.serving.upstream import House, house

DELTA = "response.output_text.delta"


class Clock:
    """A graph whose node tells when it emits, and when it is stopped."""

    def __init__(self, events: int) -> None:
        self.events, self.stopped = events, 0.0
        self.working = asyncio.Event()

    def build(self, model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def speak(state: AgentState) -> dict[str, Any]:
            try:
                for _ in range(self.events):
                    emit_delta(f"{time.perf_counter():.9f} ")
                    await asyncio.sleep(0.005)
                if not self.events:
                    emit_delta("working ")
                    self.working.set()
                    await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.stopped = time.perf_counter()
                raise
            return {"messages": [AIMessage("said")]}

        graph = StateGraph(AgentState).add_node("speak", speak)
        return graph.add_edge(START, "speak").add_edge("speak", END).compile(checkpointer=checkpointer)


def quantiles(late: list[float]) -> dict[str, float]:
    ordered = sorted(late)
    return {f"p{q}": round(ordered[min(len(ordered) * q // 100, len(ordered) - 1)] * 1e3, 3) for q in (50, 99)}


async def bare(clock: Clock) -> list[float]:
    given: Any = {"messages": [HumanMessage("go")]}
    late = []
    async for _, chunk in clock.build(None, None).astream(given, stream_mode="custom", subgraphs=True):
        late.append(time.perf_counter() - float(chunk["delta"]))
    return late


async def told(events: AsyncIterator[Any]) -> list[float]:
    return [time.perf_counter() - float(event.data["delta"]) async for event in events if event.type == DELTA]


def call(made: House, **more: Any) -> Call:
    asked = {"input": [{"type": "message", "role": "user", "content": "go"}], **more}
    return Call("clock", "agent", asked, credential=made.admin, stream=True, thread_id="t")


async def measure(events: int, stops: int, folder: Path) -> dict[str, Any]:
    admin, engine = Caller("admin"), open_database(f"sqlite:///{folder}/runs.db")
    runtime, clock = Runtime(engine, folder / "checkpoints.db"), Clock(events)
    found: dict[str, Any] = {}
    with house(folder) as made:
        runs = Runs(made.dispatcher, RunLog(engine))

        def serve(clock: Clock) -> None:
            agent = Agent("clock", clock.build, None, None)
            made.endpoints.register(Endpoint("clock", "agent/v1/responses", agent_engine(runtime, agent)))

        async def followed() -> AsyncIterator[Any]:
            asked = call(made, background=True)
            await runs.start(asked, admin)
            async for _, event in runs.follow(asked.request_id, admin):
                yield event

        serve(clock)
        found["event"] = {
            "bare": quantiles(await bare(clock)),
            "governed": quantiles(await told(made.dispatcher.stream(call(made)))),
            "background": quantiles(await told(followed())),
        }
        late = []
        for _ in range(stops):
            serve(waits := Clock(0))
            asked = call(made, background=True)
            await runs.start(asked, admin)
            await waits.working.wait()
            begun = time.perf_counter()
            await runs.cancel(asked.request_id, admin)
            late.append(waits.stopped - begun)
        found["stop"] = quantiles(late)
        await runtime.close()
    engine.dispose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--stops", type=int, default=50)
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)  # as the server has it
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(given.events, given.stops, Path(folder)))))


if __name__ == "__main__":
    main()
