"""What people look at: tables, label statistics, pictures."""
