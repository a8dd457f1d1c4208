"""What a table of runs says: scores, claims, figures, reports."""
