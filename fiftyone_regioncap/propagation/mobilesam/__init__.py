"""Propagation with MobileSAM, which runs on a laptop's CPU."""
