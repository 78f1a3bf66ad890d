"""Prints the table of layouts once all of them have run."""

COLUMNS = "parity"


def pytest_terminal_summary(terminalreporter):
    rows = [row for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
            for name, row in report.user_properties if name == COLUMNS and report.when == "call"]
    if not rows:
        return
    terminalreporter.section("parity: largest relative difference to one process over all steps")
    parts = ["loss", "grad_norm", "connector", "cross-attention", "gates"]
    terminalreporter.line(f"{'recipe':<16}{'layout':<26}{'stage':<10}{'steps':>6}" + "".join(f"{part:>17}" for part in parts))
    for row in rows:
        numbers = "".join(f"{row[part]:>17.1e}" if part in row else " " * 17 for part in parts)
        terminalreporter.line(f"{row['recipe']:<16}{row['layout']:<26}{row['stage']:<10}{row['steps']:>6}{numbers}")
