"""Checks the machine and the bundle before anything is measured."""
