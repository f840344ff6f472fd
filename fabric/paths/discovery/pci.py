"""PCI functions: their addresses, what their class says they are, and the names of a few makers and models. Pure."""

from __future__ import annotations

import re

from fabric.paths.discovery.model import Kind

_ADDRESS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.I)
#: what NCCL writes where a virtual machine hides its NVSwitches
HIDDEN_NVSWITCH = "fffffff:ff:ff.0"
NVIDIA, AMD, INTEL, ASPEED, MATROX = 0x10DE, 0x1002, 0x8086, 0x1A03, 0x102B
_MAKERS = {
    NVIDIA: "NVIDIA", AMD: "AMD", 0x1022: "AMD", INTEL: "Intel", 0x15B3: "Mellanox", 0x14E4: "Broadcom",
    0x1000: "Broadcom", 0x10B5: "PLX", 0x11F8: "Microchip", 0x1D0F: "Amazon", 0x1AF4: "virtio", 0x1077: "QLogic",
    0x1014: "IBM", 0x1DD8: "Pensando", 0x17CB: "Qualcomm", 0x1DA3: "Habana", 0x1414: "Microsoft", 0x1AE0: "Google",
    0x1B21: "ASMedia", 0x1924: "Solarflare", 0x1FC1: "QLogic", 0x1425: "Chelsio", 0x10EC: "Realtek",
}  # fmt: skip
_MODELS = {
    (NVIDIA, 0x15F9): "P100-SXM2", (NVIDIA, 0x1DB1): "V100-SXM2-16GB", (NVIDIA, 0x1DB5): "V100-SXM2-32GB",
    (NVIDIA, 0x1DB8): "V100-SXM3-32GB", (NVIDIA, 0x1EB8): "T4", (NVIDIA, 0x20B0): "A100-SXM4-40GB",
    (NVIDIA, 0x20B2): "A100-SXM4-80GB", (NVIDIA, 0x20B5): "A100-PCIe-80GB", (NVIDIA, 0x2237): "A10G",
    (NVIDIA, 0x26B9): "L40S", (NVIDIA, 0x2330): "H100-SXM5-80GB", (NVIDIA, 0x2331): "H100-PCIe",
    (NVIDIA, 0x2335): "H200-SXM", (NVIDIA, 0x2901): "B200", (NVIDIA, 0x1AC2): "NVSwitch",
    (NVIDIA, 0x1AF1): "NVSwitch 2", (NVIDIA, 0x22A3): "NVSwitch 3",
    (AMD, 0x738C): "MI100", (AMD, 0x740C): "MI250X", (AMD, 0x740F): "MI210", (AMD, 0x7408): "MI250X",
    (AMD, 0x74A1): "MI300X", (AMD, 0x74A0): "MI300A", (AMD, 0x66A1): "MI50", (AMD, 0x66A0): "MI60",
    (0x15B3, 0x1017): "ConnectX-5", (0x15B3, 0x1018): "ConnectX-5 VF", (0x15B3, 0x1019): "ConnectX-5 Ex",
    (0x15B3, 0x101B): "ConnectX-6", (0x15B3, 0x101C): "ConnectX-6 VF", (0x15B3, 0x101D): "ConnectX-6 Dx",
    (0x15B3, 0x1021): "ConnectX-7", (0x15B3, 0x1023): "ConnectX-8", (0x15B3, 0x1003): "ConnectX-3",
    (0x15B3, 0x1013): "ConnectX-4", (0x15B3, 0xA2D6): "BlueField-2", (0x15B3, 0xA2DC): "BlueField-3",
    (0x15B3, 0x1979): "PCIe switch", (0x1D0F, 0xEFA0): "EFA", (0x1D0F, 0xEFA1): "EFA", (0x1D0F, 0xEFA2): "EFA",
    (0x1D0F, 0xEC20): "ENA", (0x1AF4, 0x1000): "net", (0x1AF4, 0x1041): "net",
}  # fmt: skip


def normal_address(text: str) -> str:
    """Return ``0000:3b:00.0`` for that, ``00000000:3B:00.0`` or ``3b:00.0``.

    Raises
    ------
    ValueError
        It is no PCI address.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no PCI address; one looks like 0000:3b:00.0")
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{int(match[2], 16):02x}:{int(match[3], 16):02x}.{match[4]}"


def is_address(text: str) -> bool:
    """Tell whether a text is a PCI address with its domain, as sysfs names its folders."""
    return text.count(":") == 2 and _ADDRESS.fullmatch(text) is not None


def kind_of(class_code: int | None, vendor_id: int | None = None) -> Kind | None:
    """Return what a function is by its 24-bit class, or None for what a topology of traffic leaves out.

    The graphics of a management processor (ASPEED, Matrox) is no GPU; a display of an unknown maker neither.
    """
    if class_code is None:
        return Kind.pci
    major, minor = class_code >> 16, class_code >> 8 & 0xFF
    if major == 0x06:
        if minor == 0x80:
            return Kind.nvswitch if vendor_id in (NVIDIA, None) else None
        return Kind.switch if minor in (0x04, 0x09) else None
    if major == 0x02 or (major, minor) == (
        0x0C,
        0x06,
    ):  # older InfiniBand adapters are serial buses
        return Kind.nic
    if major in (0x12, 0x0B):  # processing accelerators; processors, among them co-processors
        return Kind.gpu if major == 0x12 or minor == 0x40 else None
    if major == 0x03:
        is_display = minor == 0x00 and vendor_id not in (NVIDIA, AMD, INTEL, None)
        return None if is_display or vendor_id in (ASPEED, MATROX) else Kind.gpu
    return None


def model_name(vendor_id: int | None, device_id: int | None) -> str:
    """Return maker and model, the maker alone, the numbers, or nothing."""
    if vendor_id is None or vendor_id in (0, 0xFFFF):
        return ""
    maker = _MAKERS.get(vendor_id, f"{vendor_id:04x}")
    model = _MODELS.get((vendor_id, device_id or 0))
    if model is None:
        return maker if not device_id else f"{maker} {device_id:04x}"
    return f"{maker} {model}"
