"""How much arithmetic a device can do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Peak TFLOP/s of one JAX device, dense: (with --precision=bfloat16, with float32). The float32 figure is that of the
# units which float32 matrix products run on at JAX's default precision: TF32 on NVIDIA's tensor cores from the A100
# on, bfloat16 passes on TPUs. The first name that `device_kind` starts with counts.
#
# NVIDIA: data sheets of V100 and T4 (Tensor Core figures are for float16, bfloat16 runs on the float32 units), A100,
#   L4, L40S, H100 (SXM5, PCIe, NVL), H200 and B200; where a sheet prints figures "with sparsity", half of them.
# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x; on v2, v3 and 7x one JAX device is one of the two cores of
#   a chip, so half a chip's.
_PEAK_TFLOPS = {
  "NVIDIA A100": (312.0, 156.0),
  "NVIDIA H100 PCIe": (756.5, 378.0),
  "NVIDIA H100 NVL": (835.5, 417.5),
  "NVIDIA H100": (989.5, 494.5),
  "NVIDIA H200 NVL": (835.5, 417.5),
  "NVIDIA H200": (989.5, 494.5),
  "NVIDIA GH200": (989.5, 494.5),
  "NVIDIA B200": (2250.0, 1125.0),
  "NVIDIA L40S": (362.0, 183.0),
  "NVIDIA L4": (121.0, 60.0),
  "Tesla V100": (15.7, 15.7),
  "Tesla T4": (8.1, 8.1),
  "TPU v2": (23.0, 23.0),
  "TPU v3": (61.5, 61.5),
  "TPU v4 lite": (137.0, 137.0),
  "TPU v4": (275.0, 275.0),
  "TPU v5 lite": (197.0, 197.0),
  "TPU v5e": (197.0, 197.0),
  "TPU v5": (459.0, 459.0),
  "TPU v6": (918.0, 918.0),
  "TPU7": (1153.5, 1153.5),
}


class Peak(NamedTuple):
  """FLOP/s of all the devices together; None where it is not known."""

  flops_per_second: float | None
  source: str


def find_peak(devices: list[jax.Device], precision: str) -> Peak:
  """The peak of equal devices: from the table, or on the CPU measured by a matrix product on each at once."""
  kind = devices[0].device_kind
  if devices[0].platform == "cpu":
    return Peak(_time_matrix_product(devices, precision), "matrix products of 2048 x 2048, measured")
  for name, (bfloat16, float32) in _PEAK_TFLOPS.items():
    if kind.startswith(name):
      return Peak(1e12 * len(devices) * (bfloat16 if precision == "bfloat16" else float32), f"data sheet of {name}")
  return Peak(None, f"unknown: no entry for {kind!r}")


def _time_matrix_product(devices: list[jax.Device], precision: str, size: int = 2048, repeats: int = 5) -> float:
  from launch.timing import time_call

  operands = [jax.device_put(jnp.ones((size, size), precision), device) for device in devices]
  product = jax.jit(jnp.dot)
  call = lambda: [product(x, x) for x in operands]
  jax.block_until_ready(call())
  return len(devices) * 2 * size**3 / min(time_call(call) for _ in range(repeats))
