from pathlib import Path

from langchain_core.messages import AIMessage

from agents import ScriptedModel
from agents.testing import answer
from agents.tools.sql import Tables, sql_tool

from agent import build

TABLES = Tables({"orders": Path(__file__).with_name("orders.csv")})


async def query(sql):
    return TABLES.query(sql).to_dict()


TOOLS = [sql_tool(query, TABLES.describe())]


def test_a_trusted_question_needs_no_model():
    found = answer(build, "how many orders are there", documents={}, tools=TOOLS)
    assert "SELECT count(*)" in found.text
    assert "| 6 |" in found.text


def test_an_unknown_question_is_declined_without_a_model():
    assert answer(build, "Why is the sky blue?", documents={}, tools=TOOLS).state["abstained"]


def test_a_model_writes_its_own_query():
    sql = "SELECT max(amount) AS most FROM orders"
    call = AIMessage("", tool_calls=[{"name": "query_tables", "args": {"sql": sql}, "id": "1"}])
    found = answer(build, "What did the dearest one cost?", documents={}, tools=TOOLS, model=ScriptedModel(replies=[call, "It cost 240."]))
    assert found.text == "It cost 240."
    assert "240" in next(message.text for message in found.state["messages"] if message.type == "tool")
