"""Runs: train one, judge one, describe one, load one into Python."""
