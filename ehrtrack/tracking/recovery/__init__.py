"""Who may write to a run or do a task, and what becomes of those left behind."""
