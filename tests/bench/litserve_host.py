"""The same model behind LitServe, which batches by `max_batch_size` and `batch_timeout`.

python tests/bench/litserve_host.py MODEL PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import litserve  # type: ignore[import-not-found]

from tests.bench.bare_host import MAX_BATCH, predictor


class Api(litserve.LitAPI):
    """Rows in `dataframe_split`, one a request."""

    path = sys.argv[1]

    def setup(self, device: Any) -> None:
        self.model = predictor(self.path)

    def decode_request(self, request):  # LitServe would take an annotated parameter for one of the query
        return request["dataframe_split"]["data"][0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.model(x)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=0.001, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
