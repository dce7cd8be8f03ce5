"""A batch job that says what its predictions cost. Run `python gpu_batch.py` on a machine with an NVIDIA GPU.

Meanwhile http://127.0.0.1:8001/metrics has the GPUs, the machine and the job. Nothing here asks for the GPU's values:
they are read beside the job, and so is the energy shared out, some ten seconds after the calls that used it.
"""

import os
import random
import time

from otel_mlops import configure_telemetry

try:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
except ImportError:
    torch = None


def predict(rows: int) -> list[float]:
    """Stands for a model: a matrix product on the GPU, or a wait where there is no PyTorch."""
    if torch is None:
        time.sleep(rows / 1000)
        return [random.random() for _ in range(rows)]
    weights = torch.rand(2048, 2048, device=device)
    return torch.rand(rows, 2048, device=device).matmul(weights).mean(dim=1).tolist()


with configure_telemetry(service_name="gpu-batch") as telemetry:
    model = telemetry.model("housing", version="v1.2.3", type="regression")
    end = time.monotonic() + float(os.environ.get("SECONDS_TO_RUN", "30"))
    while time.monotonic() < end:
        with model.prediction() as prediction:
            prediction.values = predict(rows=random.choice([8, 16, 32]))

    wanted = ("gpu_utilization", "gpu_power_usage", "gpu_idle_energy", "prediction_energy_joules_")
    lines = [line for line in telemetry.page().body.decode().splitlines() if line.startswith(wanted)]
    print("\n".join(line for line in lines if "_bucket" not in line) or "no GPU is here: otel-mlops doctor says why")
