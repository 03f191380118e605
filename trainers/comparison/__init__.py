"""Several runs of a binary side by side: the plan, its execution, the report."""
