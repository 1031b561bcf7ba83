"""The peak throughput of GPUs according to their data sheets: the reference of model FLOPs utilization (MFU)."""

from typing import NamedTuple

TERA = 1e12


class Peak(NamedTuple):
    teraflops: float
    names: tuple[str, ...]  # as CUDA reports them, without "NVIDIA", "Tesla" and "GeForce"
    source: str  # the data sheet; "halved" where it states only the value with sparsity


# Dense bfloat16 products on tensor cores with float32 accumulation; float16 where bfloat16 is not supported
# (V100, T4). The table matches exact names, not patterns: cards whose names differ by one letter differ by up to a
# factor of three, and a slice of a card (MIG) or a laptop variant has the name of the card with a suffix.
#
# Other tables, including Lightning's, contain the value with sparsity (H200), for a pair of cards (H100 NVL), for
# float16 without tensor cores (A40, A6000, 3090, 4090), or the A10's value for the A10G. This table follows NVIDIA's
# documents, also for the L40, whose data sheet states half the value of the L40S, although both have the same chip.
PEAKS = (
    # Volta
    Peak(125, ("V100-SXM2-16GB", "V100-SXM2-32GB"), "NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(112, ("V100-PCIE-16GB", "V100-PCIE-32GB"), "NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(130, ("V100S-PCIE-32GB",), "NVIDIA V100 Tensor Core GPU data sheet"),
    # Turing
    Peak(65, ("T4",), "NVIDIA T4 Tensor Core GPU data sheet"),
    # Ampere
    Peak(
        312,
        (
            "A100-SXM4-40GB",
            "A100-SXM4-80GB",
            "A100-SXM-80GB",
            "A100-PCIE-40GB",
            "A100-PCIE-80GB",
            "A100 80GB PCIe",
        ),
        "NVIDIA A100 Tensor Core GPU data sheet",
    ),
    Peak(125, ("A10",), "NVIDIA A10 Tensor Core GPU data sheet"),
    Peak(70, ("A10G",), "NVIDIA A10G Tensor Core GPU data sheet, for AWS"),
    Peak(165, ("A30",), "NVIDIA A30 Tensor Core GPU data sheet"),
    Peak(149.7, ("A40",), "NVIDIA A40 data sheet"),
    Peak(154.8, ("RTX A6000",), "NVIDIA Ampere GA102 GPU Architecture white paper, appendix C"),
    Peak(71, ("RTX 3090",), "NVIDIA Ampere GA102 GPU Architecture white paper, appendix A"),
    # Ada Lovelace
    Peak(121, ("L4",), "NVIDIA L4 Tensor Core GPU data sheet, halved"),
    Peak(181.05, ("L40",), "NVIDIA L40 data sheet"),
    Peak(362.05, ("L40S",), "NVIDIA L40S data sheet"),
    Peak(364.2, ("RTX 6000 Ada Generation",), "NVIDIA Ada GPU Architecture white paper"),
    Peak(165.2, ("RTX 4090",), "NVIDIA Ada GPU Architecture white paper, appendix A"),
    # Hopper
    Peak(989.5, ("H100 80GB HBM3",), "NVIDIA H100 Tensor Core GPU data sheet, SXM, halved"),
    Peak(756.5, ("H100 PCIe",), "NVIDIA H100 Tensor Core GPU data sheet, PCIe, halved"),
    Peak(835.5, ("H100 NVL",), "NVIDIA H100 Tensor Core GPU data sheet, NVL, halved"),
    Peak(989.5, ("H200",), "NVIDIA H200 Tensor Core GPU data sheet, SXM, halved"),
    Peak(835.5, ("H200 NVL",), "NVIDIA H200 Tensor Core GPU data sheet, NVL, halved"),
    Peak(
        989.5,
        ("GH200 120GB", "GH200 480GB", "GH200 144G HBM3e"),
        "NVIDIA GH200 Grace Hopper Superchip data sheet, halved",
    ),
    # Blackwell
    Peak(2250, ("B200",), "NVIDIA Blackwell data sheet, one GPU of HGX B200, halved"),
    Peak(2500, ("GB200",), "NVIDIA Blackwell data sheet, one GPU of GB200 NVL72, halved"),
)
BY_NAME = {name: peak for peak in PEAKS for name in peak.names}


def peak_flops(name: str) -> float | None:
    """The peak FLOP/s of one device in dense 16-bit products with float32 accumulation.

    Args:
        name: the device name from `torch.cuda.get_device_name`.

    Returns:
        None for a device that is not in the table; its MFU is not reported.
    """
    for maker in ("NVIDIA ", "Tesla ", "GeForce "):  # drivers before release 470 omit "NVIDIA"
        name = name.removeprefix(maker)
    peak = BY_NAME.get(name)
    return peak.teraflops * TERA if peak else None
