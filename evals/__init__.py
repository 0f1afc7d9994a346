"""Evaluations of prompts and models, offline and on live traffic."""
