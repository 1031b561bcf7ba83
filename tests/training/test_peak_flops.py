"""The table of peak FLOP/s: exact device names have a value, other names have none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.training.peak_flops import PEAKS, peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
        ("Tesla T4", 65),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A30", 165),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A6000", 154.8),
        ("RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 3090", 71),
        ("GeForce RTX 3090", 71),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA GH200 144G HBM3e", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_known_devices_have_their_peak(name, teraflops):
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100-SXM-64GB",
        "GRID A100D-40C",
        "NVIDIA H100",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "Quadro RTX 6000",
        "NVIDIA T400",
        "NVIDIA A2",
        "AMD Instinct MI300X",
        "NVIDIA ",
        "",
    ],
)
def test_slices_variants_and_unknown_devices_have_no_peak(name):
    assert peak_flops(name) is None


@given(name=st.text() | st.builds("{} {}".format, st.sampled_from([n for p in PEAKS for n in p.names]), st.text()))
def test_any_name_returns_a_positive_number_or_none(name):
    peak = peak_flops(name)
    assert peak is None or peak > 0


def test_device_names_are_unique():
    names = [name for peak in PEAKS for name in peak.names]
    assert len(names) == len(set(names))


def test_every_peak_cites_its_source():
    assert all("data sheet" in peak.source or "white paper" in peak.source for peak in PEAKS)
