"""Reports: tables, label statistics, pictures."""
