"""What a machine is made of: devices, the links between them, its interfaces; from sysfs, NVML, netlink or a file."""
