from __future__ import annotations

from typing import Any

import pytest
from databricks.sdk.service import serving
from sqlalchemy import Engine, create_engine, text

from governance.call import Caller, CallError
from governance.policies import AiGatewayConfig, Policies


def test_what_databricks_sdk_sends_is_understood() -> None:
    sent = serving.AiGatewayConfig(
        rate_limits=[
            serving.AiGatewayRateLimit(
                calls=10,
                key=serving.AiGatewayRateLimitKey.USER_GROUP,
                principal="support",
                renewal_period=serving.AiGatewayRateLimitRenewalPeriod.MINUTE,
            )
        ],
        guardrails=serving.AiGatewayGuardrails(
            input=serving.AiGatewayGuardrailParameters(
                invalid_keywords=["nightfall"],
                pii=serving.AiGatewayGuardrailPiiBehavior(behavior=serving.AiGatewayGuardrailPiiBehaviorBehavior.MASK),
                safety=True,
                valid_topics=["holidays"],
            ),
            output=serving.AiGatewayGuardrailParameters(
                pii=serving.AiGatewayGuardrailPiiBehavior(behavior=serving.AiGatewayGuardrailPiiBehaviorBehavior.BLOCK)
            ),
        ),
        fallback_config=serving.FallbackConfig(enabled=True),
        inference_table_config=serving.AiGatewayInferenceTableConfig(enabled=True, catalog_name="main", schema_name="default"),
        usage_tracking_config=serving.AiGatewayUsageTrackingConfig(enabled=False),
    ).as_dict()
    config = AiGatewayConfig.parse(sent)
    assert config.as_dict() == sent
    assert serving.AiGatewayConfig.from_dict(config.as_dict()).as_dict() == sent
    assert config.logs_payload("any")
    assert not config.usage_tracked


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"rate_limit": []},
            "ai_gateway.rate_limit: unknown key; accepted: rate_limits, guardrails, fallback_config, inference_table_config",
        ),
        ({"guardrails": {"a\nb": {}}}, "ai_gateway.guardrails.'a\\nb': unknown key"),
        ({"guardrails": {"inputs": {}}}, "ai_gateway.guardrails.inputs: unknown key; accepted: input, output"),
        ({"guardrails": {"input": {"pii": {"behavior": "HIDE"}}}}, "guardrails.input.pii.behavior: input should be 'NONE'"),
        ({"guardrails": {"output": {"invalid_keywords": [""]}}}, "guardrails.output.invalid_keywords.0: "),
        ({"fallback_config": {}}, "fallback_config.enabled: "),
        ({"rate_limits": [{"cost": 1}]}, "cost and soft go with renewal_period day or month"),
        ({"rate_limits": [{"call": 1}]}, "ai_gateway.rate_limits.0.call: unknown key; accepted: calls, tokens, key"),
        ({"rate_limits": [{"key": "user"}]}, "rate_limits.0: a rate limit needs calls, tokens or cost"),
        ({"rate_limits": [{"calls": -1}]}, "rate_limits.0.calls: "),
        ({"rate_limits": [{"calls": "ten"}]}, "rate_limits.0.calls: "),
        ({"rate_limits": [{"calls": True}]}, "rate_limits.0.calls: "),
        ({"rate_limits": [{"calls": 1, "renewal_period": "year"}]}, "rate_limits.0.renewal_period: input should be 'minute'"),
        ({"rate_limits": [{"calls": 1, "key": "user_group"}]}, "needs principal"),
        ({"rate_limits": [{"calls": 1, "principal": "x"}]}, "takes no principal"),
        ({"inference_table_config": {"enable": True}}, "inference_table_config.enable: unknown key; accepted: enabled"),
        ([], "ai_gateway: "),
    ],
)
def test_mistakes_name_the_key(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        AiGatewayConfig.parse(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policies_are_in_force_at_once_here_and_elsewhere_and_survive(database: Engine) -> None:
    policies = Policies(database)
    elsewhere = create_engine(database.url)
    other = Policies(elsewhere)
    assert policies.get("assistant") is None
    other.set("assistant", {"rate_limits": [{"calls": 3}]}, by="root")
    found = policies.get("assistant")
    assert found is not None
    assert found.rate_limits[0].calls == 3
    policies.set("assistant", {"rate_limits": [{"tokens": 4}]})
    found = other.get("assistant")
    assert found is not None
    assert found.rate_limits[0].tokens == 4
    policies.forget("assistant")
    assert other.get("assistant") is None
    elsewhere.dispose()


def test_the_file_wins_and_says_so(database: Engine) -> None:
    policies = Policies(database)
    policies.set("assistant", {"rate_limits": [{"calls": 3}]})
    policies.declare({"assistant": {"rate_limits": [{"calls": 9}]}})
    found = policies.get("assistant")
    assert found is not None
    assert found.rate_limits[0].calls == 9
    with pytest.raises(CallError, match=r"declared in smalti\.yaml"):
        policies.set("assistant", {})
    with pytest.raises(ValueError, match=r"chat\.ai_gateway\.oops"):
        policies.declare({"chat": {"oops": 1}})
    assert policies.get("assistant") is found  # a wrong file changes nothing
    policies.declare({})
    found = policies.get("assistant")
    assert found is not None
    assert found.rate_limits[0].calls == 3


def test_without_a_database_nothing_can_be_stored() -> None:
    policies = Policies(declared={"assistant": {"rate_limits": [{"calls": 1}]}})
    assert policies.get("assistant") is not None
    with pytest.raises(RuntimeError):
        policies.set("other", {})


def test_a_stored_policy_that_cannot_be_read_lets_nobody_through(database: Engine) -> None:
    policies = Policies(database)
    policies.set("assistant", {"rate_limits": [{"calls": 1}]})
    policies.set("chat", {})
    with policies.changes.write("policies") as (connection, _):  # type: ignore[union-attr]
        unreadable = text("UPDATE ai_gateway_configs SET config = :config WHERE endpoint = 'assistant'")
        connection.execute(unreadable, {"config": '{"new": 1}'})
    with pytest.raises(CallError, match="set it again") as caught:
        policies.get("assistant")
    assert caught.value.status == 503
    assert policies.get("chat") is not None
    policies.set("assistant", {})
    assert policies.get("assistant") is not None


@pytest.mark.parametrize("word", [" ", "\u200b", "\t\u00ad"])
def test_a_keyword_that_no_text_can_hold_is_refused(word: str, database: Engine) -> None:
    rails = {"guardrails": {"output": {"invalid_keywords": ["fine", word]}}}
    with pytest.raises(ValueError, match=r"guardrails\.output\.invalid_keywords\.1: .* no letter"):
        Policies(database).set("e", rails)
    with pytest.raises(ValueError, match=r"e\.ai_gateway\.guardrails"):
        Policies().declare({"e": rails})
    assert AiGatewayConfig.parse(rails)  # one that is stored goes on


def test_what_is_no_policy_is_told_in_plain_words() -> None:
    for wrong, said in (([], "the body: must be an object"), ({"rate_limits": {}}, "rate_limits: must be a list")):
        with pytest.raises(ValueError, match=said):
            AiGatewayConfig.parse(wrong, "")
    with pytest.raises(ValueError, match="cost: input should be less"):
        AiGatewayConfig.parse({"rate_limits": [{"cost": 1e308, "renewal_period": "day"}]})


def test_a_principal_of_no_letters_is_none() -> None:
    policy = AiGatewayConfig.parse({"rate_limits": [{"calls": 2, "key": "user", "principal": ""}]})
    assert policy.rules[0][1].applying(Caller("ann")) == [[(2, "user", "ann")]]
