"""The registered form of an adapter: an MLflow model from code that puts it on its base model and answers chats.

Engines that load the adapter themselves (its `adapter_config.json` names the base) do so; this is for all others. The file is
copied into the model and run when it is loaded, where the rooms may not be installed.
"""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class AdapterModel(PythonModel):
    """Reads and gives Chat Completions."""

    _skip_type_hint_validation = True  # MLflow's, as of its own chat models: it knows types of rows, and a chat is none

    # So `model_input` has no type either: from one, MLflow would infer the signature of rows, and warn that it cannot.

    def load_context(self, context: PythonModelContext) -> None:
        from peft import AutoPeftModelForCausalLM
        from transformers import AutoTokenizer

        folder = context.artifacts["adapter"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoPeftModelForCausalLM.from_pretrained(folder).eval()

    def predict(self, context, model_input, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        import torch

        messages = list(model_input["messages"])
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:  # a model that continues texts
            text = (self.tokenizer.bos_token or "") + "\n".join(str(message["content"]) for message in messages)
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        heat = float(model_input.get("temperature") or 0)
        options: dict[str, Any] = {"max_new_tokens": int(model_input.get("max_tokens") or 256), "do_sample": heat > 0}
        if heat > 0:
            options |= {"temperature": heat, "top_p": float(model_input.get("top_p") or 1)}
        asked = ids["input_ids"].shape[1]
        with torch.no_grad():
            found = self.model.generate(**ids, **options, pad_token_id=self.tokenizer.eos_token_id)[0][asked:]
        over = self.tokenizer.eos_token_id in found[-1:].tolist()
        message = {"role": "assistant", "content": self.tokenizer.decode(found, skip_special_tokens=True)}
        usage = {"prompt_tokens": asked, "completion_tokens": len(found), "total_tokens": asked + len(found)}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if over else "length"}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}

    def predict_stream(self, context, model_input, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        whole = self.predict(context, model_input, params)
        choice = whole["choices"][0]
        yield {"choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}], "usage": whole["usage"]}


set_model(AdapterModel())
