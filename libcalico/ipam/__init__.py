"""Calico's address management on Calico's keys: ``block`` decides, ``client`` reads and writes."""
