"""Measurements that the documentation reports. They import all packages; no package imports them."""
