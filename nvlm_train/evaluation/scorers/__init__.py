"""Marks of single answers, a file a benchmark. Pure functions, save HumanEval's, which runs programs (`sandbox`)."""
