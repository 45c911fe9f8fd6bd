"""Pipeline from raw driving logs to an evaluated student: data sets, stages, execution, reports."""
