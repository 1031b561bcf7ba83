"""The table of GPU peaks: the figure for exactly the device that it is of, and none for others."""

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
def test_a_device_of_the_table_has_its_own_figure(name, teraflops):
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
def test_a_slice_a_variant_or_an_unknown_device_has_none(name):
    assert peak_flops(name) is None


@given(name=st.text() | st.builds("{} {}".format, st.sampled_from([n for p in PEAKS for n in p.names]), st.text()))
def test_any_name_gives_a_positive_number_or_none(name):
    found = peak_flops(name)
    assert found is None or found > 0


def test_no_name_is_in_the_table_twice():
    names = [name for peak in PEAKS for name in peak.names]
    assert len(names) == len(set(names))


def test_every_figure_names_its_source():
    assert all("data sheet" in peak.source or "white paper" in peak.source for peak in PEAKS)
