"""Jetson modules by their part numbers, and the compute capability of each chip."""

from __future__ import annotations

# As jetson_stats (jtop/core/jetson_variables.py) maps them.
MODULES = {
    "p3767-0005": "Orin Nano 8 GB (developer kit)",
    "p3767-0004": "Orin Nano 4 GB",
    "p3767-0003": "Orin Nano 8 GB",
    "p3767-0001": "Orin NX 8 GB",
    "p3767-0000": "Orin NX 16 GB",
    "p3701-0005": "AGX Orin 64 GB",
    "p3701-0004": "AGX Orin 32 GB",
    "p3701-0000": "AGX Orin (developer kit)",
    "p3668-0003": "Xavier NX 16 GB",
    "p3668-0001": "Xavier NX",
    "p3668-0000": "Xavier NX (developer kit)",
    "p2888-0008": "AGX Xavier Industrial 32 GB",
    "p2888-0006": "AGX Xavier 8 GB",
    "p2888-0005": "AGX Xavier 64 GB",
    "p2888-0004": "AGX Xavier 32 GB",
    "p2888-0003": "AGX Xavier 32 GB",
    "p2888-0001": "AGX Xavier 16 GB",
    "p3448-0003": "Nano 2 GB",
    "p3448-0002": "Nano 4 GB (eMMC)",
    "p3448-0000": "Nano 4 GB",
    "p3636-0001": "TX2 NX",
    "p3489-0888": "TX2 4 GB",
    "p3489-0000": "TX2i",
    "p3310-1000": "TX2",
    "p2180-1000": "TX1",
}

# Nano and TX1, TX2, Xavier, Orin, Thor.
COMPUTE_CAPABILITIES = {
    "tegra210": "5.3",
    "tegra186": "6.2",
    "tegra194": "7.2",
    "tegra234": "8.7",
    "tegra264": "11.0",
}
