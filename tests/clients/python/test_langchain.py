"""LangChain's own standard tests of a chat model, over both of the APIs that langchain-openai speaks.

Owns what is told to those tests about the model (`supports_*`) and the few that ask for a wiser one. The tests
themselves are LangChain's.
"""

from typing import Any

import pytest
from conftest import Gateway
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

NEEDS_A_WISER_MODEL = pytest.mark.xfail(reason="135M parameters do not follow the question", strict=False)


class ChatModelTests(ChatModelIntegrationTests):
    """What both APIs have in common."""

    use_responses_api = False

    @pytest.fixture(autouse=True)
    def _at(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.gateway.model,
            "base_url": self.gateway.base_url,
            "api_key": self.gateway.key,
            "use_responses_api": self.use_responses_api,
            "temperature": 0,
            "max_tokens": 120,
            "max_retries": 0,
            "stream_usage": True,  # LangChain asks for it by itself at OpenAI's own URL alone
        }

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}  # all above, since some of the tests build a model of those alone

    @property
    def model_override_value(self) -> str:
        return self.gateway.adapter

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        # The penalty makes a model this small close its strings instead of repeating itself to the limit.
        return {"method": "json_schema", "extra_body": {"frequency_penalty": 1.0}}

    @property
    def supports_json_mode(self) -> bool:
        return False  # needs the model to choose the keys by itself

    @NEEDS_A_WISER_MODEL
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)  # the model has to decide by itself to call the tool


class TestChatCompletions(ChatModelTests):
    """LangChain over /v1/chat/completions."""


class TestResponses(ChatModelTests):
    """LangChain over /v1/responses."""

    use_responses_api = True
