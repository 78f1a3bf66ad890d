"""Public benchmarks: recipes and records to questions, answers to marks, marks to a score with its interval."""
