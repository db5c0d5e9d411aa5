"""Experiments yield units of finished work; they never print and never write."""
